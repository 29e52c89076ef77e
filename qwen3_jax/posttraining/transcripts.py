"""The tokens of an episode: what the model sampled, carried from turn to turn and never encoded again, and what stands between.

    prompt | answer 1 <|im_end|> | \\n <|im_start|>user ... <|im_start|>assistant\\n | answer 2 <|im_end|> | ...

Encoding the text of an answer again may give other tokens than those that were sampled, which the trainer would learn instead.
So the next prompt is the tokens so far and those that the chat template writes behind the answer, found by rendering the
conversation with a mark in place of the answer's text. In what an environment says the texts of added tokens (`<|im_end|>`,
`</tool_response>`, ...) are plain characters. The template's own tags are tokens where the vocabulary has such; a tag that it
lacks is characters in both, and cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwen3_jax.posttraining.samples import Sample
from qwen3_jax.text import ChatTemplateError, Tokenizer

Message = Mapping[str, Any]
_MARK = "\ue000answer\ue001"  # private-use characters, which no template contains


class Transcript:
    """The tokens of one episode, as one sample or several.

    Args:
        prompt: token ids of the first prompt.
    """

    def __init__(self, prompt: Sequence[int]):
        self._earlier: list[dict[str, Any]] = []
        self._start(prompt)

    def _start(self, prompt: Sequence[int]) -> None:
        self._prompt = list(prompt)
        self._tokens: list[int] = []
        self._learned: list[bool] = []
        self._banned: list[bool] = []
        self._behaviour: list[float] = []
        self._experts: np.ndarray | None = None  # of all tokens up to the end of the last answer
        self._given: list[int] = []  # tokens behind the last answer

    @property
    def ids(self) -> list[int]:
        """All tokens of the present sample: the prompt of the next answer."""
        return self._prompt + self._tokens + self._given

    def answer(
        self, *, tokens: np.ndarray, learned: np.ndarray, banned: np.ndarray, behaviour: np.ndarray,
        experts: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Append an answer; see `Sample` for the arguments. `experts` are of all tokens so far."""
        self._experts = experts
        for token in self._given:
            self._append(token, False, False, float("nan"))
        self._given = []
        for one in zip(tokens, learned, banned, behaviour, strict=True):
            self._append(*one)

    def _append(self, token: int, learned: bool, banned: bool, behaviour: float) -> None:
        self._tokens.append(int(token))
        self._learned.append(bool(learned))
        self._banned.append(bool(banned))
        self._behaviour.append(float(behaviour))

    def give(self, tokens: Sequence[int]) -> None:
        """Append tokens that the model did not write. They become part of the sample with the next answer."""
        self._given += [int(token) for token in tokens]

    def begin(self, prompt: Sequence[int]) -> None:
        """Begin another sample with a prompt of its own."""
        self._earlier.append(self._fields())
        self._start(prompt)

    def _fields(self) -> dict[str, Any]:
        return dict(
            prompt=np.asarray(self._prompt, np.int32), tokens=np.asarray(self._tokens, np.int32),
            learned=np.asarray(self._learned, bool), banned=np.asarray(self._banned, bool),
            behaviour=np.asarray(self._behaviour, np.float32), experts=self._experts,
        )  # fmt: skip

    def samples(self, group: int, episode: int) -> list[Sample]:
        """Return the samples so far, in order; tokens behind the last answer are left out."""
        last = [] if self._earlier and not self._tokens else [self._fields()]
        return [Sample(**fields, group=group, episode=episode) for fields in [*self._earlier, *last]]


def tokens_behind(
    tokenizer: Tokenizer, messages: Sequence[Message], new: Sequence[Message], tools: Sequence[Mapping[str, Any]],
    answer: Sequence[int], *, enable_thinking: bool,
) -> list[int]:  # fmt: skip
    """Return what the chat template writes behind an answer: the rest of its turn, further messages, and the next turn's head.

    Args:
        messages: of the conversation, the answer last.
        new: messages behind it, at least one.
        tools: of the conversation.
        answer: its tokens as sampled; where they do not end with the template's end of turn, that comes first.
        enable_thinking: of the template.

    Raises:
        ChatTemplateError: the template refuses the conversation, or does not show the answer's text.
    """
    mark = _MARK
    while mark in repr((messages, new, tools)):
        mark += "\ue001"
    marked = [*messages[:-1], {**messages[-1], "content": mark}, *new]
    text = tokenizer.apply_chat_template(
        marked, list(tools) or None, enable_thinking=enable_thinking, quoted=tokenizer.added_tokens
    )
    behind = text.partition(mark)[2]
    end_id = tokenizer.end_of_turn_id
    end = None if end_id is None else tokenizer.id_to_token(end_id)
    if end is None or end not in behind:
        raise ChatTemplateError("the chat template has no token at the end of an answer, or leaves the answer out")
    rest = tokenizer.encode_quoted(behind.partition(end)[2])
    return rest if len(answer) and answer[-1] == end_id else [end_id, *rest]  # type: ignore[list-item]


def prompt_of(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, enable_thinking: bool
) -> list[int]:
    """Return the prompt of a conversation, rendered anew.

    Raises:
        ChatTemplateError: the template refuses it.
    """
    text = tokenizer.apply_chat_template(
        list(messages), list(tools) or None, enable_thinking=enable_thinking, quoted=tokenizer.added_tokens
    )
    return tokenizer.encode_quoted(text)


def extends(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether a prompt that was rendered anew begins with the text of the tokens so far: the template has dropped nothing.

    Args:
        prompt: from `prompt_of`.
        ids: as sampled, which encoding may not give again.
    """
    return tokenizer.decode(prompt).startswith(tokenizer.decode(ids))


def shortened(tokenizer: Tokenizer, text: str, most: int) -> tuple[str, bool]:
    """Return a tool's result, and whether it was cut off behind its first `most` tokens."""
    text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
    head = text[: most * 256]  # more characters are more tokens, and encoding takes long
    ids = tokenizer.encode_ordinary(head)
    if len(ids) <= most and head == text:
        return text, False
    kept = tokenizer.decode(ids[:most]).rstrip("\ufffd")
    return (
        f"{kept}\n[cut off after {len(kept):,} of {len(text):,} characters]",
        True,
    )
