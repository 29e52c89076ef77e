"""Small problems with one answer: strings, sorting, counting, dates, and sets of reasoning-gym (extra `reasoning`)."""

from __future__ import annotations

import datetime
import functools
import itertools
import random
from collections.abc import Iterator

from qwen3_jax.evaluation.tasks.words import NOUNS
from qwen3_jax.posttraining.general.task import Drawn, GeneralTask, check, user

_BLOCK = 500  # problems of one set and seed: the sets' own size
_FIRST = 8  # problems of a set that are made at first; then as many times more


def _exact(text: str, right: str, *wrong: str) -> Drawn:
    """A problem whose answer is the whole text, in the case of the reference."""
    others = tuple(one for one in dict.fromkeys(("", f"The answer is {right}", *wrong)) if one != right)
    return Drawn(user(text), "exact", [right, f"{right}."], right, others)


def _string(rng: random.Random) -> Drawn:
    words = rng.sample(NOUNS, rng.randrange(3, 6))
    line, kind = " ".join(words), rng.randrange(6)
    alone = "Answer with the result alone."
    if kind == 0:
        return _exact(f"Reverse the order of these words: {line}\n{alone}", " ".join(words[::-1]), line, line[::-1])
    if kind == 1:
        word = rng.choice([noun for noun in NOUNS if noun != noun[::-1]])
        return _exact(f"Write the letters of {word!r} in reverse order. {alone}", word[::-1], word, word.upper())
    if kind == 2:
        right = "".join(letter for letter in line if letter not in "aeiou")
        return _exact(f"Remove all vowels (a, e, i, o, u) from: {line}\n{alone}", right, line, right.replace(" ", ""))
    if kind == 3:
        old, new = rng.choice(sorted(set(line) - {" "})), rng.choice("#@7")
        text = f"Replace every letter {old} by {new} in: {line}\n{alone}"
        return _exact(text, line.replace(old, new), line, line.replace(old, ""))
    if kind == 4:
        right = "".join(word[0] for word in words)
        return _exact(f"Write the first letters of these words as one word, in small letters: {line}\n{alone}", right,
                      "".join(word[-1] for word in words) + "x", " ".join(right))  # fmt: skip
    right = " ".join(word.capitalize() if i % 2 else word for i, word in enumerate(words))
    text = f"Write every second word of this line with a capital letter, and change nothing else: {line}\n{alone}"
    return _exact(text, right, line, line.title())


def _sorting(rng: random.Random) -> Drawn:
    if rng.random() < 0.5:
        items = [str(number) for number in rng.sample(range(-99, 1000), rng.randrange(4, 9))]
        key, how = int, rng.choice(("ascending", "descending"))
        right = sorted(items, key=key, reverse=how == "descending")
        what = f"Sort these numbers in {how} order"
    else:
        items = rng.sample(NOUNS, rng.randrange(4, 9))
        how = rng.choice(("by the alphabet", "by the alphabet in reverse"))
        right = sorted(items, reverse=how.endswith("reverse"))
        what = f"Sort these words {how}"
    if items == right:
        items = items[::-1]
    line = ", ".join(right)
    text = f"{what}: {', '.join(items)}. Answer with the sorted list alone, separated by commas and spaces."
    return _exact(text, line, ", ".join(items), ", ".join(right[::-1]), " ".join(right), ", ".join(right[:-1]))


