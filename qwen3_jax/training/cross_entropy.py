"""Output projection and what is read from its logits, chunk by chunk: only one chunk of logits is in memory.

    loss = sum_n w_n (log Z_n - z_n[target_n])  +  z_loss sum_n w_n (log Z_n)^2        z_n = W x_n,  Z_n = sum_v exp z_nv

(z-loss: Chowdhery et al. 2022, arXiv 2204.02311, section 5.) The gradient is linear in the incoming
gradient, a scalar, so the forward pass computes it with the loss, and logits are computed once.

    scores of token n: log p_n[target_n] and H_n = -sum_v p_nv log p_nv                p_n = softmax(z_n / temperature)

Their incoming gradients are one number per token, which only the backward pass knows, so it computes the logits again.

Invariants: [B, T, V] logits never exist; products run in the compute type, and all sums (softmax, loss, the weight's
gradient, also across devices) are float32. On a mesh each device computes its own tokens and its own part of the vocabulary;
the weight is gathered once over the axes that split "embed", and its gradient is scattered once.

Shapes: b batch, t length, n tokens, c tokens of a chunk, d hidden, v vocabulary (on this device, in the shard-mapped part).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwen3_jax.training.output_chunks import (
    Settings,
    by_chunks,
    entropy_of,
    gradient_axes,
    logits_of,
    on_devices,
    over,
    prob_times,
    products,
    scattered,
    settings_of,
    weight_spec,
    whole,
)
from sharding import Placement


class TokenLoss(NamedTuple):
    """Weighted sums over all tokens, float32 scalars; gradients flow through `total` alone.

    Attributes:
        total: cross_entropy + z_loss * log_z_squared.
        cross_entropy: of -log p(target), in nats.
        log_z_squared: of (log Z)^2.
    """

    total: jax.Array
    cross_entropy: jax.Array
    log_z_squared: jax.Array


class TokenScores(NamedTuple):
    """What a model's distribution says of every token; gradients flow through both. Values at tokens that are not needed mean
    nothing.

    Attributes:
        log_probs: float32 [B, T], log p(target), in nats.
        entropy: float32 [B, T], of the whole distribution, in nats.
    """

    log_probs: jax.Array
    entropy: jax.Array


def token_loss(
    states_btd: jax.Array,
    weight: jax.Array,
    targets_bt: jax.Array,
    weights_bt: jax.Array,
    *,
    tied: bool,
    z_loss: float = 0.0,
    chunk: int = 1024,
    placement: Placement = Placement(),
    frozen: bool = False,
) -> TokenLoss:
    """Return the weighted sums of cross-entropy and z-loss over a batch.

    Args:
        states_btd: final hidden states, in the compute type.
        weight: [D, V], or the embedding [V, D] when `tied`; any float type, in which its gradient is returned.
        targets_bt: int32.
        weights_bt: float32, 0 for tokens that are not learned.
        tied: the weight is the embedding.
        z_loss: coefficient of (log Z)^2.
        chunk: tokens per device whose logits are in memory at a time.
        placement: of the arrays.
        frozen: the weight is not trained: its gradient is neither computed nor returned.
    """
    mesh, local = placement.mesh, settings_of(placement, tied, chunk, frozen, z_loss)
    if mesh is None or mesh.size == 1:
        total, parts = _token_loss(local, states_btd, weight, targets_bt, weights_bt)
        return TokenLoss(total, *parts)
    tokens = placement.spec(("batch", "length"))

    # Each device returns its own part, and the parts are summed outside the shard_map, so that the incoming gradient is
    # equal on all devices, whichever axes split or replicate an input.
    def share(*arrays):
        total, parts = _token_loss(local, *arrays)
        return jax.tree.map(lambda x: x[None], (total, *parts))

    shares = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(PartitionSpec(*tokens, None), weight_spec(placement, tied), tokens, tokens),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )(states_btd, weight, targets_bt, weights_bt)
    # Devices along axes that split neither tokens nor vocabulary return equal parts.
    used = {*local.tokens, *local.vocab}
    copies = math.prod(size for axis, size in mesh.shape.items() if axis not in used)
    return TokenLoss(*(x.sum() / copies for x in shares))


def token_log_probs(
    states_btd: jax.Array,
    weight: jax.Array,
    targets_bt: jax.Array,
    *,
    tied: bool,
    chunk: int = 1024,
    placement: Placement = Placement(),
    needed_bt: jax.Array | None = None,
) -> jax.Array:
    """Return log p(target) of every token, float32 [B, T], without a gradient; arguments as for `token_scores`."""
    states_btd, weight = jax.lax.stop_gradient((states_btd, weight))
    return token_scores(
        states_btd, weight, targets_bt, tied=tied, chunk=chunk, placement=placement, needed_bt=needed_bt
    ).log_probs


def token_scores(
    states_btd: jax.Array,
    weight: jax.Array,
    targets_bt: jax.Array,
    *,
    tied: bool,
    chunk: int = 1024,
    placement: Placement = Placement(),
    frozen: bool = False,
    temperature: float = 1.0,
    banned_bt: jax.Array | None = None,
    banned_ids: tuple[int, ...] = (),
    needed_bt: jax.Array | None = None,
) -> TokenScores:
    """Return log p(target) and the entropy of every token's distribution, differentiable by the states and the weight.

    Args:
        states_btd, weight, targets_bt, tied, chunk, placement, frozen: as for `token_loss`.
        temperature: logits are divided by it.
        banned_bt: bool [B, T], where the tokens `banned_ids` are left out of the distribution; None is nowhere. A target
            that is left out has log p = -inf.
        banned_ids: the tokens, ascending or not.
        needed_bt: bool [B, T], where the values are used; the incoming gradients of others are 0. None is everywhere.

    Raises:
        ValueError: the temperature is not above 0, or only one of `banned_bt` and `banned_ids` is given.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; a distribution needs one above 0.")
    if (banned_bt is None) != (not banned_ids):
        raise ValueError("give banned_bt and banned_ids together.")
    settings = settings_of(placement, tied, chunk, frozen)._replace(temperature=temperature, banned=tuple(banned_ids))
    return TokenScores(*_token_scores(settings, placement, states_btd, weight, targets_bt, banned_bt, needed_bt))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _token_scores(settings: Settings, placement: Placement, states_btd, weight, targets_bt, banned_bt, needed_bt):
    """Return (log p, entropy). Outside of shard_map, so that the backward pass says itself what is summed over which axes."""
    tokens = placement.spec(("batch", "length"))
    inputs = PartitionSpec(*tokens, None), weight_spec(placement, settings.tied), *(tokens,) * 3
    compute = on_devices(placement, functools.partial(_scores, settings), inputs, (tokens, tokens))
    return compute(states_btd, weight, targets_bt, banned_bt, needed_bt)


