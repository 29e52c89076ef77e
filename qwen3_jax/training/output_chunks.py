"""The output projection in chunks of tokens, on each device for its own part of the vocabulary: what all losses are made of.

Functions are for the inside of a shard_map: arrays are this device's parts, and `Settings` says over which axes to sum.

Shapes: b batch, t length, n tokens, c tokens of a chunk, d hidden, v vocabulary of this device.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from qwen3_jax.training.zeros import zeros_of
from sharding import Placement
from sharding.scatter import scatter_sum


class Settings(NamedTuple):
    """Static settings. `vocab` and `embed` are the mesh axes that split the weight, `tokens` those that split batch and length;
    `parts` is the size of `vocab`; a `frozen` weight has no gradient."""

    tied: bool
    z_loss: float
    chunk: int
    vocab: tuple[str, ...]
    embed: tuple[str, ...]
    tokens: tuple[str, ...]
    parts: int
    frozen: bool
    mesh: Mesh | None
    temperature: float = 1.0
    banned: tuple[int, ...] = ()


def settings_of(placement: Placement, tied: bool, chunk: int, frozen: bool, z_loss: float = 0.0) -> Settings:
    """Return the settings of a mesh; arguments as for `cross_entropy.token_loss`."""
    tokens = *placement.axes("batch"), *placement.axes("length")
    vocab, embed = placement.axes("vocab"), placement.axes("embed")
    return Settings(tied, z_loss, chunk, vocab, embed, tokens, placement.parts("vocab"), frozen, placement.mesh)


def weight_spec(placement: Placement, tied: bool) -> PartitionSpec:
    """Return how the weight of the projection is split, or the embedding where `tied`."""
    return placement.spec(("vocab", "embed") if tied else ("embed", "vocab"))


def on_devices(placement: Placement, function, inputs, outputs):
    """A function of each device's part of arrays as one of the whole arrays."""
    mesh = placement.mesh
    if mesh is None or mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def gradient_axes(placement: Placement, settings: Settings) -> tuple[tuple[str, ...], int]:
    """Return the axes over which the gradient of the weight is summed, and the number of devices with the same tokens.

    The gradient is a sum over devices with other tokens; those with the same tokens must count once. Axes that split "embed"
    are summed over by `scattered`.
    """
    tokens, embed, mesh = settings.tokens, settings.embed, placement.mesh
    summed = tuple(axis for axis in tokens if axis not in embed)
    return summed, 1 if mesh is None else math.prod(mesh.shape[axis] for axis in embed if axis not in tokens)


def by_chunks(settings: Settings, chunk_of, carry, arrays, needed_bt=None):
    """Scan a function (carry, rows) -> (carry, rows) over chunks of arrays [B, T, ...]; return what it returns, [B, T, ...].

    With `needed_bt` the needed tokens are moved together, and chunks without any, for instance of prompts, are not computed:
    the carry stays, and what is returned is 0. What is returned of tokens that are not needed therefore means nothing.
    """
    b, t = arrays[0].shape[:2]
    n = b * t
    rows = jax.tree.map(lambda x: jnp.asarray(x).reshape(n, *x.shape[2:]), arrays)
    if n <= settings.chunk:
        carry, out = chunk_of(carry, rows)
    elif needed_bt is None:
        carry, out = jax.lax.scan(chunk_of, carry, chunked(rows, n, settings.chunk))
        out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)
    else:
        carry, out = _needed_chunks(settings, chunk_of, carry, rows, needed_bt.reshape(n))
    return carry, jax.tree.map(lambda x: x.reshape(b, t, *x.shape[1:]), out)


def _needed_chunks(settings: Settings, chunk_of, carry, rows, needed_n):
    """`by_chunks` of rows [N, ...]."""
    count, order_n = needed_n.sum(), jnp.argsort(~needed_n, stable=True)
    chunks = chunked(jax.tree.map(lambda x: x[order_n], rows), len(needed_n), settings.chunk)
    number, size = jax.tree.leaves(chunks)[0].shape[:2]
    # Collectives over parts of the vocabulary are inside of a chunk, so all devices compute equally many.
    count = over(jax.lax.pmax, count, settings.tokens) if settings.vocab else count

    def computed_or_not(carry, chunk):
        first, chunk = chunk
        return jax.lax.cond(
            first < count,
            lambda: chunk_of(carry, chunk),
            lambda: (carry, zeros_of(lambda: chunk_of(carry, chunk)[1])),
        )

    carry, out = jax.lax.scan(computed_or_not, carry, (size * jnp.arange(number), chunks))
    place_n = jnp.argsort(order_n)
    return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[place_n], out)


