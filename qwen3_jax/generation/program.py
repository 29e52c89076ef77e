"""The device programs: jitted functions over the same paged cache, with sampling and budget inside.

| program   | input tokens                        | returns                                            |
|-----------|-------------------------------------|----------------------------------------------------|
| `prefill` | parts of prompts, concatenated      | the next token of rows whose prompt is complete    |
| `decode`  | one per row, then the sampled ones  | up to `steps` tokens per row                       |
| `verify`  | one per row and guesses after it    | the tokens that as many decode steps would give    |

All three sample with `_take`, one step at a time, so budgets, penalties and seeds mean the same in each. A finished row is
masked; its keys are written to page 0, which is reserved as a write sink. `score` turns hidden states of a `prefill` into log
probabilities of the prompt's tokens, where these are asked for.

Settings are arrays with one entry per row, so other settings, budgets or seeds compile nothing. Shapes are rounded up to a few
sizes (`size_of`).

Shapes: d shards of the batch, r rows of a shard, b = d r rows, f tokens of a shard, v vocabulary, s slots of `Seen`, n steps,
e end tokens, g guesses.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import PartitionSpec

from qwen3_jax.generation.budget import BudgetRules, BudgetState
from qwen3_jax.generation.sampling import (
    Logprobs,
    SamplingRows,
    Seen,
    logprobs,
    own_logprobs,
    penalise,
    sample,
    sampled_logprobs,
    shift,
)
from qwen3_jax.kernels import CacheType, Pages, Rows
from qwen3_jax.model import Hidden, KVCache, Qwen3
from sharding import Placement

MAX_EOS = 24  # end tokens per request: the model's own, and those that the request adds


class Settings(struct.PyTreeNode):
    """Settings of each row, constant over a request; arrays [B].

    Attributes:
        sampling: sampling settings.
        rules: the thinking budget.
        eos: int32 [B, MAX_EOS], tokens that end the answer where they are sampled, padded with -1.
        slot: int32, the row's slot in `Seen`; past the last without penalties.
        constrained: bool, outside thinking the row takes one token, from `allowed_bw`, and then waits for the host.
        adapter: int32, which of the model's adapters the row has, counted from 1; 0 is the base model.
    """

    sampling: SamplingRows
    rules: BudgetRules
    eos: jax.Array
    slot: jax.Array
    constrained: jax.Array
    adapter: jax.Array


class Progress(struct.PyTreeNode):
    """State of each row, arrays [B].

    Attributes:
        token: int32, the newest token; its keys are not in the cache yet.
        length: int32, tokens whose keys are in the cache.
        position: int32, tokens generated so far.
        remaining: int32, tokens that may still be generated.
        active: bool, the row is unfinished.
        budget: the thinking budget's state.
    """

    token: jax.Array
    length: jax.Array
    position: jax.Array
    remaining: jax.Array
    active: jax.Array
    budget: BudgetState


class Output(struct.PyTreeNode):
    """Result of one step, arrays [B].

    Attributes:
        valid: bool, the row was active; otherwise ignore the rest.
        token: int32.
        forced: bool, the token is part of the stop text.
        thinking: bool, the token was sampled and counted against the budget.
        logprobs: see `Logprobs`.
        experts: int16 [B, L, K], the experts that each MoE layer sent the step's input token to; None unless asked for, and in
            a prefill, which reports those of all its tokens.
    """

    valid: jax.Array
    token: jax.Array
    forced: jax.Array
    thinking: jax.Array
    logprobs: Logprobs
    experts: jax.Array | None = None


class State(struct.PyTreeNode):
    """Device state between calls. The programs donate it and return its successor; do not reuse it.

    Attributes:
        groups: pages of the model.
        draft: pages of the draft model, or an empty tuple.
        seen: tokens that each slot has seen.
    """

    groups: tuple[Pages, ...]
    draft: tuple[Pages, ...]
    seen: Seen


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
    rows = Rows(tables_drw, progress.length.reshape(counts_dr.shape), counts_dr)
    adapter_df = rows.of_tokens(settings.adapter.reshape(counts_dr.shape), *tokens_df.shape)
    cache = KVCache(state.groups, rows)
    hidden = model.hidden(tokens_df, cache=cache, adapter=adapter_df, report_experts=report_experts)
    state = state.replace(groups=_pages(hidden))
    if len(graphdefs) > 1:
        draft = nnx.merge(graphdefs[1], params[1])
        state = state.replace(draft=_pages(draft.hidden(tokens_df, cache=KVCache(state.draft, rows))))
    last_dr = jnp.maximum(jnp.cumsum(counts_dr, axis=1) - 1, 0)
    last_bd = jnp.take_along_axis(hidden.states, last_dr[:, :, None], axis=1).reshape(counts_dr.size, -1)
    # `_take` adds one to the length.
    progress = progress.replace(length=progress.length + counts_dr.reshape(-1) - 1)
    seen, progress, output = _take(model, settings, state.seen, progress, model.logits(last_bd, settings.adapter))
    output = jax.tree.map(lambda x: x[None], output)
    experts = _small(hidden.experts)
    return _after(model, state, seen), *_to_all(model, (progress, output)), hidden.states, _to_all(model, experts)


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
        i, state, progress, waits_b, outputs = carry
        running = progress.replace(active=progress.active & ~waits_b)
        hidden = _forward_one(model, state.groups, running, tables_drw, settings.adapter, report_experts)
        logits_bv = model.logits(hidden.states[:, 0], settings.adapter)
        seen, after, output = _take(model, settings, state.seen, running, logits_bv, allowed_bw)
        output = output.replace(experts=_small(hidden.experts, 0))
        outputs = jax.tree.map(lambda all_nb, x_b: all_nb.at[i].set(x_b), outputs, output)
        after = after.replace(active=after.active | (progress.active & waits_b))
        if allowed_bw is not None:
            waits_b = settings.constrained & ~after.budget.busy
        return i + 1, state.replace(groups=_pages(hidden), seen=seen), after, waits_b, outputs

    def unfinished(carry):
        i, _, progress, waits_b, _ = carry
        return (i < steps) & ((progress.active & ~waits_b).sum() >= least)

    logits = jax.ShapeDtypeStruct((progress.token.size, model.config.vocab_size), jnp.float32)
    shapes = jax.eval_shape(lambda logits_bv: _take(model, settings, state.seen, progress, logits_bv)[2], logits)
    if report_experts:
        shape = progress.token.size, model.config.moe_layers, model.config.num_experts_per_tok
        shapes = shapes.replace(experts=jax.ShapeDtypeStruct(shape, jnp.int16))
    outputs = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
    start = jnp.int32(0), state, progress, jnp.zeros_like(progress.active), outputs
    _, state, progress, _, outputs = jax.lax.while_loop(unfinished, step, start)
    return _after(model, state, state.seen), *_to_all(model, (progress, outputs))


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
    tokens_bt = jnp.concatenate([progress.token[:, None], jnp.maximum(guess_bg, 0)], axis=1)
    adapter_bt = jnp.broadcast_to(settings.adapter[:, None], tokens_bt.shape)
    cache = KVCache(state.groups, _rows(progress, tables_drw))
    hidden = model.hidden(tokens_bt, cache=cache, adapter=adapter_bt, report_experts=report_experts)
    logits_btv = model.logits(hidden.states, adapter_bt)
    started_b = progress.active

    def place(carry, x):
        seen, progress, right_b = carry
        logits_bv, guess_b = x
        running = progress.replace(active=progress.active & right_b)
        seen, after, output = _take(model, settings, seen, running, logits_bv)
        right_b &= after.active & (after.token == guess_b)
        ended_b = progress.active & output.valid & ~after.active
        return (seen, after.replace(active=progress.active & ~ended_b), right_b), output

    guesses_tb = jnp.concatenate([guess_bg, jnp.full_like(guess_bg[:, :1], -1)], axis=1).T
    start = state.seen, progress, started_b
    (seen, progress, _), outputs = jax.lax.scan(place, start, (logits_btv.swapaxes(0, 1), guesses_tb))
    if (experts := _small(hidden.experts)) is not None:
        outputs = outputs.replace(experts=experts.swapaxes(0, 1))
    return _after(model, state.replace(groups=_pages(hidden)), seen), *_to_all(model, (progress, outputs))


@jax.jit
def pick(states_dfd: jax.Array, places_dk: jax.Array) -> jax.Array:
    """Return the hidden states at some places of each shard, [D, K, hidden]."""
    return jnp.take_along_axis(states_dfd, places_dk[:, :, None], axis=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(
    graphdef: Any, few: int, params: Any, states_dkd: jax.Array, targets_dk: jax.Array, adapters_dk: jax.Array
) -> Logprobs:
    """Return the log probabilities of tokens, and of the `few` most likely ones, from the states before them; arrays [D K].

    Logits of these D K tokens alone are in memory; each device gathers those of its own rows, as in `_take`.
    """
    model = nnx.merge(graphdef, params)
    placement, compute = model.execution.placement, functools.partial(own_logprobs, few=few)
    logits_bv = model.logits(states_dkd.reshape(targets_dk.size, -1), adapters_dk.reshape(-1))
    logits_bv = placement.constrain(logits_bv, ("batch", "vocab"))
    if placement.mesh is not None:
        own = _own_rows(placement, targets_dk.size)
        compute = jax.shard_map(compute, mesh=placement.mesh, in_specs=(own, own), out_specs=own, check_vma=False)
    return _to_all(model, compute(logits_bv, targets_dk.reshape(-1)))


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


def _draft(draft: Qwen3, guesses: int, state: State, settings: Settings, progress: Progress, tables_drw):
    """Generate guesses with the draft model, under each row's settings and random numbers; returns (guesses, pages)."""

    def step(carry, i):
        groups, progress = carry
        hidden = _forward_one(draft, groups, progress, tables_drw)
        _, after, _ = _take(draft, settings, state.seen, progress, draft.logits(hidden.states[:, 0]))
        # Only the model ends an answer.
        after = after.replace(active=progress.active, remaining=progress.remaining)
        return (_pages(hidden), after), after.token

    # One more step than guesses: the last guess's keys are needed if all are accepted.
    (groups, _), tokens_gb = jax.lax.scan(step, (state.draft, progress), jnp.arange(guesses + 1))
    return tokens_gb[:-1].T, groups


