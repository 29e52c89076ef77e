"""The grouped product on TPU: `gmm` and `tgmm`, the Pallas kernels that come with JAX (after MegaBlocks, arXiv 2211.15841).

The gradient is ours, since JAX's uses one tiling for all three products and leaves rows of no group undefined.

Shapes: m rows sorted by expert, d width, e experts, f expert width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

_ROWS = 512  # of a tile
_BYTES = 2048  # of one row of a tile of weights: 1024 bf16 numbers; two such tiles and a float32 sum fit VMEM's 16 MiB


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def megablox_dot(x_md, w_edf, sizes_e, interpret: bool = False):
    """As `grouped.grouped_dot`; `interpret` runs the kernel as plain JAX, for tests where there is no TPU."""
    return _gmm(x_md, w_edf, sizes_e, False, interpret)


def _forward(x_md, w_edf, sizes_e, interpret):
    return _gmm(x_md, w_edf, sizes_e, False, interpret), (x_md, w_edf, sizes_e)


def _backward(interpret, kept, dy_mf):
    x_md, w_edf, sizes_e = kept
    dx_md = _gmm(dy_mf, w_edf, sizes_e, True, interpret)
    x_dm, dy_mf = _padded(x_md).T, _padded(dy_mf)
    tiling = functools.partial(_tiling, itemsize=x_md.dtype.itemsize)
    dw_edf = tgmm(x_dm, dy_mf, sizes_e, w_edf.dtype, tiling, interpret=interpret)
    return dx_md, dw_edf, None


megablox_dot.defvjp(_forward, _backward)


def _gmm(x_md, w_edf, sizes_e, transposed: bool, interpret: bool):
    """One product with the weights or their transposes; rows of no group are zero."""
    m = x_md.shape[0]
    tiling = functools.partial(_tiling, itemsize=x_md.dtype.itemsize)
    y_mf = gmm(_padded(x_md), w_edf, sizes_e, x_md.dtype, tiling, transpose_rhs=transposed, interpret=interpret)
    return jnp.where((jnp.arange(m) < sizes_e.sum())[:, None], y_mf[:m], 0)


def _row_tile(m: int) -> int:
    """Rows of a tile: 512, or for few rows all of them, rounded up to 16 (the sublanes of a bf16 register)."""
    return min(_ROWS, -(-m // 16) * 16)


def _padded(x_md: jax.Array) -> jax.Array:
    """Add rows up to a whole number of tiles; they belong to no group."""
    m = x_md.shape[0]
    return jnp.pad(x_md, ((0, -m % _row_tile(m)), (0, 0)))


def _tiling(m: int, k: int, n: int, itemsize: int) -> tuple[int, int, int]:
    """Return the tile of a product [m, k] x [k, n]."""
    return _row_tile(m), _column_tile(k, itemsize), _column_tile(n, itemsize)


def _column_tile(size: int, itemsize: int) -> int:
    """The largest multiple of 128 lanes that divides `size` and fits; all of a small or odd size."""
    most = _BYTES // itemsize
    if size <= most:
        return size
    return next((tile for tile in range(most, 0, -128) if size % tile == 0), most)
