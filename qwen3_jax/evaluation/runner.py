"""The run: answers from a source, judged in threads beside it, added to the samples as they come.

for sample in run(plan, source, samples):
    ...                                     # as it is written: a dict of JSON values
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.plan import Item, Key, Plan
from qwen3_jax.evaluation.reply import Reply, Source
from qwen3_jax.threads import Workers
from qwen3_jax.verifiers import Verdict, verify

_MOST_THREADS = 8


class Samples(Protocol):
    """Where samples go: `SampleFile` or `SampleList`."""

    done: set[Key]

    def add(self, sample: Mapping[str, Any], seconds: float) -> None:
        """Keep one; called from several threads."""


def run(plan: Plan, source: Source, samples: Samples, *, threads: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield every sample that is not done yet, once it has been judged and kept.

    Args:
        plan: what to ask.
        source: what answers.
        samples: keep them.
        threads: of verifiers, beside the source; None is one for each core, up to 8.

    Raises:
        UserError: of the source, or of a verifier (a package is missing); the answers that had come by then are kept.
    """
    judges: Workers[Item, dict[str, Any]] = Workers(threads or min(os.cpu_count() or 1, _MOST_THREADS), "verifier")
    try:
        for item, reply in source.answers(plan.families(set(samples.done))):
            judges.put(item, functools.partial(_judge, item, reply, samples))
            while (done := judges.take(0)) is not None:
                yield _value(done)
        while (done := judges.take()) is not None:
            yield _value(done)
    finally:
        while (done := judges.take()) is not None:  # what has been answered is kept
            pass
        judges.close()


def check_verifiers(plan: Plan) -> None:
    """Call each verifier once, so that a package that is missing is found before a model is loaded.

    Raises:
        UserError: of the verifier.
    """
    tried = set()
    for questions in plan.questions.values():
        for question in questions:
            if question.verifier not in tried:
                tried.add(question.verifier)
                verify(question.verifier, "0", question.problem.reference, question.settings)


def _value(done: Any) -> dict[str, Any]:
    if done.error is not None:
        if isinstance(done.error, UserError):
            key = done.tag.key
            raise UserError(f"the task {key.task}, problem {key.problem}: {done.error}") from None
        if isinstance(done.error, OSError):
            raise UserError(f"samples cannot be written ({done.error.strerror or done.error}).") from None
        raise done.error
    return done.value


def _judge(item: Item, reply: Reply, samples: Samples) -> dict[str, Any]:
    """Verify an answer and keep it; runs in a thread of its own."""
    started = time.perf_counter()
    question = item.question
    if reply.reason:
        verdict = Verdict(0.0, "error", reply.reason)
    else:
        verdict = verify(
            question.verifier, reply.text, question.problem.reference, question.settings, in_thinking=reply.in_thinking
        )
    sample = _line(item, reply, verdict)
    samples.add(sample, time.perf_counter() - started)
    return sample


def _line(item: Item, reply: Reply, verdict: Verdict) -> dict[str, Any]:
    """One line of samples.jsonl."""
    fields = dataclasses.asdict(reply)
    return {
        **item.key._asdict(), "group": item.question.problem.group, "digest": item.question.digest,
        "text": reply.text, "thinking": reply.thinking, "content": reply.content, "tool_calls": list(reply.tool_calls),
        "finish_reason": reply.finish_reason,
        **{name: fields[name] for name in ("prompt_tokens", "completion_tokens", "thinking_tokens", "forced_tokens")},
        "halted": None if reply.forced_tokens is None else reply.forced_tokens > 0,
        "max_new_tokens": reply.max_new_tokens, "thinking_budget": reply.thinking_budget,
        "verifier": item.question.verifier, "verdict": dataclasses.asdict(verdict) | {"parts": list(verdict.parts)},
    }  # fmt: skip
