"""What the device programs compute before a model's layers and behind them: rows of a cache, logits, sampling, budgets.

Pure functions, called inside a jit: of the whole program (`program`), or of the part of one that is called layer by layer
(`layered`).

Shapes: d shards of the batch, r rows of a shard, b = d r rows, f tokens of a shard, t tokens of a row, v vocabulary, n steps,
e end tokens, g guesses, w pages or words of a row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from qwen3_jax.generation.draw import sample
from qwen3_jax.generation.rows import Output, Progress, Settings
from qwen3_jax.generation.sampling import Seen, logprobs, penalise, shift
from qwen3_jax.kernels import Rows
from qwen3_jax.model import Hidden, Qwen3
from sharding import Placement


def prefill_rows(
    settings: Settings, progress: Progress, tokens_df: jax.Array, counts_dr: jax.Array, tables_drw: jax.Array
) -> tuple[Rows, jax.Array]:
    """Return the rows of a prefill, and the adapter of each token, int32 [D, F]."""
    rows = Rows(tables_drw, progress.length.reshape(counts_dr.shape), counts_dr)
    return rows, rows.of_tokens(settings.adapter.reshape(counts_dr.shape), *tokens_df.shape)


def prefilled(
    model: Qwen3, seen: Seen, settings: Settings, progress: Progress, counts_dr: jax.Array, hidden: Hidden
) -> tuple[Seen, Progress, Output, jax.Array, jax.Array | None]:
    """What a prefill computes from the hidden states of its tokens, [D, F, hidden]; returns as `prefill`."""
    last_bd, progress = last_states(progress, counts_dr, hidden.states)
    seen, progress, output = take(model, settings, seen, progress, model.logits(last_bd, settings.adapter))
    output = jax.tree.map(lambda x: x[None], output)
    experts = small(hidden.experts)
    return to_all(model, seen), *to_all(model, (progress, output)), hidden.states, to_all(model, experts)


def last_states(progress: Progress, counts_dr: jax.Array, states_dfd: jax.Array) -> tuple[jax.Array, Progress]:
    """Return the state of the last token of each row of a prefill, [B, hidden], and its progress, to which `take` adds one."""
    last_dr = jnp.maximum(jnp.cumsum(counts_dr, axis=1) - 1, 0)
    last_bd = jnp.take_along_axis(states_dfd, last_dr[:, :, None], axis=1).reshape(counts_dr.size, -1)
    return last_bd, progress.replace(length=progress.length + counts_dr.reshape(-1) - 1)


class Steps(struct.PyTreeNode):
    """Decode steps of one call.

    Attributes:
        count: int32, steps taken.
        progress: of each row.
        waits: bool [B], the row waits for the host, which has to say what its constraint allows next.
        outputs: of each step, a leading axis of as many as a call may take.
    """

    count: jax.Array
    progress: Progress
    waits: jax.Array
    outputs: Output

    @classmethod
    def start(
        cls, model: Qwen3, most: int, settings: Settings, seen: Seen, progress: Progress, report_experts: bool
    ) -> Steps:
        """Return the state before the first of at most `most` steps."""
        logits = jax.ShapeDtypeStruct((progress.token.size, model.config.vocab_size), jnp.float32)
        shapes = jax.eval_shape(lambda logits_bv: take(model, settings, seen, progress, logits_bv)[2], logits)
        if report_experts:
            shape = progress.token.size, model.config.moe_layers, model.config.num_experts_per_tok
            shapes = shapes.replace(experts=jax.ShapeDtypeStruct(shape, jnp.int16))
        outputs = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        return cls(jnp.int32(0), progress, jnp.zeros_like(progress.active), outputs)

    @property
    def running(self) -> Progress:
        """The progress of a step: rows that wait take no part."""
        return self.progress.replace(active=self.progress.active & ~self.waits)

    @property
    def unfinished(self) -> jax.Array:
        """int32, rows that another step would continue."""
        return self.running.active.sum()

    def after(self, settings: Settings, progress: Progress, output: Output, constrained: bool) -> Steps:
        """Return the state after a step.

        Args:
            settings: of the rows.
            progress, output: of `take`.
            constrained: rows with a constraint wait for the host from now on, where their thinking is over.
        """
        outputs = jax.tree.map(lambda all_nb, x_b: all_nb.at[self.count].set(x_b), self.outputs, output)
        progress = progress.replace(active=progress.active | (self.progress.active & self.waits))
        waits_b = settings.constrained & ~progress.budget.busy if constrained else self.waits
        return Steps(self.count + 1, progress, waits_b, outputs)


def decoded(
    model: Qwen3, seen: Seen, settings: Settings, steps: Steps, hidden: Hidden, allowed_bw: jax.Array | None
) -> tuple[Seen, Steps]:
    """What a decode step computes from the hidden states of its tokens, [B, 1, hidden]; returns the state after the step."""
    logits_bv = model.logits(hidden.states[:, 0], settings.adapter)
    seen, progress, output = take(model, settings, seen, steps.running, logits_bv, allowed_bw)
    output = output.replace(experts=small(hidden.experts, 0))
    return seen, steps.after(settings, progress, output, allowed_bw is not None)


def guessed_tokens(settings: Settings, progress: Progress, guess_bg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return what `verify` checks, the newest token and the guesses after it, and the adapter of each; int32 [B, G + 1]."""
    tokens_bt = jnp.concatenate([progress.token[:, None], jnp.maximum(guess_bg, 0)], axis=1)
    return tokens_bt, jnp.broadcast_to(settings.adapter[:, None], tokens_bt.shape)


