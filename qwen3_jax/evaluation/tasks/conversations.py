"""Two of the report's in-house benchmarks on generated conversations: ThinkFollow and LengthCtrl.

Source: Qwen3 technical report, section 4.7, table 22, which describes them in a sentence each and publishes no data.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import NON_THINKING, THINKING, Problem, Task
from qwen3_jax.evaluation.tasks import prompts
from qwen3_jax.evaluation.tasks.facts import AUTHORS, CAPITALS
from qwen3_jax.evaluation.tasks.words import ADJECTIVES, NOUNS, PEOPLE


@dataclass(frozen=True)
class ThinkFollowOptions:
    """Options of ThinkFollow.

    Attributes:
        dialogues: their number; each turn of one is a problem.
        turns: of the user in each.
        flagged: share of turns with a flag.
        seed: of all that is drawn.
    """

    dialogues: int = 50
    turns: int = 4
    flagged: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(vars(self), dialogues=whole(1), turns=whole(1), flagged=between(0, 1), seed=whole(0))


def generate_think_follow(rows: Iterable[Row], options: ThinkFollowOptions) -> Iterator[Problem]:
    """Dialogues with /think and /no_think inserted at random; asked is each turn, with the turns before it answered.

    The last flag holds, in the system message as in the user's; before the first one the model thinks, as the chat template has
    it. The group is the flag in force: "think", "no_think", or "no flag" before the first.
    """
    del rows
    for number in range(options.dialogues):
        rng = random.Random(f"think_follow/{options.seed}/{number}")
        messages: list[dict[str, str]] = []
        flag = ""
        if rng.random() < 0.15:
            flag = rng.choice(("/think", "/no_think"))
            messages.append({"role": "system", "content": f"You are a helpful assistant. {flag}"})
        for turn in range(options.turns):
            question, answer = _small_question(rng)
            if rng.random() < options.flagged:
                flag = rng.choice(("/think", "/no_think"))
                question = f"{flag} {question}" if rng.random() < 0.25 else f"{question} {flag}"
            messages.append({"role": "user", "content": question})
            yield Problem(
                f"{number}/{turn}",
                tuple(dict(message) for message in messages),
                flag != "/no_think",
                enable_thinking=True,
                group=flag.lstrip("/") or "no flag",
            )
            messages.append({"role": "assistant", "content": answer})


def _small_question(rng: random.Random) -> tuple[str, str]:
    """A question that can be answered with and without thinking, and its answer."""
    kind = rng.randrange(6)
    if kind == 0:
        a, b = rng.randrange(11, 100), rng.randrange(11, 100)
        return f"What is {a} + {b}?", f"{a} + {b} = {a + b}."
    if kind == 1:
        a, b = rng.randrange(3, 20), rng.randrange(3, 20)
        return f"How much is {a} times {b}?", f"{a} times {b} is {a * b}."
    if kind == 2:
        country, capital = rng.choice(CAPITALS)
        return f"What is the capital of {country}?", f"The capital of {country} is {capital}."
    if kind == 3:
        book, author = rng.choice(AUTHORS)
        return f"Who wrote {book}?", f"{book} was written by {author}."
    if kind == 4:
        word = rng.choice(NOUNS)
        return f"How many letters does the word {word!r} have?", f"The word {word!r} has {len(word)} letters."
    words = rng.sample(NOUNS, 4)
    return f"Sort these words by the alphabet: {', '.join(words)}.", ", ".join(sorted(words)) + "."


THINK_FOLLOW = Task(
    name="think_follow",
    about="dialogues with /think and /no_think at random: is the last flag obeyed in each turn?",
    problems=generate_think_follow,
    verifier="thinking",
    options=ThinkFollowOptions,
    needs_thinking=True,
    reference="Qwen3 technical report, section 4.7",
)


@dataclass(frozen=True)
class LengthOptions:
    """Options of LengthCtrl.

    Attributes:
        problems: their number.
        seed: of all that is drawn.
    """

    problems: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(vars(self), problems=whole(1), seed=whole(0))


_FORMS = ("a short story", "a fairy tale", "a letter", "a speech", "a diary entry", "a scene of a play", "an essay")


def generate_length_ctrl(rows: Iterable[Row], options: LengthOptions) -> Iterator[Problem]:
    """Creative writing of a length that is asked for: a target, a range, or a bound; the group is which."""
    del rows
    for number in range(options.problems):
        rng = random.Random(f"length_ctrl/{options.seed}/{number}")
        form = rng.choice(_FORMS)
        topic = (
            f"{_a(rng.choice(ADJECTIVES))} {rng.choice(PEOPLE)} and {_a(rng.choice(ADJECTIVES))} {rng.choice(NOUNS)}"
        )
        target = rng.choice((50, 100, 150, 200, 300, 400, 500, 600, 800, 1000))
        kind = ("target", "range", "at most", "at least", "sentences")[number % 5]
        unit = "words"
        reference: int | dict[str, int] = target
        if kind == "target":
            length = f"Write about {target} words."
        elif kind == "range":
            low, high = target, target * 6 // 5
            length, reference = f"Write between {low} and {high} words.", {"min": low, "max": high}
        elif kind == "at most":
            length = f"Write at most {target} words, and as close to it as you can."
            reference = {"min": target * 4 // 5, "max": target}
        elif kind == "at least":
            length = f"Write at least {target} words, and not much more."
            reference = {"min": target, "max": target * 5 // 4}
        else:
            unit, count = "sentences", rng.randrange(5, 26)
            length, reference = f"Write exactly {count} sentences.", {"min": count, "max": count}
        text = f"Write {form} about {topic}. {length} Give only the text, without a title."
        yield Problem(str(number), prompts.user(text), reference, settings={"unit": unit}, group=kind)


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


LENGTH_CTRL = Task(
    name="length_ctrl",
    about="creative writing of a required length; the score falls with the distance from it",
    problems=generate_length_ctrl,
    verifier="length",
    metric="score",
    options=LengthOptions,
    thinking=dataclasses.replace(THINKING, presence_penalty=1.5),
    non_thinking=NON_THINKING,
    reference="Qwen3 technical report, section 4.7",
)
TASKS = (THINK_FOLLOW, LENGTH_CTRL)
