"""Pages of keys and values, in the layout that a platform's kernel reads.

| layout     | shape            | read by                                                                            |
|------------|------------------|------------------------------------------------------------------------------------|
| `HeadMajor` | [P, K, C, H] x 2 | `loop`, `triton`: the slots of one head are contiguous, for products on CPU         |
| `Combined` | [P, C, 2 K, H]   | `ragged` on TPU: keys and values of a slot alternate, one copy fetches both         |

A quantised cache holds 8-bit numbers, and `HeadMajor` a float32 scale for each slot and head.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct

CacheType = Literal["int8", "fp8"]
_UNROLLED = 8  # tokens that one iteration of a loop writes
_TYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}


def cache_dtype(dtype, quantized: CacheType | None):
    """Return the type in which a cache stores keys and values: `dtype`, or 8 bits."""
    return dtype if quantized is None else _TYPES[quantized]


@struct.dataclass
class HeadMajor:
    """Keys and values [D, P, K, C, H]; scales [D, P, K, C] where quantised. uint16 holds the bits of bfloat16."""

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    axes = ("batch", None, "kv_heads", None, None)

    @classmethod
    def empty(cls, d: int, pages: int, kv_heads: int, page_size: int, head_dim: int, dtype, quantized) -> HeadMajor:
        shape = (d, pages, kv_heads, page_size, head_dim)
        if quantized is None:
            return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        kind = cache_dtype(dtype, quantized)
        scales = (jnp.zeros(shape[:-1], jnp.float32) for _ in range(2))
        return cls(jnp.zeros(shape, kind), jnp.zeros(shape, kind), *scales)

    @property
    def count(self) -> int:
        """Pages of a shard."""
        return self.k.shape[1]

    @property
    def page_size(self) -> int:
        return self.k.shape[3]

    @property
    def kv_heads(self) -> int:
        return self.k.shape[2]

    def write(self, page_f, offset_f, k_fkh, v_fkh, one_by_one: bool) -> HeadMajor:
        """Write each token's keys and values to its page, for one shard (D = 1). `one_by_one`: without a scatter."""
        new = [k_fkh, v_fkh]
        if self.k_scale is not None:
            (k_fkh, k_scale_fk), (v_fkh, v_scale_fk) = (quantize(x_fkh, self.k.dtype) for x_fkh in new)
            new = [k_fkh, v_fkh, k_scale_fk, v_scale_fk]
        return HeadMajor(*_write(jax.tree.leaves(self), page_f, offset_f, new, one_by_one))

    def read(self, page_i: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return keys and values of pages of one shard, [I, K, C, H]; float32 if stored as 8 bits or as bits of bfloat16."""
        k_ikch, v_ikch = self.k[0, page_i], self.v[0, page_i]
        if k_ikch.dtype == jnp.uint16:
            k_ikch, v_ikch = (_float32(x.astype(jnp.uint32) << 16) for x in (k_ikch, v_ikch))
        if self.k_scale is None or self.v_scale is None:
            return k_ikch, v_ikch
        return (
            k_ikch.astype(jnp.float32) * self.k_scale[0, page_i][..., None],
            v_ikch.astype(jnp.float32) * self.v_scale[0, page_i][..., None],
        )


@struct.dataclass
class Combined:
    """Keys and values of each slot, alternating, [D, P, C, 2 K, H]."""

    kv: jax.Array

    axes = ("batch", None, None, "kv_heads", None)

    @classmethod
    def empty(cls, d: int, pages: int, kv_heads: int, page_size: int, head_dim: int, dtype) -> Combined:
        return cls(jnp.zeros((d, pages, page_size, 2 * kv_heads, head_dim), dtype))

    @property
    def count(self) -> int:
        """Pages of a shard."""
        return self.kv.shape[1]

    @property
    def page_size(self) -> int:
        return self.kv.shape[-3]

    def write(self, page_f, offset_f, k_fkh, v_fkh, one_by_one: bool) -> Combined:
        """Write each token's keys and values to its page, for one shard (D = 1)."""
        assert not one_by_one, "Combined is a layout of TPUs"
        f, k, h = k_fkh.shape
        kv = jnp.stack([k_fkh, v_fkh], axis=2).reshape(f, 2 * k, h)
        return Combined(self.kv.at[0, page_f, offset_f].set(kv.astype(self.kv.dtype)))


Pages = HeadMajor | Combined


def _write(
    pages: list[jax.Array], page_f: jax.Array, offset_f: jax.Array, new: list[jax.Array], one_by_one: bool
) -> list[jax.Array]:
    """Write arrays [F, K, ...] into arrays [1, P, K, C, ...]."""
    if pages[0].dtype == jnp.uint16:
        new = [jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16) for x in new]
    new = [x.astype(old.dtype) for x, old in zip(new, pages, strict=True)]
    if not one_by_one:
        return [old.at[0, page_f, :, offset_f].set(x) for x, old in zip(new, pages, strict=True)]
    # XLA:CPU lowers a scatter to a select between two whole pools, and an update of a reshaped pool to a copy.

    def write(i, pages):
        def put(x, old):
            start = (0, page_f[i], 0, offset_f[i]) + (0,) * (old.ndim - 4)
            return jax.lax.dynamic_update_slice(old, x[i][None, None, :, None], start)

        return [put(x, old) for x, old in zip(new, pages, strict=True)]

    count = len(page_f)
    return jax.lax.fori_loop(0, count, write, pages, unroll=min(count, _UNROLLED))


def _float32(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def quantize(x_fkh: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """Return 8-bit numbers and the float32 scale of each token and head, [F, K]; symmetric, by the largest magnitude."""
    limit = float(jnp.finfo(dtype).max) if jnp.issubdtype(dtype, jnp.floating) else float(jnp.iinfo(dtype).max)
    x_fkh = x_fkh.astype(jnp.float32)
    scale_fk = jnp.abs(x_fkh).max(axis=-1) / limit
    y_fkh = x_fkh / jnp.where(scale_fk == 0, 1, scale_fk)[..., None]
    return (y_fkh if jnp.issubdtype(dtype, jnp.floating) else jnp.round(y_fkh)).astype(dtype), scale_fk