def verified(
    model: Qwen3, seen: Seen, settings: Settings, progress: Progress, guess_bg: jax.Array, hidden: Hidden
) -> tuple[Seen, Progress, Output]:
    """What `verify` computes from the hidden states of the guesses, [B, G + 1, hidden]; returns as it does."""
    adapter_bt = guessed_tokens(settings, progress, guess_bg)[1]
    logits_btv = model.logits(hidden.states, adapter_bt)
    started_b = progress.active

    def place(carry, x):
        seen, progress, right_b = carry
        logits_bv, guess_b = x
        running = progress.replace(active=progress.active & right_b)
        seen, after, output = take(model, settings, seen, running, logits_bv)
        right_b &= after.active & (after.token == guess_b)
        ended_b = progress.active & output.valid & ~after.active
        return (seen, after.replace(active=progress.active & ~ended_b), right_b), output

    guesses_tb = jnp.concatenate([guess_bg, jnp.full_like(guess_bg[:, :1], -1)], axis=1).T
    start = seen, progress, started_b
    (seen, progress, _), outputs = jax.lax.scan(place, start, (logits_btv.swapaxes(0, 1), guesses_tb))
    if (experts := small(hidden.experts)) is not None:
        outputs = outputs.replace(experts=experts.swapaxes(0, 1))
    return to_all(model, seen), *to_all(model, (progress, outputs))


def decode_rows(progress: Progress, tables_drw) -> Rows:
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


def take(model: Qwen3, settings: Settings, seen: Seen, progress: Progress, logits_bv, allowed_bw=None):
    """Sample the next token of each active row and advance the row.

    Each device gathers all logits of its own rows once and samples alone. Left to the compiler, every sort and sum would gather
    by itself, inside branches; XLA:CPU may run those collectives in another order on each device and deadlock.
    """
    placement, choose = model.execution.placement, _next
    logits_bv = placement.constrain(logits_bv, ("batch", "vocab"))
    if placement.mesh is not None:
        own = own_rows(placement, progress.token.size)
        specs = own, PartitionSpec(), own, own, own
        choose = jax.shard_map(_next, mesh=placement.mesh, in_specs=specs, out_specs=own, check_vma=False)
    after, output = choose(settings, seen, progress, logits_bv, allowed_bw)
    after, output = jax.tree.map(lambda x: placement.constrain(x, ("batch",) + (None,) * (x.ndim - 1)), (after, output))
    slot_b = jnp.where(progress.active, settings.slot, seen.prompt.shape[0])
    # Replicate the few new numbers; left to itself the compiler reduces the whole of `seen`.
    return seen.add(*to_all(model, (slot_b, output.token))), after, output


def own_rows(placement: Placement, rows: int) -> PartitionSpec:
    """Return how rows of logits are divided over devices; those that split the vocabulary divide rows, where the number allows.

    Otherwise each would sort all logits of all rows: with 64 rows a tenth of the HBM traffic of 32B on 8 GPUs.
    """
    if rows % (placement.parts("batch") * placement.parts("vocab")):
        return placement.spec(("batch",))
    return PartitionSpec((*placement.axes("batch"), *placement.axes("vocab")) or None)


def _next(settings: Settings, seen: Seen, progress: Progress, logits_bv, allowed_bw) -> tuple[Progress, Output]:
    """The part of `take` that runs on one device, for its own rows."""
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
    sampled_b, drawn_b = sample(shaped_bv, settings.sampling, progress.position)
    token_b, forced_b, budget = progress.budget.advance(sampled_b, settings.rules)
    thinking_b = budget.used > progress.budget.used
    reported = logprobs(logits_bv, token_b, settings.sampling.logprobs)
    output = Output(
        active_b, token_b, forced_b, thinking_b, reported.replace(sampled=jnp.where(forced_b, jnp.nan, drawn_b))
    )
    remaining_b = progress.remaining - 1
    ended_b = (~forced_b & (token_b[:, None] == settings.eos).any(axis=1)) | (remaining_b == 0)
    after = Progress(token_b, progress.length + 1, progress.position + 1, remaining_b, ~ended_b, budget)

    def where_active(new, old):
        return jnp.where(active_b, new, old)

    return jax.tree.map(where_active, after, progress), output


def to_all(model: Qwen3, small: Any) -> Any:
    """Replicate small arrays on all devices, for the hosts of all processes to read."""
    return jax.tree.map(lambda x: model.execution.placement.constrain(x, (None,) * x.ndim), small)


def small(experts_btlk: jax.Array | None, place: int | None = None) -> jax.Array | None:
    """Return experts as they are sent to the host, int16, of all places or of one."""
    if experts_btlk is None:
        return None
    return (experts_btlk if place is None else experts_btlk[:, place]).astype(jnp.int16)
