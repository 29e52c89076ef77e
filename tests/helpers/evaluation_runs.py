"""Runs of tests: a task of sums, its questions, a tiny model that often thinks, and the samples of a run."""

from __future__ import annotations

import functools
from typing import Any

from qwen3_jax import Engine
from qwen3_jax.evaluation.engine_source import EngineSource
from qwen3_jax.evaluation.plan import EvalConfig, Plan
from qwen3_jax.evaluation.runner import run
from qwen3_jax.evaluation.samples import SampleList
from qwen3_jax.evaluation.task import Problem, Task
from tests.helpers import tiny_models
from tests.helpers.engine_runs import SHAPE

SUMS = Task("sums", "small sums", lambda rows, options: (), "number", max_new_tokens=120, samples=2)
BUDGETS = (None, 0, 3, 20, 64)


def sums(count: int, **fields: Any) -> list[Problem]:
    """Problems whose prompts have 17 to 32 tokens."""
    return [
        Problem(str(i), ({"role": "user", "content": f"What is {i % 7} + {i % 5}?"},), str(i % 7 + i % 5), **fields)
        for i in range(count)
    ]


def planned(problems: list[Problem] | None = None, *, task: Task = SUMS, **config: Any) -> Plan:
    """The plan of one task, under `BUDGETS`."""
    asked = EvalConfig(**{"budgets": BUDGETS} | config)
    return Plan.of([(task, sums(6) if problems is None else problems)], asked, thinks=True, model="tiny")


@functools.cache
def thinker():
    """A random model that begins nearly every answer with thinking, and ends much of it."""
    return tiny_models.model(27)


def engine_source(*, share: bool = True, **options: Any) -> EngineSource:
    """A source of the tiny model."""
    return EngineSource(Engine(thinker(), **SHAPE | options), tiny_models.tokenizer(), share=share)


def samples_of(plan: Plan, source: Any) -> dict[tuple, dict[str, Any]]:
    """All samples of a run by key, in memory."""
    kept = SampleList()
    yielded = list(run(plan, source, kept, threads=2))
    samples = {
        tuple(sample[name] for name in ("task", "problem", "mode", "budget", "sample")): sample
        for sample in kept.samples()
    }
    assert len(yielded) == len(samples) == len(plan)
    return samples
