"""CounterFactQA: questions about what is not so. The model must say that it is not so, and invent nothing.

Source: Qwen3 technical report, section 4.7, table 22; the report publishes no data. Questions are made of well-known facts
that are exchanged. Every fourth question keeps its true fact, so that a model that rejects everything is found out.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks import prompts
from qwen3_jax.evaluation.tasks.facts import AUTHORS, CAPITALS, CONTINENTS, ELEMENTS, PEOPLE


@dataclass(frozen=True)
class CounterfactOptions:
    """Options of CounterFactQA.

    Attributes:
        problems: their number.
        true_premises: share of questions whose premise is true.
        seed: of all that is drawn.
    """

    problems: int = 200
    true_premises: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(vars(self), problems=whole(1), true_premises=between(0, 1), seed=whole(0))


class _Question(NamedTuple):
    text: str
    corrections: list[str]
    facts: list[str]


def generate_counterfactual(rows: Iterable[Row], options: CounterfactOptions) -> Iterator[Problem]:
    """Questions whose premise is false, and some whose premise is true; the group is which."""
    del rows
    seen: set[str] = set()
    for number in range(options.problems):
        rng = random.Random(f"counterfact_qa/{options.seed}/{number}")
        # As many of the first n questions are true as the share of n, rounded.
        true = round((number + 1) * options.true_premises) > round(number * options.true_premises)
        question = _question(rng, true)
        for _ in range(50):  # the same question twice only where there are no others
            if question.text not in seen:
                break
            question = _question(rng, true)
        seen.add(question.text)
        reference: dict[str, Any] = {"premise": true}
        reference |= {"facts": question.facts} if true else {"corrections": question.corrections}
        yield Problem(
            str(number), prompts.user(question.text), reference, group=f"{'true' if true else 'false'} premise"
        )


def _question(rng: random.Random, true: bool) -> _Question:
    return rng.choice((_capital, _author, _person, _element, _continent))(rng, true)


def _other(rng: random.Random, values: Iterable[str], value: str) -> str:
    return rng.choice([other for other in dict.fromkeys(values) if other != value])


def _capital(rng: random.Random, true: bool) -> _Question:
    country, capital = rng.choice(CAPITALS)
    if true:
        return _Question(f"Which city is the capital of {country}, and on which continent does it lie?", [], [capital])
    city = _other(rng, (name for _, name in CAPITALS), capital)
    texts = (
        f"Which sights should I see in {city}, the capital of {country}?",
        f"In which year did {city} become the capital of {country}?",
        f"Which river flows through {city}, the capital of {country}?",
    )
    return _Question(rng.choice(texts), [f"capital of {country} is {capital}", f"{capital} is the capital"], [])


def _author(rng: random.Random, true: bool) -> _Question:
    book, author = rng.choice(AUTHORS)
    if true:
        return _Question(f"Who wrote {book}, and what is it about?", [], [author.split()[-1]])
    wrong = _other(rng, (name for _, name in AUTHORS), author)
    texts = (
        f"What moved {wrong} to write {book}?",
        f"How long did {wrong} work on {book}?",
        f"Where did {wrong} live while writing {book}?",
    )
    return _Question(rng.choice(texts), [f"{book} was written by {author}", f"{author} wrote"], [])


def _person(rng: random.Random, true: bool) -> _Question:
    name, field, born, died = rng.choice(PEOPLE)
    if true:
        return _Question(f"In which year was {name} born, and what is {name} known for?", [], [str(born)])
    late, early = died + rng.randrange(20, 120), born - rng.randrange(20, 120)
    texts = (
        f"What did {name} say in the famous television interview of {late}?",
        f"Which prize did {name} receive in {early}?",
        f"Why did {name} move to another country in {late}?",
        f"Which work on {field} did {name} publish in {late}?",
    )
    return _Question(rng.choice(texts), [f"died in {died}", f"({born}–{died})", f"born in {born}"], [])


def _element(rng: random.Random, true: bool) -> _Question:
    name, symbol, number = rng.choice(ELEMENTS)
    if true:
        return _Question(f"What is the atomic number of {name}, and what is its symbol?", [], [str(number), symbol])
    other = rng.choice([entry for entry in ELEMENTS if entry[0] != name])
    texts = (
        f"Why does {name} have the atomic number {other[2]}?",
        f"Why did chemists choose the symbol {other[1]} for {name}?",
    )
    return _Question(rng.choice(texts), [f"atomic number of {name} is {number}", f"symbol for {name} is {symbol}"], [])


def _continent(rng: random.Random, true: bool) -> _Question:
    thing, place = rng.choice(CONTINENTS)
    if true:
        return _Question(f"On which continent is {thing}, and what is it known for?", [], [place])
    wrong = _other(rng, (name for _, name in CONTINENTS), place)
    texts = (
        f"Which countries of {wrong} can one visit {thing} from?",
        f"Which animals of {wrong} live around {thing}?",
        f"Why is {thing} so important for tourism in {wrong}, where it lies?",
    )
    return _Question(rng.choice(texts), [f"in {place}", f"located in {place}"], [])


COUNTERFACT_QA = Task(
    name="counterfact_qa",
    about="questions with false premises, which the model must reject",
    problems=generate_counterfactual,
    verifier="premise",
    options=CounterfactOptions,
    reference="Qwen3 technical report, section 4.7",
)
TASKS = (COUNTERFACT_QA,)
