"""The most probable tokens of every token's distribution and their log-probabilities, chunk by chunk.

Each device chooses among its own part of the vocabulary, and the best of all parts are chosen again, so that what devices
exchange is k candidates of a token and no logits.

Invariants: [B, T, V] logits never exist; the rest as in `cross_entropy`.

Shapes: b batch, t length, c tokens of a chunk, d hidden, k tokens that are chosen, v vocabulary of this device.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwen3_jax.training.output_chunks import Settings, by_chunks, logits_of, on_devices, settings_of, weight_spec, whole
from sharding import Placement


class TopLogProbs(NamedTuple):
    """The k most probable tokens of every place, the most probable first; of equal ones that with the lower id.

    Attributes:
        ids: int32 [B, T, K].
        log_probs: float32 [B, T, K], in nats.
    """

    ids: jax.Array
    log_probs: jax.Array


def top_log_probs(
    states_btd: jax.Array,
    weight: jax.Array,
    k: int,
    *,
    tied: bool,
    chunk: int = 1024,
    placement: Placement = Placement(),
    temperature: float = 1.0,
    needed_bt: jax.Array | None = None,
) -> TopLogProbs:
    """Return the k most probable tokens of every token's distribution, without a gradient.

    Args:
        states_btd, weight, tied, chunk, placement: as for `cross_entropy.token_loss`.
        k: at most the rows of the vocabulary.
        temperature: logits are divided by it.
        needed_bt: bool [B, T], the tokens whose result is used; that of others means nothing. None is all.

    Raises:
        ValueError: k is not from 1 to the rows of the vocabulary, or the temperature is not above 0.
    """
    rows = weight.shape[0 if tied else 1]
    if not 1 <= k <= rows:
        raise ValueError(f"k is {k}; it must be from 1 to {rows}, the rows of the vocabulary.")
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; a distribution needs one above 0.")
    settings = settings_of(placement, tied, chunk, frozen=True)._replace(temperature=temperature)
    tokens = placement.spec(("batch", "length"))
    deep = PartitionSpec(*tokens, None)
    inputs = deep, weight_spec(placement, tied), tokens
    compute = on_devices(placement, functools.partial(_on_device, settings, k), inputs, (deep, deep))
    return TopLogProbs(*compute(*jax.lax.stop_gradient((states_btd, weight)), needed_bt))


def _on_device(settings: Settings, k: int, states_btd, weight, needed_bt):
    """Return (ids, log p) of this device's tokens, equal on all parts of the vocabulary."""
    weight = whole(settings, weight.astype(states_btd.dtype))

    def chunk_of(_, rows):
        (x_cd,) = rows
        logits_cv, log_z_c, *_ = logits_of(settings, x_cd, weight, jnp.zeros(len(x_cd), jnp.int32))
        size = logits_cv.shape[-1]
        best_ck, ids_ck = jax.lax.top_k(logits_cv, min(k, size))
        if settings.vocab:
            ids_ck += jax.lax.axis_index(settings.vocab) * size
            best_ck, ids_ck = (jax.lax.all_gather(x, settings.vocab, axis=1, tiled=True) for x in (best_ck, ids_ck))
            best_ck, places_ck = jax.lax.top_k(best_ck, k)
            ids_ck = jnp.take_along_axis(ids_ck, places_ck, axis=1)
        return None, (ids_ck.astype(jnp.int32), best_ck - log_z_c[:, None])

    return by_chunks(settings, chunk_of, None, (states_btd,), needed_bt)[1]
