"""Conversations for thinking mode fusion: the two flags written into chats that think and chats that do not.

Source: Qwen3 technical report, section 4.3 and table 9. Answers with thinking follow `/think`, answers without it
`/no_think`, in the text of the user or of the system message. Thinking is the default, so some chats that think have no flag.
In chats of many turns flags stand at random, several in one message too, and each answer follows the last one before it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.data.forms import Conversation
from qwen3_jax.data.records import PROVENANCE, DataError, Record, form_of
from qwen3_jax.text import parse, soft_switch

THINK, NO_THINK = "/think", "/no_think"


@dataclass(frozen=True)
class FusionConfig:
    """Shares of what is written. The report publishes none; these are choices.

    Attributes:
        turns: most questions of a conversation; chats of one turn are joined, to lengths that are drawn evenly from 1 to this.
        flagged: share of the turns that carry a flag though they need none: those that think and come before any `/no_think`,
            and those that follow a flag of their own mode.
        system: share of conversations whose first flag stands in a system message.
        several: share of the flags before which the same message has others, which do not hold.
        front: share of the flags that stand before the text instead of after it.
        thinking: share of the answers that think; answers of the other kind are left over. None uses all.
        seed: of all that is drawn.
    """

    turns: int = 4
    flagged: float = 0.5
    system: float = 0.1
    several: float = 0.1
    front: float = 0.2
    thinking: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "fusion: ", turns=whole(1), flagged=between(0, 1), system=between(0, 1), several=between(0, 1),
            front=between(0, 1), seed=whole(0),
        )  # fmt: skip
        if self.thinking is not None:
            check_bounds(vars(self), "fusion: ", thinking=between(0, 1))


@dataclass(frozen=True)
class Chat:
    """A record that can be flagged.

    Attributes:
        head: its system message, or nothing.
        turns: for each question the messages from it to the next one.
        thinks: for each turn whether its answer thinks.
        tools: in OpenAI's form.
        location: of the record.
        unread: keys of the record that are not carried over.
    """

    head: tuple[dict[str, Any], ...]
    turns: tuple[tuple[dict[str, Any], ...], ...]
    thinks: tuple[bool, ...]
    tools: tuple[dict[str, Any], ...] = ()
    location: str = ""
    unread: frozenset[str] = frozenset()

    @property
    def joins(self) -> bool:
        """Whether it may follow other chats in one conversation: it is a question and its answer, and nothing else."""
        return not self.head and not self.tools and len(self.turns) == 1 and len(self.turns[0]) == 2


@dataclass
class FusionReport:
    """What was written.

    Attributes:
        conversations: by number of turns.
        answers: "thinking" and "non_thinking".
        flags: by place: "user", "system", "several" (those that do not hold); "record": turns whose question had one that
            holds; "none": turns without one.
        left_over: answers that the share of thinking leaves out.
    """

    conversations: Counter[int] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    left_over: int = 0

    def json(self) -> dict[str, Any]:
        """The counts as one JSON object."""
        by_turns = {str(turns): count for turns, count in sorted(self.conversations.items())}
        return {
            "conversations": by_turns, "answers": dict(self.answers), "flags": dict(self.flags), "left_over": self.left_over,
        }  # fmt: skip


def chat_of(record: Record) -> Chat:
    """Read a record whose answers are to be flagged.

    Raises:
        DataError: it is no chat that ends with an answer, or says itself what is learned, so that it cannot be rewritten.
    """
    form, read = form_of(record)
    if not isinstance(form, Conversation):
        raise DataError(f"{record.location}: it is no chat, so no flag can be written into it")
    if form.completion is not None:
        raise DataError(
            f"{record.location}: its answer is a completion, which no flag is written for; leave answers under a budget "
            "out (data generate without --thinking-budget)"
        )
    messages, weights = form.turns.messages, form.turns.weights
    if any(weight is not None for weight in weights) or form.context:
        raise DataError(f"{record.location}: it says which messages are learned; fusion learns every answer")
    head = tuple(messages[:1]) if messages and messages[0]["role"] == "system" else ()
    turns: list[list[dict[str, Any]]] = []
    for place, message in enumerate(messages[len(head) :], len(head) + 1):
        if message["role"] == "user":
            turns.append([])
        if not turns or message["role"] == "system":
            raise DataError(f"{record.location}: message {place} ({message['role']}) stands before any question")
        turns[-1].append(_split_thinking(message) if message["role"] == "assistant" else message)
    for turn in turns:
        if turn[-1]["role"] != "assistant" or not isinstance(turn[0].get("content"), str):
            raise DataError(f"{record.location}: a question of the user has no answer, or is no text")
    if not turns:
        raise DataError(f"{record.location}: it has no question of a user")
    thinks = tuple(any(_thinks(message) for message in turn) for turn in turns)
    if form.thinking is False and any(thinks):
        raise DataError(f"{record.location}: an answer has thinking, and the record says 'enable_thinking': false")
    unread = frozenset(record.body) - read - {PROVENANCE}
    return Chat(head, tuple(map(tuple, turns)), thinks, tuple(form.tools or ()), record.location, unread)


def _split_thinking(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its thinking in `reasoning_content`, where the content begins with a think section."""
    content = message.get("content")
    if message.get("reasoning_content") is not None or not isinstance(content, str):
        return message
    parsed = parse(content, tools=False)
    if parsed.thinking is None:
        return message
    return {**message, "content": parsed.content, "reasoning_content": parsed.thinking}


