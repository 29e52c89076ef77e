"""Answers to queries, several for each, verified: data for cold start, thinking mode fusion and off-policy distillation.

    task = GenerateTask(samples=8, verifier="math")
    run(Source("queries", "queries.jsonl"), task, "answers", backend)

Records are `messages` that training reads as they are. An answer whose thinking a budget ended is written as a generation
prompt and segments, of which the inserted stop text is not learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.bounds import between, check_bounds, whole
from qwen3_jax.data.factory.queries import Query, query_of
from qwen3_jax.data.factory.task import Answers, Independent, Made, Rejection
from qwen3_jax.data.records import PROVENANCE, Record
from qwen3_jax.data.rendering import END_OF_TURN
from qwen3_jax.endpoints import ChatRequest, Reply
from qwen3_jax.endpoints.chat import SAMPLING
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.text import STOP_TEXT
from qwen3_jax.verifiers import Verdict, settings_of, verify_all

MODES = ("thinking", "non-thinking")
# The report's settings for evaluation, section 4.6.
THINKING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
NON_THINKING = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5}
_THINK_END = "</think>"


@dataclass(frozen=True)
class GenerateTask(Independent):
    """Asks every query `samples` times in each mode and under each budget.

    Attributes:
        samples: answers in each mode and under each budget.
        modes: of MODES.
        budgets: thinking budgets of the thinking mode; None is unlimited.
        verifier: judges every answer; "" keeps all that are whole.
        settings: of the verifier.
        reference_key: key of the record with the reference.
        keep: "right" answers alone, or "all" with their verdicts, as filters read them.
        system: a system message for queries that have none.
        max_new_tokens: most tokens of an answer.
        sampling: replaces fields of the report's sampling in both modes.
        flagged: share of the thinking records whose query ends with /think, where both modes are asked; records without
            thinking always end with /no_think.
        carry: keys of the record that its records keep: a domain, labels.
    """

    samples: int = 1
    modes: tuple[str, ...] = ("thinking",)
    budgets: tuple[int | None, ...] = (None,)
    verifier: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference_key: str = "answer"
    keep: Literal["right", "all"] = "right"
    system: str = ""
    max_new_tokens: int = 32_768
    sampling: Mapping[str, float] = field(default_factory=dict)
    flagged: float = 0.5
    carry: tuple[str, ...] = ()
    name: str = "generate"
    recipe: str = "generate/1"
    attempts: int = 1

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "", samples=whole(1), budgets=whole(1), max_new_tokens=whole(1), flagged=between(0, 1),
        )  # fmt: skip
        if not self.modes or set(self.modes) - set(MODES) or len(set(self.modes)) < len(self.modes):
            raise UserError(f"modes are {list(self.modes)}; they must be some of {list(MODES)}.")
        if not self.budgets or len(set(self.budgets)) < len(self.budgets):
            raise UserError(f"thinking budgets are {list(self.budgets)}; they must be different, and one at least.")
        if self.budgets != (None,) and "thinking" not in self.modes:
            raise UserError("a thinking budget needs the mode thinking.")
        for name in self.sampling:
            if name not in SAMPLING:
                raise UserError(f"there is no sampling option {name!r}.{nearest(name, SAMPLING)}")
        if self.verifier:
            settings_of(self.verifier, dict(self.settings))
        elif self.settings:
            raise UserError("settings of a verifier need its name.")

    @property
    def asking(self) -> Mapping[str, Any]:
        """What requests depend on."""
        names = ("samples", "modes", "budgets", "system", "max_new_tokens", "sampling")
        return {name: getattr(self, name) for name in names}

    @property
    def reading(self) -> Mapping[str, Any]:
        """What only records depend on."""
        names = ("verifier", "settings", "reference_key", "keep", "flagged", "carry")
        return {name: getattr(self, name) for name in names}

    def asks(self, record: Record, answers: Answers) -> Sequence[ChatRequest]:
        """Sample by sample, each in all modes and under all budgets, so that more samples ask only what is new.

        Raises:
            DataError: the record has no query.
        """
        if answers:
            return []
        query = query_of(record, self.reference_key, self.system)
        return [
            ChatRequest(
                query.messages, self.max_new_tokens, {**(THINKING if thinks else NON_THINKING), **self.sampling},
                enable_thinking=None if budget is not None else thinks, thinking_budget=budget, tools=query.tools,
            )
            for _ in range(self.samples) for thinks, budget in self._variants()
        ]  # fmt: skip

    def invalid(self, record: Record, answers: Answers, sample: int, reply: Reply) -> str | None:
        """Why an answer cannot be used, whatever the verifier says."""
        if reply.outcome != "ok":
            return reply.reason
        thinks, _ = self._variant(sample)
        if not reply.content.strip() and not reply.tool_calls:
            return "the answer is empty"
        if not thinks and (reply.thinking or "").strip():
            return "it thinks, and was asked not to"
        if thinks and not (reply.thinking or "").strip():
            return "it does not think, and was asked to"
        return None

    def made(self, record: Record, answers: Answers) -> Made:
        """The answers that are right; a query without one is "never solved"."""
        query = query_of(record, self.reference_key, self.system)
        records, rejected, kept = [], [], 0
        usable = []
        for sample, reply in enumerate(answers[0]):
            reason = self.invalid(record, (), sample, reply)
            if reason is not None:
                rejected.append(Rejection(reply.outcome if reply.outcome != "ok" else "invalid", reason, sample))
            else:
                usable.append((sample, reply))
        verdicts = self._verdicts(query, [reply for _, reply in usable])
        for (sample, reply), verdict in zip(usable, verdicts, strict=True):
            is_right = verdict is None or verdict.status == "right"
            if not is_right and self.keep == "right":
                assert verdict is not None
                rejected.append(Rejection(verdict.status, verdict.reason, sample))
                continue
            try:
                records.append(self._record(record, query, sample, reply, verdict))
            except _Unwritable as error:
                rejected.append(Rejection("invalid", str(error), sample))
                continue
            kept += reply.tokens.completion if reply.tokens is not None else 0
        if self.verifier and verdicts and not any(one is not None and one.status == "right" for one in verdicts):
            rejected.append(Rejection("never solved", f"none of {len(answers[0])} answers is right"))
        return Made(records, sorted(rejected, key=_place), kept)

    def _variants(self) -> list[tuple[bool, int | None]]:
        """(whether it thinks, budget) of one round of answers."""
        return [
            (mode == "thinking", budget) for mode in self.modes
            for budget in (self.budgets if mode == "thinking" else (None,))
        ]  # fmt: skip

    def _variant(self, sample: int) -> tuple[bool, int | None]:
        variants = self._variants()
        return variants[sample % len(variants)]

    def _verdicts(self, query: Query, replies: Sequence[Reply]) -> list[Verdict | None]:
        if not self.verifier:
            return [None] * len(replies)
        pairs: list[tuple[str | None, Any]] = [(whole_text(reply), query.reference) for reply in replies]
        return list(verify_all(self.verifier, pairs, dict(self.settings), threads=min(len(pairs), 4) or 1))

    def _record(
        self, record: Record, query: Query, sample: int, reply: Reply, verdict: Verdict | None
    ) -> dict[str, Any]:  # fmt: skip
        thinks, budget = self._variant(sample)
        messages = self._flagged(query, sample, thinks)
        out: dict[str, Any] = {"messages": messages}
        if reply.forced_tokens:
            out["completion"] = _segments(reply)
        else:
            answer: dict[str, Any] = {"role": "assistant", "content": reply.content}
            answer["reasoning_content"] = (reply.thinking or "").strip("\n") if thinks else ""
            if reply.tool_calls:
                answer["tool_calls"] = [dict(call) for call in reply.tool_calls]
            messages.append(answer)
        if query.tools:
            out["tools"] = list(query.tools)
        about: dict[str, Any] = {"query": query.id, "mode": MODES[not thinks], "budget": budget, "sample": sample}
        if verdict is not None:
            about |= {"verdict": verdict.status, "score": verdict.score, "reason": verdict.reason}
        if self.keep == "all":
            about["reference"] = query.reference
        carried = {key: record.body[key] for key in self.carry if key in record.body}
        return carried | out | {PROVENANCE: about}

    def _flagged(self, query: Query, sample: int, thinks: bool) -> list[dict[str, Any]]:
        """The messages, the last with the flag that a training sample carries (section 4.3, table 9)."""
        messages = [dict(message) for message in query.messages]
        flag = "" if thinks else " /no_think"
        if thinks and len(self.modes) == 2:
            digest = hashlib.blake2b(f"{query.id}/{sample}".encode(), digest_size=4).digest()
            flag = " /think" if int.from_bytes(digest, "big") < self.flagged * 2**32 else ""
        if flag:
            messages[-1]["content"] = query.text.rstrip() + flag
        return messages


class _Unwritable(ValueError):
    """An answer that no record can hold; says why."""


def whole_text(reply: Reply) -> str:
    """All that the model wrote, in Qwen3's format."""
    calls = "".join(
        f'\n<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments": {call["function"]["arguments"]}}}\n</tool_call>'
        for call in reply.tool_calls
    )
    thinking = "" if reply.thinking is None else f"<think>\n{reply.thinking}\n{_THINK_END}\n\n"
    return f"{thinking}{reply.content}{calls}"


def _segments(reply: Reply) -> list[dict[str, Any]]:
    """Thinking up to the stop text, the stop text, which was not sampled, and the answer.

    Raises:
        _Unwritable: the thinking does not end with the stop text.
    """
    said = STOP_TEXT.partition(_THINK_END)[0].strip()
    thinking = (reply.thinking or "").rstrip()
    if not thinking.endswith(said):
        raise _Unwritable(
            "a budget ended its thinking with another stop text, which cannot be told from what was sampled"
        )
    return [
        {"text": "<think>\n" + thinking.removesuffix(said).rstrip("\n"), "loss": True},
        {"text": STOP_TEXT, "loss": False},
        {"text": reply.content.lstrip("\n") + END_OF_TURN, "loss": True},
    ]


def _place(rejection: Rejection) -> tuple[bool, int]:
    return rejection.sample is None, rejection.sample or 0
