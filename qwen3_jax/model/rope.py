"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and static YaRN (Peng et al. 2023, arXiv 2309.00071), and
the positions of Dual Chunk Attention (An et al. 2024, arXiv 2402.17463).

Pairs are (i, i + H/2), as in HF's `rotate_half`; angles and rotation are float32 for any compute type.

Shapes: b batch, t length, h pairs of a head (H / 2).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.config import Qwen3Config


def frequencies(config: Qwen3Config) -> tuple[np.ndarray, float]:
    """Return (radians per position of each pair, float32 [H / 2]; factor on cos and sin) of a config's RoPE."""
    size = config.head_dim
    # float32 powers, as transformers computes them: at position 100,000 a double's difference would show.
    periods = np.float32(config.rope_theta) ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    inverse = (1.0 / periods).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return inverse, 1.0

    original = scaling.original_max_position_embeddings or config.max_position_embeddings
    factor = scaling.factor or config.max_position_embeddings / original

    def temperature(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention_factor = scaling.attention_factor
    if attention_factor is None:
        attention_factor = temperature()
        if scaling.mscale and scaling.mscale_all_dim:
            attention_factor = temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)

    def dimension(rotations: float) -> float:
        """The pair that makes this many rotations within the original context (YaRN, section 3.2)."""
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low or 0.001), 0, 1)
    interpolated = (1.0 / (np.float32(factor) * periods)).astype(np.float32)
    return (interpolated * ramp + inverse * (1 - ramp)).astype(np.float32), attention_factor


class Angles(NamedTuple):
    """cos and sin of the rotations, float32 [B, T, H / 2] each.

    Attributes:
        keys: (cos, sin) for keys.
        queries: (cos, sin) for queries: against keys of the same chunk, of the chunk before, and of all earlier chunks.
            Without Dual Chunk Attention only the first.
    """

    keys: tuple[jax.Array, jax.Array]
    queries: tuple[tuple[jax.Array, jax.Array], ...]


def angles(config: Qwen3Config, positions_bt: jax.Array) -> Angles:
    """Return the angles for int32 positions [B, T]."""
    inverse, factor = frequencies(config)

    def cos_sin(positions_bt) -> tuple[jax.Array, jax.Array]:
        theta_bth = positions_bt.astype(jnp.float32)[:, :, None] * inverse
        return jnp.cos(theta_bth) * factor, jnp.sin(theta_bth) * factor

    dual = config.dual_chunk_attention_config
    if dual is None:
        plain = cos_sin(positions_bt)
        return Angles(plain, (plain,))
    # An et al. 2024, equations 3 to 7, with the bounds of Qwen2.5-1M's implementation in vLLM.
    within_bt = positions_bt % dual.chunk
    before_bt = jnp.minimum(within_bt + dual.chunk, dual.chunk_size)
    earlier_bt = jnp.full_like(within_bt, min(2 * dual.chunk - 1, dual.chunk_size))
    temperature_bt1 = jnp.ones((1, 1, 1))
    if dual.original_max_position_embeddings:
        lengths_bt1 = (positions_bt.astype(jnp.float32) + 1)[:, :, None]
        temperature_bt1 = jnp.maximum(0.1 * jnp.log(lengths_bt1 / dual.original_max_position_embeddings) + 1, 1)
    rotations = map(cos_sin, (within_bt, before_bt, earlier_bt))
    queries = tuple((cos * temperature_bt1, sin * temperature_bt1) for cos, sin in rotations)
    return Angles(cos_sin(within_bt), queries)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs of the last axis; cos and sin broadcast against x[..., : H / 2]."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
