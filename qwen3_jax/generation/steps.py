"""The decode loop: tokens in, tokens out, one jitted step for forward pass, sampling and budget.

    for step in generate_step(model, [Row(prompt=(151644, 872, ...), sampling=Sampling(temperature=0))]):
        step.tokens                                                   # int32 [B]

Compilations: one prefill per (rows, bucket of prompt length), one decode step per (rows, bucket of cache size). Sampling
settings, budgets and seeds are arrays and cause none.

Shapes: b rows, t prompt length (bucketed), v vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from qwen3_jax.errors import UserError
from qwen3_jax.generation.budget import BudgetState, ThinkingTokens
from qwen3_jax.generation.sampling import Logprobs, Sampling, SamplingRows, logprobs, penalise, sample
from qwen3_jax.model import KVCache, Qwen3

_MIN_BUCKET = 16
_GROWTH = 128  # slots that a fresh cache has beyond the prompt's bucket


@dataclass(frozen=True)
class Row:
    """One answer to generate.

    Attributes:
        prompt: token ids, at least one.
        sampling: settings; what is None follows the model's generation_config.
        budget: thinking tokens allowed; None is unlimited.
        thinking: the prompt leaves `<think>` open.
        sample_index: which of the n answers to the prompt this is.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    budget: int | None = None
    thinking: bool = False
    sample_index: int = 0


@dataclass(frozen=True)
class Step:
    """What one step gave, on the host.

    Attributes:
        tokens: int32 [B].
        forced: bool [B], tokens of the stop text.
        thinking: bool [B], sampled tokens that counted against the budget.
        logprobs: arrays as in `Logprobs`, or None if no row asked.
        seconds: time that the step ran; the first one is the prefill.
        compile_seconds: time that was spent compiling before it ran.
    """

    tokens: np.ndarray
    forced: np.ndarray
    thinking: np.ndarray
    logprobs: Logprobs | None
    seconds: float
    compile_seconds: float


@struct.dataclass
class _State:
    """What a decode step carries on, on the device."""

    cache: KVCache
    token: jax.Array
    position: jax.Array
    in_prompt: jax.Array
    in_answer: jax.Array
    budget: BudgetState


@struct.dataclass
class _Output:
    token: jax.Array
    forced: jax.Array
    thinking: jax.Array
    logprobs: Logprobs


class _Clock:
    """Times one step, compilation apart: a call that compiles returns when it has, and then runs."""

    compilations = 0

    def __init__(self) -> None:
        self._seen = _Clock.compilations
        self._started = self._running = time.perf_counter()

    def dispatched(self) -> None:
        """The step's call has returned."""
        if _Clock.compilations > self._seen:
            self._running = time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """The step's result is here: return (seconds running, seconds compiling)."""
        return time.perf_counter() - self._running, self._running - self._started

    @staticmethod
    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        """Called by JAX after every compilation, also one that the persistent cache spared."""
        _Clock.compilations += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_Clock.listen)


def bucket(length: int) -> int:
    """Round up to 16, 24, 32, 48, 64, 96, ...: at most half as much again, few compilations."""
    size = _MIN_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return size