def _scores_forward(settings, placement, states_btd, weight, targets_bt, banned_bt, needed_bt):
    log_prob_bt, entropy_bt = _token_scores(settings, placement, states_btd, weight, targets_bt, banned_bt, needed_bt)
    return (log_prob_bt, entropy_bt), (states_btd, weight, targets_bt, banned_bt, needed_bt, entropy_bt)


def _scores_backward(settings, placement, residuals, above):
    tokens, matrix = placement.spec(("batch", "length")), weight_spec(placement, settings.tied)
    states = PartitionSpec(*tokens, None)
    summed, copies = gradient_axes(placement, settings)
    gradients = on_devices(
        placement,
        functools.partial(_scores_gradients, settings, summed, copies),
        (states, matrix, *(tokens,) * 6),
        (states, None if settings.frozen else matrix),
    )
    return *gradients(*residuals, *above), None, None, None


_token_scores.defvjp(_scores_forward, _scores_backward)


def _scores(settings: Settings, states_btd, weight, targets_bt, banned_bt, needed_bt):
    """Return (log p, entropy) of this device's tokens, equal on all parts of the vocabulary."""
    weight = whole(settings, weight.astype(states_btd.dtype))

    def chunk_of(_, rows):
        x_cd, target_c, banned_c = rows
        logits_cv, log_z_c, _, chosen_c = logits_of(settings, x_cd, weight, target_c, banned_c)
        log_prob_cv = logits_cv - log_z_c[:, None]
        entropy_c = entropy_of(settings, log_prob_cv)
        return None, (chosen_c - log_z_c, entropy_c)

    return by_chunks(settings, chunk_of, None, (states_btd, targets_bt, banned_bt), needed_bt)[1]