def _counting(rng: random.Random) -> Drawn:
    words = [rng.choice(NOUNS) for _ in range(rng.randrange(6, 15))]
    line, kind = " ".join(words), rng.randrange(3)
    if kind == 0:
        letter = rng.choice("aeiorst")
        count, what = line.count(letter), f"How often does the letter {letter} occur in the following line?"
    elif kind == 1:
        count, what = len(words), "How many words does the following line have?"
    else:
        letter = rng.choice(sorted({word[0] for word in words}))
        count = sum(word.startswith(letter) for word in words)
        what = f"How many words of the following line begin with {letter}?"
    text = f"{what} Give the number alone.\n{line}"
    wrong = ("", str(count + 1), f"{count} or {count + 1}", "several", f"between {count - 1} and {count + 1}")
    return Drawn(user(text), "number", count, str(count), wrong, settings={"take": "only"})


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _dates(rng: random.Random) -> Drawn:
    day = datetime.date(1990, 1, 1) + datetime.timedelta(rng.randrange(20_000))
    span = rng.randrange(3, 120)
    other = day + datetime.timedelta(span)
    kind = rng.randrange(4)
    if kind == 0:
        text = f"Which date is {span} days after {day.isoformat()}? Answer as YYYY-MM-DD."
        late = other + datetime.timedelta(1)
        return _exact(text, other.isoformat(), day.isoformat(), late.isoformat(), other.strftime("%d/%m/%Y"))
    if kind == 1:
        text = f"How many days lie between {day.isoformat()} and {other.isoformat()}? The number alone."
        return _exact(text, str(span), str(span + 1), str(span - 1), "many")
    if kind == 2:
        name = _DAYS[day.weekday()]
        text = f"{day.isoformat()} is a {name}. Which day of the week is it {span} days later? One word."
        right = _DAYS[other.weekday()]
        return _exact(text, right, _DAYS[(other.weekday() + 1) % 7], right[:3])
    form = rng.choice(("%d.%m.%Y", "%m/%d/%Y", "%Y%m%d"))
    said = {"%d.%m.%Y": "DD.MM.YYYY", "%m/%d/%Y": "MM/DD/YYYY", "%Y%m%d": "YYYYMMDD"}[form]
    written = f"{day.day} {day.strftime('%B')} {day.year}"
    return _exact(f"Write {written} in the form {said}. The date alone.", day.strftime(form), written, day.isoformat())


_SETS = {
    "arithmetic": (
        "chain_sum",
        "basic_arithmetic",
        "gcd",
        "lcm",
        "leg_counting",
        "fraction_simplification",
        "products",
    ),
    "puzzles": (
        "letter_counting",
        "number_sorting",
        "word_sorting",
        "spell_backward",
        "base_conversion",
        "caesar_cipher",
    ),
}
_FORM = "Think step by step. Put the final answer, and nothing else, between <answer> and </answer>."


@functools.lru_cache(maxsize=8)
def _made(group: str, seed: int, block: int, count: int) -> list[list[tuple[str, str]]]:
    """(question, answer) of the first problems of each set of a group; one process, which starts in seconds, makes them all."""
    from qwen3_jax.verifiers.reasoning_gym import generate_several

    return generate_several([(name, _config(group, name, seed, block), count) for name in _SETS[group]])


def _config(group: str, name: str, seed: int, block: int) -> dict[str, int]:
    return {"seed": random.Random(f"{group}/{name}/{seed}/{block}").randrange(10**9)}


def _of_sets(group: str, seed: int) -> Iterator[Drawn]:
    """Problems of several sets in turn, made in portions; the sets' partial scores do not count."""
    names = _SETS[group]
    for number in itertools.count():
        which = number % len(names)
        block, index = divmod(number // len(names), _BLOCK)
        portion = _FIRST
        while portion <= index:
            portion *= _FIRST
        question, answer = _made(group, seed, block, min(portion, _BLOCK))[which][index]
        reference = {
            "set": names[which], "config": _config(group, names[which], seed, block), "index": index, "question": question,
            "answer": answer,
        }  # fmt: skip
        wrong = ("", "I do not know.", "<answer></answer>", "<answer>no idea</answer>", answer)
        checks = [check("reasoning_gym", reference)]
        yield Drawn(user(f"{question.strip()}\n\n{_FORM}"), "checks", checks, f"So: <answer>{answer}</answer>", wrong)


def _arithmetic(seed: int) -> Iterator[Drawn]:
    return _of_sets("arithmetic", seed)


def _puzzles(seed: int) -> Iterator[Drawn]:
    return _of_sets("puzzles", seed)


TASKS = (
    GeneralTask("strings", "words reversed, replaced, abbreviated", _string),
    GeneralTask("sorting", "numbers and words in order", _sorting),
    GeneralTask("counting", "letters and words counted", _counting),
    GeneralTask("dates", "days between, days later, weekdays, forms of a date", _dates),
    GeneralTask("arithmetic", "sets of reasoning-gym: sums, divisors, fractions", stream=_arithmetic),
    GeneralTask("puzzles", "sets of reasoning-gym: letters, numbers, ciphers", stream=_puzzles),
)
