"""An answer as the runner reads it, whether the engine or an endpoint gave it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from qwen3_jax.evaluation.plan import Item

TOO_LONG = "too_long"
"""The finish reason of a problem that was not asked, because its prompt leaves no room for an answer in the context."""


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: all that the model wrote.
        thinking: the text between the think tags; None if there was no thinking section.
        content: the text after it.
        tool_calls: name and arguments (JSON text) of each call.
        finish_reason: "stop", "length", "tool_calls"; `TOO_LONG` if nothing was asked.
        prompt_tokens: of the prompt after the chat template.
        completion_tokens: of the answer, forced ones included.
        thinking_tokens: sampled between the think tags; None if the endpoint does not report it.
        forced_tokens: of the stop text; None if the endpoint does not report it.
        in_thinking: the prompt had opened `<think>`.
        max_new_tokens, thinking_budget: in force; less than what was asked where the context holds less.
        reason: why it was not asked; else "".
    """

    text: str
    thinking: str | None
    content: str
    tool_calls: tuple[dict[str, str], ...]
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int
    thinking_tokens: int | None
    forced_tokens: int | None
    in_thinking: bool = False
    max_new_tokens: int | None = None
    thinking_budget: int | None = None
    reason: str = ""

    @classmethod
    def not_asked(cls, reason: str) -> Reply:
        """What stands for the answer to a prompt that is too long."""
        return cls("", None, "", (), TOO_LONG, None, 0, 0, 0, reason=reason)


class Source(Protocol):
    """What answers: `EngineSource` or `EndpointSource`."""

    @property
    def thinks(self) -> bool | None:
        """Whether the model can think, as its tokenizer says; None is unknown."""

    def answers(self, families: Iterable[list[Item]]) -> Iterator[tuple[Item, Reply]]:
        """Yield every sample's answer as it finishes; those of a family differ in their budget alone.

        Raises:
            UserError: a problem that cannot be asked; an endpoint that does not answer any more.
        """

    def describe(self) -> dict[str, Any]:
        """What determines its answers: JSON values."""