def _forward_one(model: Qwen3, groups, progress: Progress, tables_drw, adapter_b=None, report_experts=False) -> Hidden:
    """Run the model on the newest token of each row."""
    adapter_b1 = None if adapter_b is None else adapter_b[:, None]
    cache = KVCache(groups, _rows(progress, tables_drw))
    return model.hidden(progress.token[:, None], cache=cache, adapter=adapter_b1, report_experts=report_experts)


def _small(experts_btlk: jax.Array | None, place: int | None = None) -> jax.Array | None:
    """Return experts as they are sent to the host, int16, of all places or of one."""
    if experts_btlk is None:
        return None
    return (experts_btlk if place is None else experts_btlk[:, place]).astype(jnp.int16)


def _pages(hidden: Hidden) -> tuple[Pages, ...]:
    assert hidden.cache is not None
    return hidden.cache.groups


def _rows(progress: Progress, tables_drw) -> Rows:
    """Return the rows of a decode step; finished ones write to page 0."""
    d, r, _ = tables_drw.shape
    active_dr = progress.active.reshape(d, r)
    tables_drw = jnp.where(active_dr[:, :, None], tables_drw, 0)
    return Rows(tables_drw, jnp.where(active_dr, progress.length.reshape(d, r), 0))


def _permit(logits_bv, allowed_bw, rows_b):
    """Mask all but the allowed tokens of the rows in `rows_b`."""
    v = jnp.arange(logits_bv.shape[1])
    allowed_bv = (allowed_bw[:, v // 32] >> (v % 32).astype(jnp.uint32)) & 1
    return jnp.where(rows_b[:, None] & (allowed_bv == 0), -jnp.inf, logits_bv)


def _take(model: Qwen3, settings: Settings, seen: Seen, progress: Progress, logits_bv, allowed_bw=None):
    """Sample the next token of each active row and advance the row.

    Each device gathers all logits of its own rows once and samples alone. Left to the compiler, every sort and sum would gather
    by itself, inside branches; XLA:CPU may run those collectives in another order on each device and deadlock.
    """
    placement, choose = model.execution.placement, _next
    logits_bv = placement.constrain(logits_bv, ("batch", "vocab"))
    if placement.mesh is not None:
        own = _own_rows(placement, progress.token.size)
        specs = own, PartitionSpec(), own, own, own
        choose = jax.shard_map(_next, mesh=placement.mesh, in_specs=specs, out_specs=own, check_vma=False)
    after, output = choose(settings, seen, progress, logits_bv, allowed_bw)
    after, output = jax.tree.map(lambda x: placement.constrain(x, ("batch",) + (None,) * (x.ndim - 1)), (after, output))
    slot_b = jnp.where(progress.active, settings.slot, seen.prompt.shape[0])
    # Replicate the few new numbers; left to itself the compiler reduces the whole of `seen`.
    return seen.add(*_to_all(model, (slot_b, output.token))), after, output


def _own_rows(placement: Placement, rows: int) -> PartitionSpec:
    """Return how rows of logits are divided over devices; those that split the vocabulary divide rows, where the number allows.

    Otherwise each would sort all logits of all rows: with 64 rows a tenth of the HBM traffic of 32B on 8 GPUs.
    """
    if rows % (placement.parts("batch") * placement.parts("vocab")):
        return placement.spec(("batch",))
    return PartitionSpec((*placement.axes("batch"), *placement.axes("vocab")) or None)


def _next(settings: Settings, seen: Seen, progress: Progress, logits_bv, allowed_bw) -> tuple[Progress, Output]:
    """The part of `_take` that runs on one device, for its own rows."""
    active_b = progress.active
    shaped_bv = penalise(shift(logits_bv, settings.sampling), settings.sampling, seen, settings.slot)
    if allowed_bw is not None:
        shaped_bv = _permit(shaped_bv, allowed_bw, settings.constrained & ~progress.budget.busy)
        # The constrained content is still to come, so the answer cannot end in its thinking, other than by an end token
        # that is `</think>` itself.
        thinks_b1 = (settings.constrained & progress.budget.busy)[:, None]
        masked_be = thinks_b1 & (settings.eos >= 0) & (settings.eos != settings.rules.end[:, None])
        end_be = jnp.where(masked_be, settings.eos, shaped_bv.shape[1])
        shaped_bv = shaped_bv.at[jnp.arange(len(end_be))[:, None], end_be].set(-jnp.inf, mode="drop")
    shaped_bv = progress.budget.forbid(shaped_bv, settings.rules)
    sampled_b = sample(shaped_bv, settings.sampling, progress.position)
    token_b, forced_b, budget = progress.budget.advance(sampled_b, settings.rules)
    thinking_b = budget.used > progress.budget.used
    reported = logprobs(logits_bv, token_b, settings.sampling.logprobs)
    drawn_b = jnp.where(forced_b, jnp.nan, sampled_logprobs(shaped_bv, settings.sampling, token_b))
    output = Output(active_b, token_b, forced_b, thinking_b, reported.replace(sampled=drawn_b))
    remaining_b = progress.remaining - 1
    ended_b = (~forced_b & (token_b[:, None] == settings.eos).any(axis=1)) | (remaining_b == 0)
    after = Progress(token_b, progress.length + 1, progress.position + 1, remaining_b, ~ended_b, budget)

    def where_active(new, old):
        return jnp.where(active_b, new, old)

    return jax.tree.map(where_active, after, progress), output


def _after(model: Qwen3, state: State, seen: Seen) -> State:
    """Return the next state, `seen` replicated; sharded otherwise, it would compile the next call anew."""
    return state.replace(seen=_to_all(model, seen))


def _to_all(model: Qwen3, small: Any) -> Any:
    """Replicate small arrays on all devices, for the hosts of all processes to read."""
    return jax.tree.map(lambda x: model.execution.placement.constrain(x, (None,) * x.ndim), small)


def row_size(count: int, most: int) -> int:
    """Round up the rows of a decode step, to `most` at the most: three and five answers share a program of eight rows."""
    return min(count if count <= 2 else size_of(count, 8), most)


def size_of(count: int, least: int = 1, factor: int = 2) -> int:
    """Round up to `least` times a power of `factor`: few shapes, at most that many times the work."""
    size = least
    while size < count:
        size *= factor
    return size