def generate_step(model: Qwen3, rows: Sequence[Row], tokens: ThinkingTokens = ThinkingTokens()) -> Iterator[Step]:  # noqa: B008
    """Generate one token per row and step, without end: the caller decides when each row is finished and stops.

    Args:
        model: the model, on any mesh.
        rows: one or more answers; prompts may differ in length.
        tokens: ids that the budget works with.

    Raises:
        UserError: no rows, an empty prompt, or a budget without `tokens` to count by.
    """
    if not rows or not all(row.prompt for row in rows):
        raise UserError("generate_step needs at least one row, and at least one token in every prompt.")
    if tokens.start < 0 and any(row.budget is not None or row.thinking for row in rows):
        raise UserError("a row has a thinking budget; generate_step then needs `tokens`, see ThinkingTokens.of.")
    graphdef, params = nnx.split(model)
    sampling = [row.sampling.resolve(model.generation_config) for row in rows]
    settings = SamplingRows.of(sampling, [row.sample_index for row in rows])
    lengths = np.asarray([len(row.prompt) for row in rows], np.int32)
    width = bucket(int(lengths.max()))
    prompts = np.zeros((len(rows), width), np.int32)
    for row, prompt in zip(prompts, (row.prompt for row in rows), strict=True):
        row[: len(prompt)] = prompt
    budget = BudgetState.start([row.budget for row in rows], [row.thinking for row in rows])
    wants_logprobs = bool(settings.logprobs.any())

    clock = _Clock()
    used = int(lengths.max())
    capacity = bucket(width + _GROWTH)
    state, output = _prefill(graphdef, tokens, capacity, params, settings, prompts, lengths, budget)
    clock.dispatched()
    while True:
        host = jax.device_get(output if wants_logprobs else output.replace(logprobs=None))
        yield Step(host.token, host.forced, host.thinking, host.logprobs, *clock.stop())
        clock = _Clock()
        used += 1
        if used > capacity:
            capacity = bucket(capacity + 1)
            state = state.replace(cache=_grow(state.cache, capacity))
        state, output = _decode(graphdef, tokens, params, settings, state)
        clock.dispatched()


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(graphdef, tokens, capacity, params, settings, prompts_bt, lengths_b, budget) -> tuple[_State, _Output]:
    model = nnx.merge(graphdef, params)
    rows, width = prompts_bt.shape
    cache = model.new_cache(rows, capacity)
    hidden = model.hidden(prompts_bt, cache=cache)
    # Rows are padded on the right: the slots past a row's own length are overwritten before any query can see them.
    cache = hidden.cache.replace(lengths=lengths_b)
    last_bd = jnp.take_along_axis(hidden.states, (lengths_b - 1)[:, None, None], axis=1)[:, 0]
    vocabulary = model.config.vocab_size
    row = jnp.arange(rows)[:, None]
    real_bt = jnp.arange(width) < lengths_b[:, None]
    in_prompt = (
        jnp.zeros((rows, vocabulary), bool).at[row, jnp.where(real_bt, prompts_bt, vocabulary)].set(True, mode="drop")
    )
    state = _State(
        cache, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32), in_prompt, jnp.zeros_like(in_prompt), budget
    )
    return _take(model, tokens, settings, state, model.logits(last_bd))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _decode(graphdef, tokens, params, settings, state) -> tuple[_State, _Output]:
    model = nnx.merge(graphdef, params)
    hidden = model.hidden(state.token[:, None], cache=state.cache)
    return _take(model, tokens, settings, state.replace(cache=hidden.cache), model.logits(hidden.states[:, 0]))


@functools.partial(jax.jit, static_argnums=1)
def _grow(cache: KVCache, capacity: int) -> KVCache:
    return cache.grow(capacity)


def _take(model: Qwen3, tokens: ThinkingTokens, settings: SamplingRows, state: _State, logits_bv: jax.Array):
    """Choose each row's next token from its logits and move the row's state on."""
    logits_bv = model.placement.constrain(logits_bv, ("batch", "vocab"))
    shaped_bv = penalise(logits_bv, settings, state.in_prompt, state.in_answer)
    sampled_b = sample(state.budget.forbid(shaped_bv, tokens), settings, state.position)
    token_b, forced_b, budget = state.budget.advance(sampled_b, tokens)
    thinking_b = budget.used > state.budget.used
    output = _Output(token_b, forced_b, thinking_b, logprobs(logits_bv, token_b, settings.logprobs))
    # Small, and read by every process's host.
    output = jax.tree.map(lambda x: model.placement.constrain(x, (None,) * x.ndim), output)
    state = dataclasses.replace(
        state,
        token=token_b,
        position=state.position + 1,
        in_answer=state.in_answer.at[jnp.arange(token_b.shape[0]), token_b].set(True),
        budget=budget,
    )
    return state, output
