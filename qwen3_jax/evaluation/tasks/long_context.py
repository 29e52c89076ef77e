"""Long contexts in the manner of RULER (Hsieh et al. 2024, arXiv 2404.06654), generated: nothing is fetched.

The thirteen kinds are RULER's; the texts are not: prose is generated where RULER takes essays, and questions are about
generated documents where it takes SQuAD and HotpotQA. A problem depends on seed, kind, length and number alone.

Lengths are in tokens. With `tokenizer` they are that tokenizer's; without one, words, digits and marks are counted, which for
these texts is from 17% more to 5% less than what Qwen's tokenizer makes of them, by kind.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError, nearest, repeated
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks import prompts
from qwen3_jax.evaluation.tasks.words import ADJECTIVES, NOUNS, PEOPLE, VERBS

_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]+|_")
_RESERVED = 160  # tokens of the chat template and of a short answer


@dataclass(frozen=True)
class _Draft:
    """A problem without its filling: `build` makes the prompt from units of filling, `unit` the next of them."""

    build: Callable[[Sequence[str]], str]
    unit: Callable[[int], str]
    answers: list[str]
    least: int = 1
    need: str = "all"


@dataclass(frozen=True)
class _Needles:
    """What varies among the kinds of needles in a haystack."""

    filling: str
    key: str = "words"
    value: str = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


_NEEDLES = {
    "niah_single_1": _Needles("noise"),
    "niah_single_2": _Needles("prose"),
    "niah_single_3": _Needles("prose", value="uuids"),
    "niah_multikey_1": _Needles("prose", keys=4),
    "niah_multikey_2": _Needles("needles"),
    "niah_multikey_3": _Needles("needles", key="uuids", value="uuids"),
    "niah_multivalue": _Needles("prose", values=4),
    "niah_multiquery": _Needles("prose", keys=4, queries=4),
}
KINDS = (*_NEEDLES, "vt", "cwe", "fwe", "qa_1", "qa_2")


@dataclass(frozen=True)
class RulerOptions:
    """Options of RULER.

    Attributes:
        lengths: of the prompts with room for a short answer, in tokens.
        problems: of each kind and length.
        kinds: some of `KINDS`.
        seed: of all that is drawn.
        tokenizer: a model's folder or id, whose tokenizer counts the tokens; empty: words, digits and marks are counted.
    """

    lengths: tuple[int, ...] = (4096, 8192, 16384, 32768)
    problems: int = 10
    kinds: tuple[str, ...] = field(default=KINDS)
    seed: int = 0
    tokenizer: str = ""

    def __post_init__(self) -> None:
        check_bounds(vars(self), lengths=whole(1024), problems=whole(1), seed=whole(0))
        if not self.lengths or not self.kinds:
            raise UserError("lengths and kinds must not be empty.")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
        for name in ("lengths", "kinds"):
            twice = repeated([str(item) for item in getattr(self, name)])
            if twice is not None:
                raise UserError(f"{name} has {twice} twice.")


def generate_ruler(rows: Iterable[Row], options: RulerOptions) -> Iterator[Problem]:
    """`problems` of each kind, for each length."""
    del rows
    count = _counter(options.tokenizer)
    for length in options.lengths:
        for kind in options.kinds:
            guess = 0
            for number in range(options.problems):
                rng = random.Random(f"ruler/{options.seed}/{kind}/{length}/{number}")
                draft = _draft(kind, length, rng)
                prompt, guess = _filled(draft, length - _RESERVED, count, f"{kind} of {length} tokens", guess)
                yield Problem(
                    f"{kind}/{length}/{number}",
                    prompts.user(prompt),
                    draft.answers,
                    settings={"need": draft.need},
                    group=str(length),
                )


def pieces(text: str) -> int:
    """Words, digits and runs of marks of a text; every third word behind a hyphen counts twice, as it is mostly two tokens."""
    return len(_PIECE.findall(text)) + text.count("-") // 3


@lru_cache(maxsize=2)
def _counter(tokenizer: str) -> Callable[[str], int]:
    if not tokenizer:
        return pieces
    from qwen3_jax.checkpoint import load_tokenizer
    from qwen3_jax.checkpoint.hub import resolve

    loaded = load_tokenizer(resolve(tokenizer, key="ruler.tokenizer"))
    if loaded is None:
        raise UserError(f"ruler.tokenizer: {tokenizer} has no tokenizer.")
    return lambda text: len(loaded.encode(text))


def _filled(draft: _Draft, length: int, count: Callable[[str], int], what: str, guess: int) -> tuple[str, int]:
    """The prompt with as much filling as fits into `length` tokens, and the units of filling in it.

    Args:
        guess: how many units may fit, as of the problem before.
    """
    units: list[str] = []

    def built(number: int) -> str:
        units.extend(draft.unit(place) for place in range(len(units), number))
        return draft.build(units[:number])

    bare = count(built(draft.least))
    if bare > length:
        raise UserError(f"the task ruler: {what} cannot be made; its shortest form has {bare + _RESERVED}.")
    number = max(guess, draft.least + 64)
    for _ in range(6):
        size = count(built(number))
        if 0.98 * length <= size <= length:
            return built(number), number
        each = max((size - bare) / (number - draft.least), 0.5)
        number = draft.least + max(int((0.99 * length - bare) / each), 1)
    while number > draft.least and count(built(number)) > length:
        number = max(draft.least, int(number * 0.99) - 1)
    return built(number), number


def _draft(kind: str, length: int, rng: random.Random) -> _Draft:
    if kind in _NEEDLES:
        return _needles(_NEEDLES[kind], rng)
    if kind == "vt":
        return _variables(rng)
    if kind == "cwe":
        return _common_words(length, rng)
    if kind == "fwe":
        return _frequent_words(rng)
    return _questions(rng, steps=1 if kind == "qa_1" else 2)


def _compound(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _drawn(kind: str, rng: random.Random) -> str:
    if kind == "words":
        return _compound(rng)
    if kind == "numbers":
        return str(rng.randrange(1_000_000, 10_000_000))
    digits = f"{rng.getrandbits(128):032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _distinct(count: int, draw: Callable[[], str], taken: Iterable[str] = ()) -> list[str]:
    """As many different values; none of `taken`."""
    known = set(taken)
    out: list[str] = []
    while len(out) < count:
        value = draw()
        if value not in known:
            known.add(value)
            out.append(value)
    return out


def sentence(rng: random.Random) -> str:
    """A sentence of generated prose."""
    return (
        f"The {rng.choice(ADJECTIVES)} {rng.choice(PEOPLE)} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} "
        f"{rng.choice(NOUNS)} near the {rng.choice(NOUNS)}."
    )


_NOISE = "The day is long. The road is dry. Birds fly over the field. We walk on. Then we rest for a while."


def _needles(form: _Needles, rng: random.Random) -> _Draft:
    keys = _distinct(form.keys, lambda: _drawn(form.key, rng))
    values = _distinct(form.keys * form.values, lambda: _drawn(form.value, rng))
    of_key = {key: values[place * form.values : (place + 1) * form.values] for place, key in enumerate(keys)}
    one = form.value.removesuffix("s")
    needles = [_needle(one, key, value) for key in keys for value in of_key[key]]
    places = [rng.random() for _ in needles]
    asked = rng.sample(keys, form.queries)
    answers = [value for key in asked for value in of_key[key]]
    taken = {*keys, *values}
    own = random.Random(rng.getrandbits(64))

    def unit(number: int) -> str:
        del number
        if form.filling == "noise":
            return _NOISE
        if form.filling == "prose":
            return sentence(own)
        key = _distinct(1, lambda: _drawn(form.key, own), taken)[0]
        return _needle(one, key, _distinct(1, lambda: _drawn(form.value, own), taken)[0])

    def build(units: Sequence[str]) -> str:
        text = _inserted(units, needles, places)
        several = len(answers) > 1
        named = ", ".join(asked[:-1]) + (" and " if len(asked) > 1 else "") + asked[-1]
        verb, noun = ("are all the", f"{one}s") if several else ("is the", one)
        return (
            f"Special magic {form.value} are hidden in the text below. Remember them: you will be asked about them afterwards."
            f"\n\n{text}\n\nWhat {verb} special magic {noun} for {named} in the text above?"
        )

    return _Draft(build, unit, answers, least=1)


def _needle(kind: str, key: str, value: str) -> str:
    return f"The special magic {kind} for {key} is: {value}."


def _inserted(units: Sequence[str], extra: Sequence[str], places: Sequence[float]) -> str:
    """The units with the extra texts among them, each at its share of the whole, in the order of the shares."""
    at = sorted((int(place * (len(units) + 1)), text) for place, text in zip(places, extra, strict=True))
    out: list[str] = []
    done = 0
    for place, text in at:
        out += [*units[done:place], text]
        done = max(done, place)
    return "\n".join([*out, *units[done:]])


def _variables(rng: random.Random, hops: int = 4) -> _Draft:
    names = _distinct(hops + 1, lambda: "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=5)))
    value = str(rng.randrange(10_000, 100_000))
    lines = [
        f"VAR {names[0]} = {value}",
        *(f"VAR {new} = VAR {old}" for old, new in itertools.pairwise(names)),
    ]
    places = sorted(rng.random() for _ in lines)

    def build(units: Sequence[str]) -> str:
        out: list[str] = []
        done = 0
        for place, line in zip(places, lines, strict=True):  # in the order of the chain
            at = max(done, int(place * (len(units) + 1)))
            out += [*units[done:at], line]
            done = at
        text = "\n".join([*out, *units[done:]])
        return (
            f"Variables are assigned values in the text below. Follow the assignments.\n\n{text}\n\nWhich variables have the "
            f"value {value}, directly or through another variable? Name all {len(names)} of them."
        )

    return _Draft(build, lambda number: _NOISE, names)


def _common_words(length: int, rng: random.Random) -> _Draft:
    """Ten words come ten times as often as all the others; asked are the ten."""
    often, seldom = (30, 3) if length >= 4096 else (6, 1)
    words = [f"{first}-{second}" for first in ADJECTIVES for second in NOUNS]
    rng.shuffle(words)
    common, others = words[:10], words[10:]
    seed = rng.getrandbits(64)

    def build(units: Sequence[str]) -> str:
        listed = common * often + [word for word in units for _ in range(seldom)]
        random.Random(f"{seed}/{len(listed)}").shuffle(listed)
        text = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
        return (
            "Below is a numbered list of words, some of which come more often than others. Remember those that come most often."
            f"\n\n{text}\n\nWhat are the 10 most common words of the list?"
        )

    def unit(number: int) -> str:
        return others[number] if number < len(others) else f"{others[number % len(others)]}-{number // len(others)}"

    return _Draft(build, unit, common)


def _frequent_words(rng: random.Random, exponent: float = 2.0) -> _Draft:
    """Words whose frequency falls with a power of their rank, and dots that mean nothing; asked are the first three."""
    ranked = _distinct(200, lambda: _compound(rng))
    weights = [1 / rank**exponent for rank in range(1, len(ranked) + 1)]
    seed = rng.getrandbits(64)

    def build(units: Sequence[str]) -> str:
        counts = [max(1, round(len(units) * weight / sum(weights))) for weight in weights]
        for place in range(3):  # the three stay apart in a short text too
            counts[place] = max(counts[place], counts[3] + 3 - place)
        listed = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
        listed = listed[: max(len(units), 12)]
        random.Random(f"{seed}/{len(listed)}").shuffle(listed)
        text = " ".join(word if i % 7 else f"... {word}" for i, word in enumerate(listed))
        return (
            "Read the coded text below and count how often each code word comes; ignore the dots.\n\n"
            f"{text}\n\nWhat are the three code words that come most often?"
        )

    return _Draft(build, lambda number: ranked[0], ranked[:3], least=40)


def _questions(rng: random.Random, steps: int) -> _Draft:
    """Documents about invented people and places; the question needs one of them, or two."""
    names = _distinct(2, lambda: _name(rng))
    town, trade = _distinct(1, lambda: _name(rng), names)[0], rng.choice(PEOPLE)
    facts = [_document(rng, names[0], town, trade)]
    if steps == 1:
        question, answer = f"In which town did {names[0]} live?", town
    else:
        founder = names[1]
        facts.append(f"Document: {town}. The town of {town} was founded by {founder}. {sentence(rng)}")
        question, answer = f"Who founded the town in which {names[0]} lived?", founder
    places = [rng.random() for _ in facts]
    taken, own = {*names, town}, random.Random(rng.getrandbits(64))

    def unit(number: int) -> str:
        first, second = _distinct(2, lambda: _name(own), taken)
        if steps == 2 and number % 2:
            return f"Document: {first}. The town of {first} was founded by {second}. {sentence(own)}"
        return _document(own, first, second, own.choice(PEOPLE))

    def build(units: Sequence[str]) -> str:
        text = _inserted(units, facts, places)
        return f"Answer the question from the documents below.\n\n{text}\n\nQuestion: {question} Give only the answer."

    return _Draft(build, unit, [answer], need="any")


def _name(rng: random.Random) -> str:
    return f"{rng.choice(ADJECTIVES).capitalize()} {rng.choice(NOUNS).capitalize()}"


def _document(rng: random.Random, person: str, town: str, trade: str) -> str:
    return f"Document: {person}. {person} was a {trade} who lived in {town}. {sentence(rng)} {sentence(rng)}"


RULER = Task(
    name="ruler",
    about="long contexts: needles, variables, counted words, questions; generated at given lengths",
    problems=generate_ruler,
    verifier="recall",
    metric="score",
    options=RulerOptions,
    max_new_tokens=8_192,
    reference="arXiv 2404.06654",
)
TASKS = (RULER,)
