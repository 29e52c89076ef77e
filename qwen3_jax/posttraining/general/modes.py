"""Thinking modes: /think and /no_think, of one turn and of many, where the last flag holds (section 4.3 of the report)."""

from __future__ import annotations

import random

from qwen3_jax.evaluation.tasks.facts import CAPITALS
from qwen3_jax.evaluation.tasks.words import NOUNS
from qwen3_jax.posttraining.general.task import Drawn, GeneralTask, Message, check

_FLAGS = ("/think", "/no_think")


def question(rng: random.Random) -> tuple[str, str]:
    """A question that can be answered with and without thinking, and the text that its answer must hold."""
    kind = rng.randrange(4)
    if kind == 0:
        a, b = rng.randrange(11, 100), rng.randrange(11, 100)
        return f"What is {a} + {b}?", str(a + b)
    if kind == 1:
        a, b = rng.randrange(3, 20), rng.randrange(3, 20)
        return f"How much is {a} times {b}?", str(a * b)
    if kind == 2:
        country, capital = rng.choice(CAPITALS)
        return f"What is the capital of {country}?", capital
    word = rng.choice(NOUNS)
    return f"Write the word {word!r} in capital letters.", word.upper()


def _with_flag(rng: random.Random, text: str, flag: str) -> str:
    return f"{flag} {text}" if rng.random() < 0.25 else f"{text} {flag}"


def _judged(messages: list[Message], thinks: bool, answer: str) -> Drawn:
    checks = [check("thinking", thinks), check("recall", answer, ignore_case=False)]
    said = f"The answer is {answer}."
    with_thinking, without = f"<think>\nThis is easy.\n</think>\n\n{said}", f"<think>\n\n</think>\n\n{said}"
    right, other = (with_thinking, without) if thinks else (without, with_thinking)
    wrong = (
        other, right.replace(answer, "not known"), "<think>\nThis is easy.", "<think>\nThis is easy.\n</think>\n\n",
        f"{said}\n<think>\nThis is easy.\n</think>", *([said] if thinks else [f"<think>\n{said}\n</think>\n\n{said}"]),
    )  # fmt: skip
    return Drawn(tuple(messages), "checks", checks, right, wrong, mode="thinking")


def _think_flag(rng: random.Random) -> Drawn:
    text, answer = question(rng)
    flag = rng.choice(("", "/think", "/no_think", "/no_think"))
    in_system = flag and rng.random() < 0.2
    messages: list[Message] = (
        [{"role": "system", "content": f"You are a helpful assistant. {flag}"}] if in_system else []
    )
    messages.append({"role": "user", "content": _with_flag(rng, text, flag) if flag and not in_system else text})
    return _judged(messages, flag != "/no_think", answer)


def _think_flag_turns(rng: random.Random) -> Drawn:
    messages: list[Message] = []
    flag = ""
    for _ in range(rng.randrange(1, 4)):
        text, answer = question(rng)
        if rng.random() < 0.7:
            flag = rng.choice(_FLAGS)
            text = _with_flag(rng, text, flag)
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": f"The answer is {answer}."}]
    text, answer = question(rng)
    several = rng.random()
    if several < 0.5:
        flag = rng.choice(_FLAGS)
        text = _with_flag(rng, text, flag)
    elif several < 0.65:  # two flags in one message: the last one holds
        flag = rng.choice(_FLAGS)
        text = f"{_FLAGS[flag == '/think']} {text} {flag}"
    messages.append({"role": "user", "content": text})
    return _judged(messages, flag != "/no_think", answer)


TASKS = (
    GeneralTask("think_flag", "/think or /no_think in one message", _think_flag),
    GeneralTask("think_flag_turns", "flags in several turns: the last one holds", _think_flag_turns),
)
