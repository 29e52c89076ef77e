"""Counters and limits of an engine in exact numbers; plans of the scheduler step by step."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

import qwen3_jax
from qwen3_jax import Engine, PromptLookup, Request, Sampling
from qwen3_jax.errors import UserError
from qwen3_jax.generation import Stats
from qwen3_jax.generation.scheduler import Decode, Grow, Prefill, Scheduler, TokenSequence
from qwen3_jax.generation.stats import Clock
from qwen3_jax.kernels import platform
from qwen3_jax.kernels.platform import available_host_memory
from tests.helpers import tiny_models

SEVEN = 7
PAGE_BYTES = 2 * 2 * 2 * 4 * 16 * 4  # keys and values, layers, heads, tokens, head size, bytes
ALWAYS_SEVEN = Sampling(temperature=0, logit_bias={SEVEN: 100.0}, seed=0)
# One size of engine for all tests, also of test_requests.py: each size compiles its own programs.
SIZES = dict(rows=2, cache_tokens=512, slots_per_page=4, prefill_chunk=16)


def run(engine: Engine, *requests: Request) -> list[list]:
    tokens = {engine.submit(request): [] for request in requests}
    while engine.busy:
        for token in engine.step():
            tokens[token.number].append(token)
    return list(tokens.values())


def test_prefill_and_decode_tokens_add_up():
    """Every prompt token is computed or read from the cache; every other token comes from a prefill or a decode step."""
    model = tiny_models.model(2, eos=False)
    engine = Engine(model, **SIZES)
    prompts = [tuple(range(n)) for n in (1, 2, 5, 16, 17, 34)]
    got = run(
        engine, *(Request(prompt, Sampling(temperature=0, seed=0), n) for n, prompt in enumerate(prompts, start=3))
    )
    stats = engine.stats
    assert [tokens[0].cached for tokens in got] == [0, 0, 0, 4, 16, 16]  # shared as soon as a chunk has computed them
    assert stats.cached_tokens == sum(tokens[0].cached for tokens in got)
    assert stats.prefill_tokens + stats.cached_tokens == sum(map(len, prompts))
    assert [len(tokens) for tokens in got] == [3, 4, 5, 6, 7, 8]
    # A prompt of which one token is left gets its first token from a decode step.
    from_decode = sum(len(prompt) - tokens[0].cached == 1 for prompt, tokens in zip(prompts, got, strict=True))
    assert stats.decode_tokens == sum(map(len, got)) - len(got) + from_decode
    assert (stats.guessed, stats.accepted, stats.preemptions) == (0, 0, 0)
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    before = dataclasses.replace(stats)
    (again,) = run(engine, Request(prompts[4], Sampling(temperature=0, seed=0), 2))
    assert again[0].cached == 16
    since = engine.stats.since(before)
    assert (since.prefill_tokens, since.cached_tokens, since.decode_tokens) == (1, 16, 2)


def test_without_a_prefix_cache_every_prompt_token_is_computed():
    engine = Engine(tiny_models.model(2, eos=False), **SIZES, prefix_cache=False)
    prompts = [tuple(range(40))] * 3
    got = run(engine, *(Request(prompt, Sampling(temperature=0, seed=0), 4) for prompt in prompts))
    assert (engine.stats.prefill_tokens, engine.stats.cached_tokens, engine.stats.decode_tokens) == (120, 0, 9)
    assert {token.cached for tokens in got for token in tokens} == {0}


@pytest.mark.parametrize(
    ("limit", "guessed", "accepted"), [(1, 0, 0), (2, 1, 0), (5, 2, 2), (25, 12, 12), (24, 12, 11)]
)
def test_guesses_that_are_always_right_are_counted(limit, guessed, accepted):
    """Two tokens a step: one follows the last occurrence of the same token. The last step may need one token only."""
    engine = Engine(tiny_models.model(2, eos=False), **SIZES, speculation=PromptLookup(3, shortest=1))
    (tokens,) = run(engine, Request((SEVEN,) * 4, ALWAYS_SEVEN, limit))
    assert [token.id for token in tokens] == [SEVEN] * limit
    assert (engine.stats.guessed, engine.stats.accepted) == (guessed, accepted)
    assert engine.stats.decode_tokens == limit - 1


def test_how_full_an_engine_is():
    engine = Engine(tiny_models.model(2, eos=False), **SIZES)
    assert (engine.rows, engine.max_length, engine.cache_usage) == (2, 512, (0, 128))
    requests = [Request((first, 2, 3, 4, 5), Sampling(temperature=0, seed=0), 3) for first in range(3)]
    numbers = [engine.submit(request) for request in requests]
    assert numbers == [0, 1, 2]
    assert (engine.waiting, engine.running, engine.busy) == (3, 0, True)
    engine.step()
    assert (engine.waiting, engine.running) == (1, 2)
    assert engine.cache_usage == (4, 128)  # two pages each
    engine.cancel(0)
    assert (engine.waiting, engine.running) == (1, 1)
    assert engine.cache_usage == (2, 128)
    engine.step()
    assert (engine.waiting, engine.running) == (0, 2)
    for number in numbers:
        engine.cancel(number)
    assert (engine.waiting, engine.running, engine.busy, engine.cache_usage[0]) == (0, 0, False, 0)
    assert engine.step() == []
    assert engine.submit(requests[0]) == 3


@pytest.mark.parametrize(("end", "count", "finish"), [(frozenset({SEVEN}), 1, "stop"), (frozenset({8}), 3, "length")])
def test_which_token_finishes_and_why(end, count, finish):
    engine = Engine(tiny_models.model(2, eos=False), **SIZES)
    (tokens,) = run(engine, Request((1, 2, 3), ALWAYS_SEVEN, 3, end))
    assert [token.finish for token in tokens] == [None] * (count - 1) + [finish]
    (both,) = run(engine, Request((1, 2, 3), ALWAYS_SEVEN, 1, frozenset({SEVEN})))
    assert [token.finish for token in both] == ["stop"]  # the end token at the limit is an end


def test_a_step_is_timed_apart_from_its_compilation(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for compiles, expected in ((False, (5.0, 0.0)), (True, (3.0, 2.0))):
        clock = Clock()
        now[0] += 2
        if compiles:
            Clock.listen("/jax/core/compile/backend_compile_duration", 1.5)
            Clock.listen("/jax/core/compile/jaxpr_trace_duration", 1.5)
        clock.dispatched()
        now[0] += 3
        assert clock.stop() == expected


def test_since_subtracts_every_field():
    names = [field.name for field in dataclasses.fields(Stats)]
    one, other = (Stats(*(factor * place for place in range(1, len(names) + 1))) for factor in (3, 1))
    assert one.since(other) == Stats(*(2 * place for place in range(1, len(names) + 1)))


@pytest.mark.parametrize(
    ("free", "rows", "max_length", "pages"),
    [
        (None, 2, 64, 1 + 2 * 16),  # page 0, and sixteen pages of four tokens for each row
        (10**9, 2, 62, 1 + 2 * 16),
        (2 * 20 * PAGE_BYTES, 2, 64, 20),
        (2 * 20 * PAGE_BYTES - 1, 2, 64, 19),
        (2 * 17 * PAGE_BYTES, 2, 64, 17),
    ],
)
def test_a_cache_grows_to_what_half_of_the_memory_holds(free, rows, max_length, pages, monkeypatch):
    monkeypatch.setattr("qwen3_jax.generation.runner.free_memory", lambda placement: free)
    engine = Engine(tiny_models.model(2), rows=rows, max_length=max_length, slots_per_page=4)
    assert engine._scheduler.max_pages == pages
    assert engine.max_length == max_length


def test_a_shorter_length_than_was_asked_for_is_refused_or_said(monkeypatch):
    """Answers would be cut without a word: rollouts and evaluations ask for at most what the engine holds."""
    model = tiny_models.model(2)
    with pytest.raises(UserError, match="max_length is 64, but a cache of cache_tokens=40 holds requests of 40 tokens"):
        Engine(model, rows=2, max_length=64, cache_tokens=40, slots_per_page=4)
    monkeypatch.setattr("qwen3_jax.generation.runner.free_memory", lambda placement: 2 * 16 * PAGE_BYTES)
    with pytest.raises(UserError, match="max_length is 64, but half of the free memory holds a cache of 60 tokens"):
        Engine(model, rows=2, max_length=64, slots_per_page=4)
    with pytest.warns(UserWarning, match="requests may have 60 tokens and not the"):
        assert Engine(model, rows=2, slots_per_page=4).max_length == 60


def test_cached_file_pages_are_available_memory(tmp_path, monkeypatch):
    """A machine that has just written many files has little free memory and much available memory."""
    assert available_host_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "limit").write_text("5000\n")
    (tmp_path / "used").write_text("4000\n")
    (tmp_path / "stats").write_text("anon 100\ninactive_file 600\n")
    files = (*(str(tmp_path / name) for name in ("limit", "used", "stats")), "inactive_file")
    monkeypatch.setattr(platform, "_CONTAINER", (files,))
    assert available_host_memory() == 1600
    (tmp_path / "limit").write_text("max\n")
    entries = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert available_host_memory() == pytest.approx(int(entries["MemAvailable"].split()[0]) * 1024, rel=0.1)


def test_processes_agree_on_free_memory_of_more_than_32_bits(monkeypatch):
    """Two hosts with 12 GiB and a few bytes, of which 32 bits are a few bytes."""
    monkeypatch.setattr("qwen3_jax.generation.runner.free_memory", lambda placement: (3 << 32) + 1000)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.asarray(jnp.stack([x, x])))
    assert Engine(tiny_models.model(2), rows=2, max_length=64, slots_per_page=4).max_length == 64


def test_how_many_pages_a_cache_has():
    model = tiny_models.model(2)
    growing = Engine(model, rows=2, slots_per_page=8)
    assert (growing._scheduler.pages, growing.cache_usage[1]) == (1 + 2 * 512 // 8, 2 * 512 // 8)
    fixed = Engine(model, rows=3, cache_tokens=100, slots_per_page=8)
    assert (fixed.rows, fixed.cache_usage, fixed.max_length) == (4, (0, 12), 96)


def test_rows_of_the_engine_that_a_call_creates(monkeypatch):
    """One per answer, up to the batch size, rounded up: three and five prompts share their programs."""
    rows = []

    class Recorded(Engine):
        def __init__(self, model, **options):
            rows.append(options["rows"])
            super().__init__(model, **options)

    monkeypatch.setattr("qwen3_jax.generation.api.Engine", Recorded)
    for prompts, n, batch_size in ((2, 3, None), (3, 1, None), (5, 1, None), (2, 3, 4), (1, 1, None), (40, 1, None)):
        sampling = Sampling(temperature=1, n=n)  # checked at the call, and not run
        qwen3_jax.stream(tiny_models.model(2), None, [[1, 2]] * prompts, sampling=sampling, batch_size=batch_size)
    assert rows == [8, 8, 8, 4, 1, 32]


@pytest.mark.parametrize(
    ("tokens", "longest", "shortest", "expected"),
    [
        ([1, 2, 3, 1, 2], 3, 2, [3, 1, 2]),
        ([1, 2, 3, 4, 5, 6, 1, 2], 3, 2, [3, 4, 5, 6]),
        ([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 3, 2, [9, 2, 3, 8]),  # the longest match wins over the latest
        ([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2, 2, [8, 1, 2, 3]),  # of equal ones the latest
        ([1, 2, 3, 4], 3, 2, []),
        ([1, 2, 1], 3, 2, []),
        ([1, 2, 1], 3, 1, [2, 1]),
        ([5, 5], 3, 1, [5]),
        ([5], 3, 1, []),
        ([1, 2, 3, 7, 1, 2, 3], 5, 4, []),
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_what_a_lookup_proposes(tokens, longest, shortest, expected, cut):
    """Whether the index was built at once or before some of the tokens."""
    lookup, ngrams = PromptLookup(4, longest=longest, shortest=shortest), {}
    if cut:
        lookup.propose(tokens[:cut], ngrams, 0)
    assert lookup.propose(tokens, ngrams, min(cut, len(tokens))) == expected


# ---- the scheduler -----------------------------------------------------------------------------------------------------

SIZE = 4


def scheduler(**options) -> Scheduler:
    default = dict(
        shards=1, pages=9, page_size=SIZE, rows=4, chunk=8, chunk_rows=2, steps=4, prefix_cache=True, max_pages=None
    )
    return Scheduler(**(default | options))


def add(to: Scheduler, length: int, limit: int = 60, first: int = 0, **fields) -> TokenSequence:
    sequence = TokenSequence(tokens=list(range(first, first + length)), limit=limit, **fields)
    to.add(sequence)
    return sequence


def advance(of: Scheduler, plan) -> None:
    """Execute a plan; decode steps append one token each."""
    if isinstance(plan, Prefill):
        for parts in plan.parts:
            for sequence, count in parts:
                ends = count == sequence.pending
                of.advance(sequence, count)
                sequence.tokens += [99] * ends
        return
    for sequences in plan.sequences:
        for sequence in sequences:
            of.advance(sequence, 1)
            sequence.tokens.append(99)


def test_chunks_and_decode_steps_alternate():
    of = scheduler(pages=20)
    first, second = add(of, 5), add(of, 20, first=50)
    plan = of.schedule()
    assert plan == Prefill([[(first, 5), (second, 3)]])  # 8 tokens of two prompts
    advance(of, plan)
    plan = of.schedule()
    assert plan == Decode([[first]], 1)  # a single step while a prompt waits
    advance(of, plan)
    plan = of.schedule()
    assert plan == Prefill([[(second, 8)]])
    advance(of, plan)
    assert of.schedule() == Decode([[first]], 1)
    assert of.schedule() == Prefill([[(second, 8)]])  # all but the last of 20 tokens
    of.advance(second, 8)
    assert of.schedule() == Decode([[first, second]], 4)


def test_a_chunk_has_at_most_chunk_rows_and_leaves_a_last_token_alone():
    of = scheduler(chunk=16)
    first, second, third = (add(of, 3, first=10 * n, last_alone=n == 1) for n in range(3))
    assert of.schedule() == Prefill([[(first, 3), (second, 2)]])
    assert third.pages  # admitted, and waiting for the next chunk


def test_pages_that_are_reserved():
    of = scheduler(steps=4)
    sequence = add(of, 4, limit=9)
    advance(of, of.schedule())
    assert (sequence.computed, len(sequence.pages)) == (4, 1)
    of.schedule()
    assert len(sequence.pages) == 2  # tokens 4 to 7
    of.advance(sequence, 1)
    sequence.tokens.append(99)
    of.schedule()
    assert len(sequence.pages) == 2  # the ninth and last token is never stored
    of.remove(sequence)
    assert of.pools[0].held == 0


def test_the_youngest_is_preempted_and_returns_first():
    of = scheduler(pages=6, steps=1, prefix_cache=False)  # five pages
    old, young, later = add(of, 4), add(of, 4), add(of, 20)
    advance(of, of.schedule())
    for _ in range(4):  # 2 + 2 pages
        advance(of, of.schedule())
    assert (len(old.pages), len(young.pages), later.shard) == (2, 2, -1)
    while old.computed < 8:
        advance(of, of.schedule())
    assert of.schedule() == Decode([[old, young]], 1) or young.preemptions
    while not of.preemptions:
        advance(of, of.schedule())
    assert (old.preemptions, young.preemptions, list(of.waiting)) == (0, 1, [young, later])
    assert (young.shard, young.pages, young.computed) == (-1, [], 0)
    of.remove(old)
    of.schedule()
    assert young.shard == 0
    assert list(of.waiting) == [later]


def test_pages_are_left_for_the_others_to_grow():
    of = scheduler(pages=6, prefix_cache=False)  # five pages
    first = add(of, 4)
    advance(of, of.schedule())
    second = add(of, 16)  # four pages; with one that may be needed at once there are too few
    of.schedule()
    assert (second.shard, second.preemptions) == (-1, 0)  # nor admitted and preempted at once
    of.remove(first)
    of.schedule()
    assert second.shard == 0


def test_a_cache_grows_before_anything_is_preempted():
    of = scheduler(pages=3, max_pages=7, steps=1, prefix_cache=False)
    first, second = add(of, 8), add(of, 8)
    assert of.schedule() == Grow(3, 6)  # the second needs two pages, and one is left for the first to grow
    assert first.shard == 0
    assert [pool.capacity for pool in of.pools] == [5]
    advance(of, of.schedule())
    advance(of, of.schedule())
    assert second.shard == 0
    grown = []
    for _ in range(30):
        plan = of.schedule()
        if isinstance(plan, Grow):
            grown.append(plan)
            continue
        if of.preemptions:
            break
        advance(of, plan)
    assert grown == [Grow(6, 7)]
    assert second.preemptions == 1


def test_a_shard_with_the_prefix_is_preferred_and_else_the_emptier_one():
    of = scheduler(shards=2, rows=2)
    first = add(of, 9)
    advance(of, of.schedule())
    advance(of, of.schedule())
    other = add(of, 9, first=50)
    of.schedule()
    assert {first.shard, other.shard} == {0, 1}
    of.remove(first)
    same = add(of, 9)
    of.schedule()
    assert (same.shard, same.cached) == (0, 8)


def test_a_sequence_waits_for_a_common_prefix_and_shares_it():
    of = scheduler(pages=20)
    first, second = add(of, 13), add(of, 13)
    plan = of.schedule()
    assert plan == Prefill([[(first, 8)]])
    assert second.shard == -1  # its first page is being computed
    advance(of, plan)
    of.schedule()
    assert second.shard == -1  # so is its third; two are there
    of.advance(first, 5)
    first.tokens.append(99)
    of.schedule()
    assert (second.shard, second.cached, second.pages[:3]) == (0, 12, first.pages[:3])
    without = scheduler(pages=20, prefix_cache=False)
    first, second = add(without, 13), add(without, 13)
    without.schedule()
    assert second.shard == 0
