"""What a task of general reinforcement learning is: problems drawn from a seed, each with what judges its answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen3_jax.verifiers import missing_package

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """One problem.

    Attributes:
        messages: the prompt.
        verifier: judges the answers.
        reference: for the verifier; JSON values.
        right: an answer that scores 1, with its thinking section where the task is about that.
        wrong: answers that score 0, one for each mistake that the task is about.
        settings: of the verifier.
        tools: that the model may call, in OpenAI's form.
        mode: "thinking" or "non-thinking", where the problem is for that alone; "" is either.
    """

    messages: tuple[Message, ...]
    verifier: str
    reference: Any
    right: str
    wrong: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Message, ...] = ()
    mode: str = ""

    def record(self, task: str) -> dict[str, Any]:
        """The line of a file of prompts; right and wrong answers are no part of it."""
        out: dict[str, Any] = {"messages": [dict(message) for message in self.messages]}
        if self.tools:
            out["tools"] = [dict(tool) for tool in self.tools]
        out |= {"verifier": self.verifier, "answer": self.reference}
        if self.settings:
            out["settings"] = dict(self.settings)
        return out | {"task": task} | ({"mode": self.mode} if self.mode else {})


@dataclass(frozen=True)
class GeneralTask:
    """A task.

    Attributes:
        name: of the task.
        about: one line.
        draw: one problem from a source of random numbers; or None.
        stream: all problems of a seed, where they cannot be drawn one by one: those of reasoning-gym (extra `reasoning`).
    """

    name: str
    about: str
    draw: Callable[[random.Random], Drawn] | None = None
    stream: Callable[[int], Iterator[Drawn]] | None = None

    @property
    def missing(self) -> str:
        """What must be installed to draw problems, as a sentence without its end; "" if nothing is missing."""
        return (missing_package("reasoning_gym") or "") if self.stream is not None else ""

    def problems(self, seed: int) -> Iterator[Drawn]:
        """All problems of a seed, without end; the first n are the same however many are read."""
        if self.stream is not None:
            yield from self.stream(seed)
        number = 0
        while self.draw is not None:
            yield self.draw(random.Random(f"{self.name}/{seed}/{number}"))
            number += 1


def user(text: str, system: str = "") -> tuple[Message, ...]:
    """A conversation of one message of the user, with a system message or without."""
    head = ({"role": "system", "content": system},) if system else ()
    return (*head, {"role": "user", "content": text})


def dialogue(*texts: str, system: str = "") -> tuple[Message, ...]:
    """A conversation in which user and assistant take turns; the user begins and has the last word."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return (*([{"role": "system", "content": system}] if system else []), *turns)


def check(verifier: str, reference: Any = None, **settings: Any) -> dict[str, Any]:
    """A check of the verifier "checks"."""
    out: dict[str, Any] = {"verifier": verifier, "reference": reference}
    return out | ({"settings": settings} if settings else {})


def instruction(name: str, **arguments: Any) -> dict[str, Any]:
    """A check of one instruction of IFEval."""
    return check("ifeval", {"instruction_id_list": [name], "kwargs": [arguments]})


def matches(pattern: str, **settings: Any) -> dict[str, Any]:
    """A check that a pattern occurs in the answer."""
    return check("regex", pattern, **{"whole": False, "ignore_case": True, **settings})
