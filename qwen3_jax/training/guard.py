"""Skipping steps with outlying losses or gradients.

A step whose loss or gradient norm is not finite, or far above those of the last steps, leaves parameters and optimizer
unchanged. The rule is OLMo 2's (Team OLMo 2024, arXiv 2501.00656; `SkipStepOptimizer` in OLMo-core): skip when either is more
than 6 standard deviations above its mean over the last 128 steps, once half of these are there.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Guard:
    """Recent losses and gradient norms, part of the training state.

    Attributes:
        losses, norms: float32 [W], ring buffers of the last finite values.
        seen: int32, finite values written since the last restart.
        skipped: int32, steps skipped so far.
        in_row: int32, steps skipped since the last one that was taken.
    """

    losses: jax.Array
    norms: jax.Array
    seen: jax.Array
    skipped: jax.Array
    in_row: jax.Array


def fresh(window: int) -> Guard:
    """Return a guard with an empty window of `window` values."""
    zero = jnp.zeros((), jnp.int32)
    return Guard(jnp.zeros(window, jnp.float32), jnp.zeros(window, jnp.float32), zero, zero, zero)


def restarted(guard: Guard) -> Guard:
    """Return a guard with an empty window and the same counts: a new stage trains on other text."""
    return dataclasses.replace(guard, seen=jnp.zeros_like(guard.seen))


def judge(guard: Guard, loss: jax.Array, norm: jax.Array, sigmas: float) -> tuple[jax.Array, Guard]:
    """Return whether to take the step, and the guard after it.

    Every finite value enters the window, also of a skipped step: after a lasting change (new data) the spread grows until
    steps are taken again.

    Args:
        loss, norm: float32 scalars of this step.
        sigmas: how many standard deviations above the mean are still accepted; 0 accepts everything finite.
    """
    window = guard.losses.shape[0]
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    take = finite
    if sigmas:
        filled = jnp.arange(window) < guard.seen
        enough = guard.seen >= max(2, window // 2)
        for values, value in ((guard.losses, loss), (guard.norms, norm)):
            mean = jnp.mean(values, where=filled)
            spread = jnp.std(values, where=filled)
            take &= ~enough | (value - mean <= sigmas * spread)
    slot = guard.seen % window
    return take, Guard(
        losses=jnp.where(finite, guard.losses.at[slot].set(loss), guard.losses),
        norms=jnp.where(finite, guard.norms.at[slot].set(norm), guard.norms),
        seen=guard.seen + finite,
        skipped=guard.skipped + ~take,
        in_row=jnp.where(take, 0, guard.in_row + 1),
    )
