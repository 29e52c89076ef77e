"""Answers with a planted fault of each kind of the report's section 4.1, and good answers that look like faulty ones.

    rows, held_out = planted(200, seed=0)                  # (kind, record) pairs; "good" has as many as all faults together
    rows, held_out = planted(200, seed=0, phrasing=4)      # in words that no rule was written with; 0 to 3 were

Records have the form of `qwen3 data generate`: `messages` and a reference under `answer`. Texts are put together from parts, so
that no two records are alike. "good" ones have enumerations that are no questions, options, checked guesses, formulas, code,
quotations and several languages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.helpers.planted_guesses import GUESSES
from tests.helpers.planted_queries import several_parts, writing

KINDS = (
    "not verifiable", "several parts", "general writing", "solved without thinking", "never solved", "wrong", "repetitive",
    "guessed", "inconsistent", "mixed languages", "near validation",
)  # fmt: skip
# fmt: off
NAMES = "Ada Ben Chen Dana Emil Fatima Goran Hanna Igor Jana Kofi Lena Mara Nils Olga Pavel Rosa Samir Tara Uwe".split()  # noqa: SIM905
THINGS = "apples pencils stamps marbles tickets books coins eggs bottles bricks cards shells buttons plates lamps".split()  # noqa: SIM905
PLACES = "shop market school garden station library museum harbour bakery workshop farm office".split()  # noqa: SIM905
# fmt: on
_EXTRA = (
    "The shop closes at six o'clock.",
    "It rained the whole morning.",
    "Nobody else was there that day.",
    "All boxes are of the same size.",
    "Give your answer as an integer.",
    "Explain your reasoning.",
    "The bus was ten minutes late.",
    "They had agreed on this a week before.",
    "",
)  # fmt: skip

Row = tuple[str, dict[str, Any]]
Maker = Callable[[random.Random, list[str]], list[dict[str, Any]]]
"""Makes the records of one fault; a held-out query is appended to the list."""


def problem(rng: random.Random) -> tuple[str, int, str]:
    """A word problem, its answer, and a calculation in words."""
    name, other = rng.sample(NAMES, 2)
    thing, place, extra = rng.choice(THINGS), rng.choice(PLACES), rng.choice(_EXTRA)
    a, b, c = rng.randint(3, 40), rng.randint(2, 12), rng.randint(1, 30)
    form = rng.randrange(8)
    if form == 0:
        return (
            f"{name} buys {a} boxes with {b} {thing} each at the {place} and gives {c} {thing} to {other}. {extra} How many "
            f"{thing} does {name} have left?", a * b - c, f"{a} boxes of {b} are {a * b}. Minus {c} that is {a * b - c}",
        )  # fmt: skip
    if form == 1:
        return (
            f"A train leaves the {place} with {a * b} passengers. {extra} At the first stop {c} get off and {b} get on. "
            f"Determine how many passengers are on the train then.", a * b - c + b,
            f"{a * b} less {c} gives {a * b - c}, and {b} more gives {a * b - c + b}",
        )  # fmt: skip
    if form == 2:
        return (
            f"Compute $\\frac{{{a * b}}}{{{b}}} + {c}$.", a + c, f"\\frac{{{a * b}}}{{{b}}} = {a}, and {a} + {c} = {a + c}",
        )  # fmt: skip
    if form == 3:
        total = a + b + c
        options = rng.sample([total, total + 1, total + b, abs(total - 3)], 4)
        letters = " ".join(f"({letter}) {value}" for letter, value in zip("ABCD", options, strict=True))
        return (
            f"{name} has {a} {thing}, {other} has {b} and the {place} keeps {c} more. What is the total? {letters}", total,
            f"{a} + {b} = {a + b}; with {c} it is {total}",
        )  # fmt: skip
    if form == 4:
        return (
            f"The following holds: 1. Every box has {b} {thing}. 2. There are {a} boxes in the {place}. 3. {c} {thing} are "
            f"broken. {extra} How many {thing} are whole?", a * b - c,
            f"{a} times {b} makes {a * b}; {c} broken leaves {a * b - c}",
        )  # fmt: skip
    if form == 5:
        return (
            f"What does this program print?\n```python\ntotal = {c}\nfor i in range({a}):\n    total += {b}\nprint(total)\n```",
            a * b + c, f"`total` starts at {c} and grows {a} times by {b}, so it ends at {a * b + c}",
        )  # fmt: skip
    if form == 6:
        return (
            f"{name}在{place}买了{a}盒铅笔，每盒{b}支，送给朋友{c}支。还剩多少支？", a * b - c,
            f"一共有{a}乘{b}等于{a * b}支，送出{c}支以后剩{a * b - c}支",
        )  # fmt: skip
    return (
        f"Let $f(x) = {b}x + {c}$. {extra} Find $f({a})$.", a * b + c, f"Inserting gives {b} \\cdot {a} + {c} = {a * b + c}",
    )  # fmt: skip


def thinking(rng: random.Random, steps: str, answer: int, text: str) -> str:
    """Reasoning that ends with the answer, in the language of the query."""
    if any("\u4e00" <= char <= "\u9fff" for char in text):
        return rng.choice(
            [f"先算总数。{steps}。再检查一遍，没有错误。", f"我们一步一步来。{steps}。所以答案是 {answer} 。"]
        )
    opening = rng.choice([
        "Let me read the question carefully.", "We go step by step.", "First I write down what is given.",
        "A quick guess would be around a hundred, but let me calculate instead of guessing.",
        f"My first guess is {answer + 2}. Checking the guess shows that it is too large.", "Okay.",
        "I could guess and check here, but direct calculation is easy.", "What is asked? A single number.",
    ])  # fmt: skip
    check = rng.choice([
        "Let me double-check: the numbers fit.", "Wait, did I read that right? Yes, I did.",
        "Working backwards gives the same.",
        "The order of the steps does not matter here.", f"So the answer is {answer}.", f"Therefore the total is {answer}.",
        f"Hence \\boxed{{{answer}}}.", "That seems reasonable.", f"The result is {answer}, as the check shows.",
    ])  # fmt: skip
    return f"{opening} {steps}. {check}"


def answered(rng: random.Random, answer: int, text: str) -> str:
    if any("\u4e00" <= char <= "\u9fff" for char in text):
        return rng.choice([f"答案是 {answer}。", f"还剩 {answer} 支。"])
    return rng.choice([
        f"The answer is {answer}.", f"**{answer}**", f"It follows that the number is {answer}.", f"$\\boxed{{{answer}}}$",
        f"Adding everything up, we get {answer}.", f"{answer}",
    ])  # fmt: skip


def record(text: str, thought: str, said: str, answer: Any, **more: Any) -> dict[str, Any]:
    reply = {"role": "assistant", "reasoning_content": thought, "content": said}
    out = {"messages": [{"role": "user", "content": text}, reply], **more}
    return out if answer is None else out | {"answer": answer}


def good(rng: random.Random) -> dict[str, Any]:
    text, answer, steps = problem(rng)
    return record(text, thinking(rng, steps, answer, text), answered(rng, answer, text), str(answer))


def english(rng: random.Random) -> tuple[str, int, str]:
    while True:
        text, answer, steps = problem(rng)
        if text.isascii():
            return text, answer, steps


def _several_parts(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    (one, a, steps), (two, b, _) = english(rng), english(rng)
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    start = f"{name} sells {a} {thing} on Monday and {b} on Tuesday."
    texts = [
        f"{start} Which day was the better one, and by how many {thing}? What would a week bring?",
        f"{start} (i) State the total. (ii) State the mean of both days.",
        f"{start} Question 1: How many {thing} in all? Question 2: How many more on Tuesday?",
        f"{start}\n- Work out the total.\n- Work out the difference.",
        f"{start} Give the total and then compute the mean as well. Is the mean a whole number?",
        f"First problem. {one}\nSecond problem. {two}",
        f"{start} How many is that altogether? Using this, find the income at {a % 7 + 2} euros each.",
        f"(1) {one} (2) {two}",
    ]  # fmt: skip
    unseen = [
        f"{start} What do both days make together; what is their difference?",
        f"{start} Problem 1 – total. Problem 2 – mean. Solve both.",
        f"{start} I want to know two things: the total and the mean.",
        f"{start} How many {thing} were sold? Of these, how many were sold on Monday?",
        f"{start}\n\n**a.** Calculate the total\n**b.** Calculate the mean",
        f"{one} Once you have that, tell me the square of it.",
        f"{start} Tell me the total. Tell me the mean.",
        f"{one}\n\n{two}",
    ]  # fmt: skip
    fresh, last = several_parts(start, one, name, a)
    text = rng.choice([[
        f"{one} {two}",
        f"{start} (a) How many {thing} are sold in all? (b) What is the mean of the two days?",
        f"{start}\n1. Find the total.\n2. Find the difference.\n3. Explain which day was better.",
        f"{start} a) Calculate the sum. b) Calculate the difference.",
        f"{start} Part A: Determine the total. Part B: Determine the mean.",
        f"{start} How many {thing} are that? And how many more on the better day?",
        f"{start} Find the total. Then find how many would be sold in a week at this rate.",
        f"{start} i) Compute the total; ii) compute the ratio.",
        f"{start} What is the total, and also what is the difference between the two days?",
        f"{start} Calculate the total. Also calculate the mean.",
        f"{start} What is the sum? What is the product? Which is larger?",
    ], texts, unseen, fresh, last][phrasing])  # fmt: skip
    return [record(text, thinking(rng, f"{steps}. The other one is {b}", b, text), answered(rng, b, text), str(b))]


def _writing(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    texts = [
        f"Could you put together a short farewell speech for {name} of the {place}?",
        f"Write me something funny about {rng.randint(2, 40)} {thing}, a poem maybe.",
        f"Imagine you are {name}. Write a letter to the {place} about your {thing}.",
        f"Please write a persuasive essay of {rng.randint(200, 900)} words: should the {place} ban {thing}?",
        f"Write the opening paragraph of a mystery novel set in a {place} full of {thing}.",
        f"Help me write a wedding toast for {name}, who loves {thing}.",
        f"Make a rap about {name} and {rng.randint(2, 40)} {thing}.",
        f"I'd like a bedtime story with {name}, the {place} and {rng.randint(2, 40)} {thing}.",
        f"Draft a tweet that announces the new {thing} of the {place}.",
        f"Write a dialogue between {name} and the owner of the {place} about {thing}.",
    ]  # fmt: skip
    unseen = [
        f"Please write a few verses about {rng.randint(2, 40)} {thing}.",
        f"Can you do a stand-up routine about the {place}? Mention {rng.randint(2, 40)} {thing}.",
        f"Continue this: 'One day {name} opened the door of the {place} and saw {rng.randint(2, 40)} {thing}...'",
        f"Write a LinkedIn post in which {name} leaves the {place}.",
        f"Compose a complaint to the {place} about {rng.randint(2, 40)} {thing}.",
        f"Write 300 words about your favourite {place}.",
        f"Describe a day in the life of {name}, who sells {rng.randint(2, 40)} {thing} at the {place}, as vividly as you can.",
        f"Create an Instagram caption for a picture of {rng.randint(2, 40)} {thing}.",
        f"Write a short play for three actors set in a {place} with {rng.randint(2, 40)} {thing}.",
        f"Prepare a motivational talk for the team of the {place} with {rng.randint(2, 40)} people.",
    ]  # fmt: skip
    fresh, last = writing(rng, name, thing, place)
    text = rng.choice([[
        f"Write a short story about {name} who loses {rng.randint(2, 40)} {thing} at the {place}.",
        f"Please compose a poem of {rng.randint(2, 9)} stanzas on {thing}.",
        f"Draft an email to the {place} that complains about {rng.randint(2, 40)} broken {thing}.",
        f"Can you write me a birthday speech for {name}, who collects {thing}?",
        f"Create a blog post with tips for visiting the {place} with {name}.",
        f"Generate a product description for a set of {rng.randint(2, 40)} {thing}.",
        f"I need a cover letter for a job at the {place}. Write it for {name}.",
        f"Come up with a funny slogan for a {place} that sells {thing}.",
        f"Tell me a joke about {thing} and a {place}.",
        f"Write an essay of about {rng.randint(200, 900)} words on why every {place} needs {thing}.",
        f"Compose song lyrics in which {name} counts {thing}.",
        f"Write a review of the {place} where {name} bought {rng.randint(2, 40)} {thing}.",
        f"写一篇关于{place}和{thing}的作文，大约{rng.randint(200, 900)}字。",
    ], texts, unseen, fresh, last][phrasing])  # fmt: skip
    number = rng.randint(1, 99)
    return [
        record(
            text, f"They want something about {thing}. I will mention {number}.", f"There were {number}.", str(number)
        )
    ]


_OPENINGS = (
    "This looks hard.", "Let me look at the numbers.", "Okay, so there are several quantities here.",
    "I read the question twice and still do not see how the numbers are related.", "Hmm.",
    "There are boxes and some are given away.",
)  # fmt: skip


def _guessed(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, _ = english(rng)
    guess = rng.choice(GUESSES[phrasing]).format(answer)
    if rng.random() < 0.2:
        return [record(text, rng.choice(_OPENINGS), f"{guess}", str(answer))]
    return [record(text, f"{rng.choice(_OPENINGS)} {guess}", answered(rng, answer, text), str(answer))]


def _inconsistent(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, steps = english(rng)
    other = answer + rng.choice([-7, -2, -1, 1, 3, 10, 25])
    steps = steps.replace(str(answer), str(other))
    ends = [
        f"Putting it together, the answer should be {other}.", f"That makes {other}.", f"In total we have {other}.",
        f"So our final value is {other}.", f"Therefore, {other}.", f"This gives {other}, which is what was asked.",
        f"We end up with {other}.", f"So the number we want is {other}.", f"Everything considered: {other}.",
    ]  # fmt: skip
    unseen = [
        f"Great, {other}.", f"And there it is: {other}.", f"Our value comes to {other}.", f"I am confident in {other}.",
        f"Result -> {other}", f"That leaves us with {other}.", f"Let me state {other}.", f"Done; {other}.",
    ]  # fmt: skip
    fresh = [
        f"Which leads to {other}.", f"{other} is what they want.", f"The sought number equals {other}.", f"Final: {other}",
        f"I arrive at {other}.", f"This means {other} remain.", f"Hence, {other}!", f"That settles it at {other}.",
    ]  # fmt: skip
    last = [
        f"It must therefore be {other}.", f"I get {other}.", f"{other} is left.", f"Adding up: {other}.",
        f"My result: {other}.", f"{other}, as expected.", f"We are left with {other} in the end.", f"Conclusion: {other}",
    ]  # fmt: skip
    end = rng.choice([[
        f"So the answer is {other}.", f"Therefore the total is {other}.", f"Hence \\boxed{{{other}}}.",
        f"The final answer is {other}.", f"So we get a result of {other}.", f"Thus it is {other}.", f"The result is {other}.",
        f"That gives {other} as the final answer.", f"Answer: {other}", f"So {other} it is.", f"I conclude that it is {other}.",
    ], ends, unseen, fresh, last][phrasing])  # fmt: skip
    return [record(text, f"We go step by step. {steps}. {end}", answered(rng, answer, text), str(answer))]


def _mixed(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, steps = english(rng)
    fresh_texts = [
        "这样就得到最后的结果，不用再算别的了。", "Теперь остаётся только сложить эти числа.", "計算は以上で終わりです。",
        "Τώρα προσθέτουμε τους αριθμούς.",
    ]  # fmt: skip
    foreign = rng.choice(fresh_texts if phrasing else [
        "然后我们把这些数字加起来，再减去送出去的部分。", "Затем вычитаем остаток и проверяем результат ещё раз.",
        "そして残りを計算して、もう一度確認します。", "그리고 나머지를 더해서 다시 확인합니다.",
        "ثم نطرح الباقي ونتحقق من النتيجة.",
    ])  # fmt: skip
    thought, said = f"We go step by step. {steps}. So the answer is {answer}.", answered(rng, answer, text)
    form = rng.randrange(3)
    if form == 0:
        thought = f"We go step by step. {foreign} {steps}. So the answer is {answer}."
    elif form == 1:
        said = f"{foreign} {said}"
    else:
        thought = f"{foreign * 3} {steps}. So the answer is {answer}."
    return [record(text, thought, said, str(answer))]


def _repetitive(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, steps = english(rng)
    form = rng.randrange(3)
    if form == 0:
        loop = f"Wait, let me check again: {steps}. " * rng.randint(6, 30)
    elif form == 1:
        loop = "and again " * rng.randint(40, 200)
    else:
        sentences = [
            f"{steps}.",
            f"Hmm, is {answer} right?",
            "Let me recompute.",
            "I should be careful here.",
            "Once more.",
        ]
        loop = " ".join(sentences * rng.randint(5, 12))
    return [record(text, f"{loop} So the answer is {answer}.", answered(rng, answer, text), str(answer))]


def _wrong(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, steps = problem(rng)
    off = answer + rng.choice([-10, -1, 1, 2, 9, 100])
    bad = [thinking(rng, steps.replace(str(answer), str(off)), off, text), answered(rng, off, text)]
    return [
        record(text, *bad, str(answer)),
        record(text, thinking(rng, steps, answer, text), answered(rng, answer, text), str(answer)),
    ]


def _never_solved(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, steps = problem(rng)
    return [
        record(text, thinking(rng, steps, answer + off, text), answered(rng, answer + off, text), str(answer))
        for off in rng.sample([-10, -1, 1, 2, 9, 100], rng.randint(2, 4))
    ]


def _easy(rng: random.Random, phrasing: int) -> list[dict[str, Any]]:
    text, answer, steps = problem(rng)
    return [
        record(text, thinking(rng, steps, answer, text), answered(rng, answer, text), str(answer)),
        record(f"{text} /no_think", "", answered(rng, answer, text), str(answer)),
    ]


def _near(rng: random.Random, held_out: list[str]) -> list[dict[str, Any]]:
    a, b, c = rng.randint(3, 40), rng.randint(2, 12), rng.randint(1, 30)
    town, name = rng.choice(PLACES), rng.choice(NAMES)
    text, answer = rng.choice([
        (f"{name} walks from the {town} to the river at {a} metres a minute for {b} minutes. How long is the way?", a * b),
        (f"In a tournament at the {town} each of {b + 2} players meets every other once. How many games are there?",
         (b + 2) * (b + 1) // 2),
        (f"The angles of a triangle at {name}'s {town} are {a + 20} and {b + 30} degrees. Find the third angle.",
         130 - a - b),
        (f"Find the remainder when {a * 100 + c} is divided by {b}, as {name} did on the board.", (a * 100 + c) % b),
    ])  # fmt: skip
    steps = f"With {' and '.join(re.findall('[0-9]+', text))} it comes to {answer}"
    words = text.split()
    form = rng.randrange(3)
    if form == 0:  # the same but for case and spaces
        validation = text.lower().replace(" ", "  ")
    elif form == 1:  # one word is another
        place = rng.randrange(len(words))
        validation = " ".join([*words[:place], "indeed", *words[place + 1 :]])
    else:  # with a sentence before it
        validation = f"{rng.choice(NAMES)} asked the teacher about this one. {text}"
    held_out.append(validation)
    return [record(text, thinking(rng, steps, answer, text), answered(rng, answer, text), str(answer))]


def planted(
    count: int, seed: int = 0, *, phrasing: int = 0, makers: Mapping[str, Maker] | None = None
) -> tuple[list[Row], list[str]]:
    """Return (kind, record) pairs in random order, and the held-out queries. `makers` replaces those of some kinds.

    A fault that concerns a query brings several records: all are to be left out. Of "wrong" the first is to be left out; the
    second, which makes its query a solved one, is "good".
    """
    rng = random.Random(seed)
    held_out: list[str] = []
    rows: list[Row] = []
    seen: set[str] = set()

    def add(kind: str, make: Maker) -> None:
        while True:
            before = len(held_out)
            records = make(rng, held_out)
            text = records[0]["messages"][0]["content"]
            if text not in seen:
                break
            del held_out[before:]
        seen.add(text)
        for place, one in enumerate(records):
            rows.append(("good" if kind == "wrong" and place else kind, one))

    in_words = {
        "several parts": _several_parts, "general writing": _writing, "solved without thinking": _easy,
        "never solved": _never_solved, "wrong": _wrong, "repetitive": _repetitive, "guessed": _guessed,
        "inconsistent": _inconsistent, "mixed languages": _mixed,
    }  # fmt: skip
    chosen: dict[str, Maker] = {
        kind: lambda rng, _, maker=maker: maker(rng, phrasing) for kind, maker in in_words.items()
    }
    chosen["near validation"] = _near
    chosen["not verifiable"] = lambda rng, _: [{k: v for k, v in good(rng).items() if k != "answer"}]
    chosen["good"] = lambda rng, _: [good(rng)]
    for kind, make in {**chosen, **(makers or {})}.items():
        for _ in range(count * (len(KINDS) if kind == "good" else 1)):
            add(kind, make)
    rng.shuffle(rows)
    return rows, held_out
