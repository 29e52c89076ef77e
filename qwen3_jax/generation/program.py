"""The device programs: jitted functions over the same paged cache, with sampling and budget inside.

| program   | input tokens                        | returns                                            |
|-----------|-------------------------------------|----------------------------------------------------|
| `prefill` | parts of prompts, concatenated      | the next token of rows whose prompt is complete    |
| `decode`  | one per row, then the sampled ones  | up to `steps` tokens per row                       |
| `verify`  | one per row and guesses after it    | the tokens that as many decode steps would give    |

All three sample with `take`, one step at a time, so budgets, penalties and seeds mean the same in each. A finished row is
masked; its keys are written to page 0, which is reserved as a write sink. `score` turns hidden states of a `prefill` into log
probabilities of the prompt's tokens, where these are asked for.

Settings are arrays with one entry per row, so other settings, budgets or seeds compile nothing. Shapes are rounded up to a few
sizes (`size_of`). What a program computes before the model's layers and behind them is in `parts`; `layered` has programs of
those parts and of a single layer.

Shapes: d shards of the batch, r rows of a shard, b = d r rows, f tokens of a shard, v vocabulary, s slots of `Seen`, n steps,
e end tokens, g guesses.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.generation.parts import (
    Steps,
    decode_rows,
    decoded,
    guessed_tokens,
    own_rows,
    prefill_rows,
    prefilled,
    take,
    to_all,
    verified,
)  # fmt: skip
from qwen3_jax.generation.rows import Output, Progress, Settings, State
from qwen3_jax.generation.sampling import Logprobs, Seen, own_logprobs
from qwen3_jax.kernels import CacheType, Pages
from qwen3_jax.model import Hidden, KVCache, Qwen3


@functools.partial(jax.jit, static_argnums=range(6))
def begin(
    graphdefs: tuple[Any, ...], shards: int, rows: int, pages: int, slots_per_page: int, cache_type: CacheType | None,
    params: tuple[Any, ...],
) -> State:  # fmt: skip
    """Return a state with `pages` zeroed pages per layer and shard, and `rows` empty slots of `Seen` per shard."""
    models = [nnx.merge(*both) for both in zip(graphdefs, params, strict=True)]
    groups, *draft = (
        m.new_pages(pages, slots_per_page=slots_per_page, shards=shards, quantized=cache_type) for m in models
    )
    seen = Seen.empty(shards * rows, models[0].config.vocab_size, models[0].execution.placement)
    return State(groups, draft[0] if draft else (), seen)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2, static_argnames="report_experts")
def prefill(
    graphdefs: tuple[Any, ...], params: tuple[Any, ...], state: State, settings: Settings, progress: Progress,
    tokens_df: jax.Array, counts_dr: jax.Array, tables_drw: jax.Array, *, report_experts: bool = False,
) -> tuple[State, Progress, Output, jax.Array, jax.Array | None]:  # fmt: skip
    """Compute parts of prompts; sample the next token of `active` rows, whose prompt is then complete.

    Args:
        graphdefs, params: of the model and, with a draft model, of that as well.
        state: donated.
        tokens_df: int32, the rows' tokens, concatenated; `progress.length` excludes them.
        counts_dr: int32, tokens of each row.
        tables_drw: int32, page table.

        report_experts: return the experts of each token.

    Returns next state, progress, output with a leading axis of one step, and of each token the hidden state, [D, F, hidden],
    and the experts, int16 [D, F, L, K].
    """
    model = nnx.merge(graphdefs[0], params[0])
    rows, adapter_df = prefill_rows(settings, progress, tokens_df, counts_dr, tables_drw)
    cache = KVCache(state.groups, rows)
    hidden = model.hidden(tokens_df, cache=cache, adapter=adapter_df, report_experts=report_experts)
    state = state.replace(groups=_pages(hidden))
    if len(graphdefs) > 1:
        draft = nnx.merge(graphdefs[1], params[1])
        state = state.replace(draft=_pages(draft.hidden(tokens_df, cache=KVCache(state.draft, rows))))
    results = prefilled(model, state.seen, settings, progress, counts_dr, hidden)
    return state.replace(seen=results[0]), *results[1:]


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3, static_argnames="report_experts")
def decode(
    graphdefs: tuple[Any, ...], most: int, params: tuple[Any, ...], state: State, settings: Settings, progress: Progress,
    tables_drw: jax.Array, steps: jax.Array, least: jax.Array, allowed_bw: jax.Array | None = None, *,
    report_experts: bool = False,
) -> tuple[State, Progress, Output]:  # fmt: skip
    """Generate tokens until fewer than `least` rows are unfinished, for at most `steps` steps.

    Args:
        most: static upper bound of `steps`.
        state: donated.
        steps, least: int32 [].
        allowed_bw: uint32 words of `Constraint.allowed`, for the next token of `constrained` rows that are not thinking; None
            if no row is constrained.
        report_experts: return the experts of each step's input tokens.

    Returns next state, progress, and output with a leading axis of `most` steps.
    """
    model = nnx.merge(graphdefs[0], params[0])

    def step(carry):
        state, steps_taken = carry
        hidden = _forward_one(model, state.groups, steps_taken.running, tables_drw, settings.adapter, report_experts)
        seen, steps_taken = decoded(model, state.seen, settings, steps_taken, hidden, allowed_bw)
        return state.replace(groups=_pages(hidden), seen=seen), steps_taken

    def unfinished(carry):
        return (carry[1].count < steps) & (carry[1].unfinished >= least)

    start = state, Steps.start(model, most, settings, state.seen, progress, report_experts)
    state, taken = jax.lax.while_loop(unfinished, step, start)
    state = state.replace(seen=to_all(model, state.seen))  # sharded otherwise, it would compile the next call anew
    return state, *to_all(model, (taken.progress, taken.outputs))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3, static_argnames="report_experts")
def verify(
    graphdefs: tuple[Any, ...], guesses: int, params: tuple[Any, ...], state: State, settings: Settings, progress: Progress,
    tables_drw: jax.Array, guess_bg: jax.Array, *, report_experts: bool = False,
) -> tuple[State, Progress, Output]:  # fmt: skip
    """Check guesses of the next tokens in one pass; returns the tokens that `decode` would, one more than were accepted.

    Each position is sampled with its own random numbers, and a guess is accepted if it equals the sampled token. So answers do
    not depend on guesses, and seeds keep their meaning. For deterministic guesses (prompt lookup, greedy drafts) the acceptance
    rate equals that of speculative sampling (Leviathan et al. 2023, arXiv 2211.17192).

    Args:
        state: donated.
        guess_bg: int32 [B, guesses], -1 for none; ignored with a draft model, which makes its own.
        report_experts: return the experts of each step's input tokens.

    Returns next state, progress, and output with a leading axis of `guesses` + 1 steps.
    """
    model = nnx.merge(graphdefs[0], params[0])
    if len(graphdefs) > 1:
        guess_bg, draft = _draft(nnx.merge(graphdefs[1], params[1]), guesses, state, settings, progress, tables_drw)
        state = state.replace(draft=draft)
    tokens_bt, adapter_bt = guessed_tokens(settings, progress, guess_bg)
    cache = KVCache(state.groups, decode_rows(progress, tables_drw))
    hidden = model.hidden(tokens_bt, cache=cache, adapter=adapter_bt, report_experts=report_experts)
    seen, progress, outputs = verified(model, state.seen, settings, progress, guess_bg, hidden)
    return state.replace(groups=_pages(hidden), seen=seen), progress, outputs


@jax.jit
def pick(states_dfd: jax.Array, places_dk: jax.Array) -> jax.Array:
    """Return the hidden states at some places of each shard, [D, K, hidden]."""
    return jnp.take_along_axis(states_dfd, places_dk[:, :, None], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(
    graphdef: Any, few: int, params: Any, states_dkd: jax.Array, targets_dk: jax.Array, adapters_dk: jax.Array
) -> Logprobs:
    """Return the log probabilities of tokens, and of the `few` most likely ones, from the states before them; arrays [D K].

    Logits of these D K tokens alone are in memory; each device gathers those of its own rows, as in `take`.
    """
    model = nnx.merge(graphdef, params)
    placement, compute = model.execution.placement, functools.partial(own_logprobs, few=few)
    logits_bv = model.logits(states_dkd.reshape(targets_dk.size, -1), adapters_dk.reshape(-1))
    logits_bv = placement.constrain(logits_bv, ("batch", "vocab"))
    if placement.mesh is not None:
        own = own_rows(placement, targets_dk.size)
        compute = jax.shard_map(compute, mesh=placement.mesh, in_specs=(own, own), out_specs=own, check_vma=False)
    return to_all(model, compute(logits_bv, targets_dk.reshape(-1)))


@functools.partial(jax.jit, donate_argnums=0)
def enter(state: State, slot: jax.Array, in_prompt_v: jax.Array, count_v: jax.Array) -> State:
    """Overwrite a slot of `Seen`: bool [V], the tokens of the prompt; int16 [V], counts of the answer. `state` is donated."""
    seen = Seen(state.seen.prompt.at[slot].set(in_prompt_v), state.seen.answer.at[slot].set(count_v))
    return state.replace(seen=seen)


@functools.partial(jax.jit, static_argnums=(1, 2))
def extend(state: State, before: int, pages: int) -> State:
    """Return the state with `pages` pages per layer and shard instead of `before`; new ones are zeroed."""

    def pad(x):
        layers = x.shape[1] // before
        x = x.reshape(x.shape[0], layers, before, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, pages - before)] + [(0, 0)] * (x.ndim - 3))
        return x.reshape(x.shape[0], layers * pages, *x.shape[3:])

    return state.replace(groups=jax.tree.map(pad, state.groups), draft=jax.tree.map(pad, state.draft))


class Structures(tuple[Any, ...]):
    """Structures of models. Their hash, by which JAX looks a program up at each call, takes 2 ms for 28 layers and is kept."""

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


class WholePrograms:
    """`prefill`, `decode` and `verify` of a model, and of a draft model if there is one; as `LayeredPrograms`."""

    def __init__(self, graphdefs: tuple[Any, ...], params: tuple[Any, ...], report_experts: bool):
        self._graphdefs, self._params = graphdefs, params
        self._reporting = {"report_experts": report_experts}

    def prefill(self, state: State, *arrays: Any) -> tuple[State, Progress, Output, jax.Array, jax.Array | None]:
        """See `program.prefill`."""
        return prefill(self._graphdefs, self._params, state, *arrays, **self._reporting)

    def decode(self, most: int, state: State, *arrays: Any) -> tuple[State, Progress, Output]:
        """See `program.decode`."""
        return decode(self._graphdefs, most, self._params, state, *arrays, **self._reporting)

    def verify(
        self, state: State, settings: Settings, progress: Progress, tables_drw: Any, guess_bg: Any
    ) -> tuple[State, Progress, Output]:
        """See `program.verify`."""
        arrays = state, settings, progress, tables_drw, guess_bg
        return verify(self._graphdefs, guess_bg.shape[1], self._params, *arrays, **self._reporting)


def _draft(draft: Qwen3, guesses: int, state: State, settings: Settings, progress: Progress, tables_drw):
    """Generate guesses with the draft model, under each row's settings and random numbers; returns (guesses, pages)."""

    def step(carry, i):
        groups, progress = carry
        hidden = _forward_one(draft, groups, progress, tables_drw)
        _, after, _ = take(draft, settings, state.seen, progress, draft.logits(hidden.states[:, 0]))
        # Only the model ends an answer.
        after = after.replace(active=progress.active, remaining=progress.remaining)
        return (_pages(hidden), after), after.token

    # One more step than guesses: the last guess's keys are needed if all are accepted.
    (groups, _), tokens_gb = jax.lax.scan(step, (state.draft, progress), jnp.arange(guesses + 1))
    return tokens_gb[:-1].T, groups


def _forward_one(model: Qwen3, groups, progress: Progress, tables_drw, adapter_b=None, report_experts=False) -> Hidden:
    """Run the model on the newest token of each row."""
    adapter_b1 = None if adapter_b is None else adapter_b[:, None]
    cache = KVCache(groups, decode_rows(progress, tables_drw))
    return model.hidden(progress.token[:, None], cache=cache, adapter=adapter_b1, report_experts=report_experts)


def _pages(hidden: Hidden) -> tuple[Pages, ...]:
    assert hidden.cache is not None
    return hidden.cache.groups