def _thinks(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and bool((message.get("reasoning_content") or "").strip())


def fuse(chats: Sequence[Chat], config: FusionConfig) -> tuple[list[dict[str, Any]], FusionReport]:
    """Join chats to conversations and write flags into them.

    Returns:
        Records with `messages` (and `tools`; under `generated` where they are from), in random order; and what was written.
    """
    rng, report = random.Random(f"fusion/{config.seed}"), FusionReport()
    chosen = _with_share(chats, config, rng, report)
    single = iter([chat for chat in chosen if chat.joins])
    groups = [[chat] for chat in chosen if not chat.joins]
    while group := _take(single, rng.randint(1, config.turns)):
        groups.append(group)
    rng.shuffle(groups)
    return [_flagged(group, config, rng, report) for group in groups], report


def _take(chats: Iterator[Chat], count: int) -> list[Chat]:
    return [chat for _, chat in zip(range(count), chats, strict=False)]


def _with_share(chats: Sequence[Chat], config: FusionConfig, rng: random.Random, report: FusionReport) -> list[Chat]:
    """The chats in random order, without those of which there are too many for the share of thinking."""
    order = list(chats)
    rng.shuffle(order)
    if config.thinking is None:
        return order
    counts = [sum(chat.thinks.count(mode) for chat in order) for mode in (False, True)]
    shares = (1 - config.thinking, config.thinking)
    whole_ = min(count / share for count, share in zip(counts, shares, strict=True) if share)
    room = [share * whole_ for share in shares]
    kept = []
    for chat in order:
        needs = [chat.thinks.count(mode) for mode in (False, True)]
        if all(need <= left + 1e-6 for need, left in zip(needs, room, strict=True) if need):
            room = [left - need for need, left in zip(needs, room, strict=True)]
            kept.append(chat)
        else:
            report.left_over += len(chat.turns)
    return kept


def _flagged(group: Sequence[Chat], config: FusionConfig, rng: random.Random, report: FusionReport) -> dict[str, Any]:
    """One conversation of the chats, with flags."""
    first = group[0]
    turns = [turn for chat in group for turn in chat.turns]
    thinks = [mode for chat in group for mode in chat.thinks]
    messages, in_force = list(first.head), soft_switch(first.head) if first.head else None
    if rng.random() < config.system and (not thinks[0] or rng.random() < config.flagged) and in_force != thinks[0]:
        text = (str(first.head[0]["content"]) + " ") if first.head else ""
        messages = [{"role": "system", "content": text + _flag(thinks[0])}]
        in_force = thinks[0]
        report.flags["system"] += 1
    for turn, mode in zip(turns, thinks, strict=True):
        question = turn[0]
        said = soft_switch([question])
        in_force = in_force if said is None else said
        needed = (True if in_force is None else in_force) != mode
        if needed or (said is None and rng.random() < config.flagged):
            question = {**question, "content": _write(question["content"], mode, said, config, rng, report)}
            in_force = mode
            report.flags["user"] += 1
        else:
            report.flags["none" if said is None else "record"] += 1
        messages += [question, *turn[1:]]
        report.answers["thinking" if mode else "non_thinking"] += 1
    report.conversations[len(turns)] += 1
    made_of = {PROVENANCE: {"fused": [chat.location for chat in group]}}
    return {"messages": messages, **({"tools": list(first.tools)} if first.tools else {}), **made_of}


def _write(
    text: str, mode: bool, said: bool | None, config: FusionConfig, rng: random.Random, report: FusionReport
) -> str:
    """The question with the flag of its mode, the last one in it."""
    if rng.random() < config.several:
        for _ in range(rng.randint(1, 2)):
            text = _place(text, rng.random() < 0.5, front=said is None and rng.random() < config.front)
            report.flags["several"] += 1
            said = soft_switch([{"role": "user", "content": text}])
    return _place(text, mode, front=said is None and rng.random() < config.front)


def _place(text: str, mode: bool, *, front: bool) -> str:
    return f"{_flag(mode)} {text}" if front else f"{text} {_flag(mode)}"


def _flag(mode: bool) -> str:
    return THINK if mode else NO_THINK


def prompt_of(record: dict[str, Any]) -> dict[str, Any]:
    """A conversation without its last answer: `messages`, whether the flag in force asks for thinking, and the answer."""
    messages = record["messages"]
    last = max(place for place, message in enumerate(messages) if message["role"] == "user")
    asked = messages[: last + 1]
    kept = {name: value for name, value in record.items() if name != "messages"}
    return {
        "messages": asked,
        "thinks": soft_switch(asked) is not False,
        "answer": messages[-1].get("content", ""),
        **kept,
    }


def lines_of(records: Iterable[dict[str, Any]]) -> str:
    """The records as JSON Lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
