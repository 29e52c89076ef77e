"""Output projection and cross-entropy in one function, chunk by chunk: only one chunk of logits is in memory.

    loss = sum_n w_n (log Z_n - z_n[target_n])  +  z_loss sum_n w_n (log Z_n)^2        z_n = W x_n,  Z_n = sum_v exp z_nv

(z-loss: Chowdhery et al. 2022, arXiv 2204.02311, section 5.) The gradient is linear in the incoming
gradient, a scalar, so the forward pass computes it with the loss, and logits are computed once.

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


class _Settings(NamedTuple):
    """Static settings. `vocab` and `embed` are the mesh axes that split the weight; `parts` is the size of `vocab`; a `frozen`
    weight has no gradient."""

    tied: bool
    z_loss: float
    chunk: int
    vocab: tuple[str, ...]
    embed: tuple[str, ...]
    parts: int
    frozen: bool


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
    mesh = placement.mesh
    if mesh is None or mesh.size == 1:
        local = _Settings(tied, z_loss, chunk, (), (), 1, frozen)
        total, parts = _token_loss(local, states_btd, weight, targets_bt, weights_bt)
        return TokenLoss(total, *parts)

    tokens, vocab, embed = placement.spec(("batch", "length")), placement.axes("vocab"), placement.axes("embed")
    names = ("vocab", "embed") if tied else ("embed", "vocab")
    local = _Settings(tied, z_loss, chunk, vocab, embed, placement.parts("vocab"), frozen)

    # Each device returns its own part, and the parts are summed outside the shard_map, so that the incoming gradient is
    # equal on all devices, whichever axes split or replicate an input.
    def share(*arrays):
        total, parts = _token_loss(local, *arrays)
        return jax.tree.map(lambda x: x[None], (total, *parts))

    shares = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(PartitionSpec(*tokens, None), placement.spec(names), tokens, tokens),
        out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )(states_btd, weight, targets_bt, weights_bt)
    # Devices along axes that split neither tokens nor vocabulary return equal parts.
    used = {*placement.axes("batch"), *placement.axes("length"), *vocab}
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
) -> jax.Array:
    """Return log p(target) of every token, float32 [B, T], without a gradient; arguments as for `token_loss`."""
    states_btd, weight = jax.lax.stop_gradient((states_btd, weight))
    mesh = placement.mesh
    if mesh is None or mesh.size == 1:
        return _log_probs(_Settings(tied, 0.0, chunk, (), (), 1, True), states_btd, weight, targets_bt)
    tokens = placement.spec(("batch", "length"))
    vocab, embed = placement.axes("vocab"), placement.axes("embed")
    local = _Settings(tied, 0.0, chunk, vocab, embed, placement.parts("vocab"), True)
    return jax.shard_map(
        functools.partial(_log_probs, local),
        mesh=mesh,
        in_specs=(
            PartitionSpec(*tokens, None),
            placement.spec(("vocab", "embed") if tied else ("embed", "vocab")),
            tokens,
        ),
        out_specs=tokens,
        check_vma=False,
    )(states_btd, weight, targets_bt)


def _log_probs(settings: _Settings, states_btd, weight, targets_bt):
    b, t, d = states_btd.shape
    weight = _whole(settings, weight.astype(states_btd.dtype))

    def chunk_of(rows):
        _, log_z_c, _, chosen_c = _logits(settings, rows[0], weight, rows[1])
        return chosen_c - log_z_c

    rows = states_btd.reshape(b * t, d), targets_bt.reshape(-1)
    if b * t <= settings.chunk:
        return chunk_of(rows).reshape(b, t)
    return jax.lax.map(chunk_of, _chunked(rows, b * t, settings.chunk)).reshape(-1)[: b * t].reshape(b, t)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_loss(settings: _Settings, states_btd, weight, targets_bt, weights_bt):
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
    dweight = above * dweight
    if settings.embed:
        dweight = jax.lax.psum_scatter(dweight, settings.embed, scatter_dimension=1 if settings.tied else 0, tiled=True)
    return dstates_btd, dweight.astype(like.dtype), None, None


_token_loss.defvjp(_forward, _backward)


def _scan(settings: _Settings, states_btd, weight, targets_bt, weights_bt, gradients: bool):
    """Compute the sums chunk by chunk; with `gradients`, also the gradients of the states and of the gathered weight."""
    b, t, d = states_btd.shape
    dtype = states_btd.dtype
    weight = _whole(settings, weight.astype(dtype))
    back = "cv,vd->cd" if settings.tied else "cv,dv->cd"
    outer = "cv,cd->vd" if settings.tied else "cd,cv->dv"

    def chunk_of(dweight, rows):
        x_cd, target_c, w_c = rows
        logits_cv, log_z_c, hit_cv, chosen_c = _logits(settings, x_cd, weight, target_c)
        cross_entropy = ((log_z_c - chosen_c) * w_c).sum()
        log_z_squared = (jnp.square(log_z_c) * w_c).sum()
        if not gradients:
            return None, (cross_entropy, log_z_squared, None)
        prob_cv = jnp.exp(logits_cv - log_z_c[:, None])
        dlogits_cv = (prob_cv * (1 + 2 * settings.z_loss * log_z_c)[:, None] - hit_cv) * w_c[:, None]
        dlogits_cv = dlogits_cv.astype(dtype)
        x_gradient_cd = jnp.einsum(back, dlogits_cv, weight, preferred_element_type=jnp.float32).astype(dtype)
        if settings.frozen:
            return None, (cross_entropy, log_z_squared, x_gradient_cd)
        pair = (dlogits_cv, x_cd) if settings.tied else (x_cd, dlogits_cv)
        return dweight + jnp.einsum(outer, *pair, preferred_element_type=jnp.float32), (
            cross_entropy,
            log_z_squared,
            x_gradient_cd,
        )

    rows = states_btd.reshape(b * t, d), targets_bt.reshape(-1), weights_bt.reshape(-1)
    dweight = jnp.zeros(weight.shape, jnp.float32) if gradients and not settings.frozen else None
    if b * t <= settings.chunk:
        dweight, (cross_entropy, log_z_squared, dx_nd) = chunk_of(dweight, rows)
    else:
        rows = _chunked(rows, b * t, settings.chunk)
        dweight, (cross_entropy, log_z_squared, dx_nd) = jax.lax.scan(chunk_of, dweight, rows)
        cross_entropy, log_z_squared = cross_entropy.sum(), log_z_squared.sum()
        dx_nd = None if dx_nd is None else dx_nd.reshape(-1, d)[: b * t]
    cross_entropy, log_z_squared = cross_entropy / settings.parts, log_z_squared / settings.parts
    sums = cross_entropy + settings.z_loss * log_z_squared, (cross_entropy, log_z_squared)
    return sums, (None if dx_nd is None else dx_nd.reshape(b, t, d), dweight)


def _whole(settings: _Settings, weight):
    """The weight gathered over the axes that split "embed"."""
    if settings.embed:
        weight = jax.lax.all_gather(weight, settings.embed, axis=1 if settings.tied else 0, tiled=True)
    return weight


def _logits(settings: _Settings, x_cd, weight, target_c):
    """Return logits [C, V], log Z [C], where the target is [C, V] and its logit [C]; V is this device's part."""
    logits_cv = jnp.einsum(
        "cd,vd->cv" if settings.tied else "cd,dv->cv", x_cd, weight, preferred_element_type=jnp.float32
    )
    top_c = _over(jax.lax.pmax, logits_cv.max(axis=-1), settings.vocab)
    log_z_c = jnp.log(_over(jax.lax.psum, jnp.exp(logits_cv - top_c[:, None]).sum(axis=-1), settings.vocab)) + top_c
    first = jax.lax.axis_index(settings.vocab) * logits_cv.shape[-1] if settings.vocab else 0
    hit_cv = jnp.arange(logits_cv.shape[-1])[None] == target_c[:, None] - first
    return logits_cv, log_z_c, hit_cv, _over(jax.lax.psum, jnp.where(hit_cv, logits_cv, 0).sum(axis=-1), settings.vocab)


def _chunked(rows, n: int, chunk: int):
    """Arrays [N, ...] as [chunks, C, ...], filled up with zeros (rows of weight 0)."""
    chunks = -(-n // chunk)
    size = -(-n // chunks)

    def of(x):
        return jnp.pad(x, ((0, chunks * size - n), *((0, 0),) * (x.ndim - 1))).reshape(chunks, size, *x.shape[1:])

    return jax.tree.map(of, rows)


def _over(reduce, x, axes: tuple[str, ...]):
    return reduce(x, axes) if axes else x