def _scores_gradients(
    settings: Settings, summed: tuple[str, ...], copies: int,
    states_btd, weight, targets_bt, banned_bt, needed_bt, entropy_bt, dlog_prob_bt, dentropy_bt,
):  # fmt: skip
    """Return the gradients of the states and of this device's part of the weight.

    d log p[target] / d z_v = [v = target] - p_v            d H / d z_v = -p_v (log p_v + H)
    """
    dtype, like = states_btd.dtype, weight.dtype
    weight = whole(settings, weight.astype(dtype))

    def chunk_of(dweight, rows):
        x_cd, target_c, banned_c, entropy_c, dlog_prob_c, dentropy_c = rows
        logits_cv, log_z_c, hit_cv, _ = logits_of(settings, x_cd, weight, target_c, banned_c)
        log_prob_cv = logits_cv - log_z_c[:, None]
        slope_cv = dlog_prob_c[:, None] * (hit_cv - jnp.exp(log_prob_cv))
        slope_cv -= dentropy_c[:, None] * prob_times(log_prob_cv, log_prob_cv + entropy_c[:, None])
        dx_cd, dweight = products(settings, (slope_cv / settings.temperature).astype(dtype), x_cd, weight, dweight)
        return dweight, over(jax.lax.psum, dx_cd, settings.vocab).astype(dtype)

    dweight = None if settings.frozen else jnp.zeros(weight.shape, jnp.float32)
    rows = states_btd, targets_bt, banned_bt, entropy_bt, dlog_prob_bt, dentropy_bt
    dweight, dstates_btd = by_chunks(settings, chunk_of, dweight, rows, needed_bt)
    if settings.frozen:
        return dstates_btd, None
    dweight = over(jax.lax.psum, dweight, summed)
    return dstates_btd, (scattered(settings, dweight) / copies).astype(like)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(settings: Settings, states_btd, weight, targets_bt, weights_bt):
    """Return (total, (cross_entropy, log_z_squared)) of this device's tokens, divided by the parts of the vocabulary."""
    sums, _ = _scan(settings, states_btd, weight, targets_bt, weights_bt, gradients=False)
    return sums


def _forward(settings, states_btd, weight, targets_bt, weights_bt):
    sums, gradients = _scan(settings, states_btd, weight, targets_bt, weights_bt, gradients=True)
    return sums, (*gradients, jnp.zeros((0,), weight.dtype))


def _backward(settings, residuals, above):
    dstates_btd, dweight, like = residuals
    above = above[0]
    dstates_btd = (above * dstates_btd.astype(jnp.float32)).astype(dstates_btd.dtype)
    if settings.frozen:
        return dstates_btd, None, None, None
    return dstates_btd, scattered(settings, above * dweight).astype(like.dtype), None, None


_token_loss.defvjp(_forward, _backward)


def _scan(settings: Settings, states_btd, weight, targets_bt, weights_bt, gradients: bool):
    """Compute the sums chunk by chunk; with `gradients`, also the gradients of the states and of the gathered weight."""
    dtype = states_btd.dtype
    weight = whole(settings, weight.astype(dtype))

    def chunk_of(dweight, rows):
        x_cd, target_c, w_c = rows
        logits_cv, log_z_c, hit_cv, chosen_c = logits_of(settings, x_cd, weight, target_c)
        terms_c = (log_z_c - chosen_c) * w_c, jnp.square(log_z_c) * w_c
        if not gradients:
            return None, (*terms_c, None)
        prob_cv = jnp.exp(logits_cv - log_z_c[:, None])
        dlogits_cv = (prob_cv * (1 + 2 * settings.z_loss * log_z_c)[:, None] - hit_cv) * w_c[:, None]
        dx_cd, dweight = products(settings, dlogits_cv.astype(dtype), x_cd, weight, dweight)
        return dweight, (*terms_c, dx_cd.astype(dtype))

    dweight = jnp.zeros(weight.shape, jnp.float32) if gradients and not settings.frozen else None
    rows = states_btd, targets_bt, weights_bt
    dweight, (*terms_bt, dstates_btd) = by_chunks(settings, chunk_of, dweight, rows, weights_bt != 0)
    cross_entropy, log_z_squared = (x.sum() / settings.parts for x in terms_bt)
    sums = cross_entropy + settings.z_loss * log_z_squared, (cross_entropy, log_z_squared)
    return sums, (dstates_btd, dweight)