def products(settings: Settings, dlogits_cv, x_cd, weight, dweight):
    """Return the gradient of the states, float32, of this part of the vocabulary; and that of the weight, added to `dweight`
    (None where it is frozen)."""
    back, outer = ("cv,vd->cd", "cv,cd->vd") if settings.tied else ("cv,dv->cd", "cd,cv->dv")
    dx_cd = jnp.einsum(back, dlogits_cv, weight, preferred_element_type=jnp.float32)
    if dweight is not None:
        pair = (dlogits_cv, x_cd) if settings.tied else (x_cd, dlogits_cv)
        dweight += jnp.einsum(outer, *pair, preferred_element_type=jnp.float32)
    return dx_cd, dweight


def scattered(settings: Settings, dweight):
    """The sum of gradients of the gathered weight over the axes that split "embed", this device's part of it."""
    if settings.embed:
        assert settings.mesh is not None
        dweight = scatter_sum(dweight, settings.embed, 1 if settings.tied else 0, settings.mesh)
    return dweight


def whole(settings: Settings, weight):
    """The weight gathered over the axes that split "embed"."""
    if settings.embed:
        weight = jax.lax.all_gather(weight, settings.embed, axis=1 if settings.tied else 0, tiled=True)
    return weight


def logits_of(settings: Settings, x_cd, weight, target_c, banned_c=None):
    """Return logits [C, V], log Z [C], where the target is [C, V] and its logit [C]; V is this device's part.

    They are divided by the temperature; those of the banned tokens are -inf where `banned_c`.
    """
    logits_cv = jnp.einsum(
        "cd,vd->cv" if settings.tied else "cd,dv->cv", x_cd, weight, preferred_element_type=jnp.float32
    )
    if settings.temperature != 1:
        logits_cv /= settings.temperature
    first = jax.lax.axis_index(settings.vocab) * logits_cv.shape[-1] if settings.vocab else 0
    if banned_c is not None:
        banned_v = jnp.isin(jnp.arange(logits_cv.shape[-1]) + first, jnp.asarray(settings.banned))
        logits_cv = jnp.where((banned_c[:, None] != 0) & banned_v[None], -jnp.inf, logits_cv)
    top_c = over(jax.lax.pmax, logits_cv.max(axis=-1), settings.vocab)
    log_z_c = jnp.log(over(jax.lax.psum, jnp.exp(logits_cv - top_c[:, None]).sum(axis=-1), settings.vocab)) + top_c
    hit_cv = jnp.arange(logits_cv.shape[-1])[None] == target_c[:, None] - first
    return logits_cv, log_z_c, hit_cv, over(jax.lax.psum, jnp.where(hit_cv, logits_cv, 0).sum(axis=-1), settings.vocab)


def prob_times(log_prob_cv, factor_cv):
    """Return p times a factor, 0 where p is 0: a token that is left out has log p = -inf."""
    return jnp.where(log_prob_cv > -jnp.inf, jnp.exp(log_prob_cv) * factor_cv, 0)


def entropy_of(settings: Settings, log_prob_cv):
    """Return the entropy of each token's distribution over the whole vocabulary, [C], in nats."""
    return -over(jax.lax.psum, prob_times(log_prob_cv, log_prob_cv).sum(axis=-1), settings.vocab)


def chunked(rows, n: int, chunk: int):
    """Arrays [N, ...] as [chunks, C, ...], filled up with zeros (rows of weight 0)."""
    chunks = -(-n // chunk)
    size = -(-n // chunks)

    def of(x):
        return jnp.pad(x, ((0, chunks * size - n), *((0, 0),) * (x.ndim - 1))).reshape(chunks, size, *x.shape[1:])

    return jax.tree.map(of, rows)


def over(reduce, x, axes: tuple[str, ...]):
    """A collective over axes, of which there may be none."""
    return reduce(x, axes) if axes else x
