"""Requests through an engine, with all of their tokens."""

from typing import Any
from unittest import mock

from qwen3_jax import Engine, PromptLookup
from qwen3_jax.generation import layered

# One shape for engines of one shard, so that tests share their programs: decode steps are guesses and one more. The smaller
# ones are for engines with a draft model, and for models that one or two tests use.
SHAPE: dict[str, Any] = dict(rows=8, cache_tokens=2048, slots_per_page=4, prefill_chunk=64, decode_steps=4)
SMALL_SHAPE: dict[str, Any] = SHAPE | dict(rows=4, prefill_chunk=16)
DRAFT_SHAPE: dict[str, Any] = SHAPE | dict(rows=4, prefill_chunk=32)
LOOKUP = PromptLookup(3, shortest=1)


def layered_engine(model, **options) -> Engine:
    """An engine that calls a tiny model layer by layer, as it calls a large one."""
    with mock.patch.object(layered, "_LEAST_LAYER_BYTES", 0):
        engine = Engine(model, **options)
    assert isinstance(engine._runner._programs, layered.LayeredPrograms)
    return engine


def leave(engine: Engine, tokens: int) -> int:
    """Take all pages but those of `tokens` tokens per shard out of an empty cache; return the pages held per shard.

    A cache that is too small for its rows, and the same programs as a roomy one.
    """
    for pool in engine._scheduler.pools:
        assert pool.take(pool.available - tokens // pool.page_size)
    return engine._scheduler.pools[0].held


def run(engine: Engine, requests, arrivals=None, check=None) -> list[list]:
    """Return the tokens of each request; `arrivals` are the steps before which they are submitted."""
    arrivals = [0] * len(requests) if arrivals is None else arrivals
    todo = sorted(range(len(requests)), key=lambda i: arrivals[i])
    numbers, got, step = {}, [[] for _ in requests], 0
    while todo or engine.busy:
        while todo and arrivals[todo[0]] <= step:
            place = todo.pop(0)
            numbers[engine.submit(requests[place])] = place
        for token in engine.step():
            got[numbers[token.number]].append(token)
        if check is not None:
            check()
        step += 1
    assert all(tokens and tokens[-1].finish for tokens in got)
    assert not any(token.finish for tokens in got for token in tokens[:-1])
    return got


def ids(tokens) -> list[int]:
    return [token.id for token in tokens]
