"""The grouped product on TPU: `gmm` and `tgmm`, the Pallas kernels that come with JAX (after MegaBlocks, arXiv 2211.15841).

The gradient is our own: JAX's uses one tiling for all three products and leaves rows without a group undefined.

Shapes: m rows sorted by expert, d width, e experts, f expert width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

_TILE_ROWS = 512
_TILE_BYTES = (
    2048  # per row of a tile of weights: 1024 bf16 numbers; two such tiles and a float32 sum fit VMEM's 16 MiB
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def megablox_dot(x_md, w_edf, sizes_e, interpret: bool = False):
    """`grouped.grouped_dot` by `gmm`; `interpret` runs the kernel as plain JAX, for tests without a TPU."""
    return _gmm(x_md, w_edf, sizes_e, False, interpret)


def _forward(x_md, w_edf, sizes_e, interpret):
    return _gmm(x_md, w_edf, sizes_e, False, interpret), (x_md, w_edf, sizes_e)


def _backward(interpret, residuals, dy_mf):
    x_md, w_edf, sizes_e = residuals
    dx_md = _gmm(dy_mf, w_edf, sizes_e, True, interpret)
    return dx_md, weight_gradient(x_md, dy_mf, sizes_e, w_edf.dtype, interpret), None


megablox_dot.defvjp(_forward, _backward)


def _gmm(x_md, w_edf, sizes_e, transposed: bool, interpret: bool):
    """Return the product with the weights or their transposes; rows without a group are zero."""
    y_mf = rows_product(x_md, w_edf, sizes_e, transposed, interpret)
    return jnp.where((jnp.arange(len(x_md)) < sizes_e.sum())[:, None], y_mf, 0)


def rows_product(x_md, w_edf, sizes_e, transposed: bool, interpret: bool):
    """Return the product with the weights or their transposes, in x's dtype; rows without a group are undefined."""
    tiling = functools.partial(_tiling, itemsize=x_md.dtype.itemsize)
    y_mf = gmm(_padded(x_md), w_edf, sizes_e, x_md.dtype, tiling, transpose_rhs=transposed, interpret=interpret)
    return y_mf[: len(x_md)]


def weight_gradient(x_md, dy_mf, sizes_e, dtype, interpret: bool):
    """Return the product of the transposed rows of each expert with `dy`, [E, D, F] in `dtype`."""
    itemsize = x_md.dtype.itemsize
    # VMEM holds two tiles of the result besides its float32 sum.
    widest = _TILE_BYTES // itemsize * (3 if jnp.dtype(dtype).itemsize > itemsize else 4) // 4

    def tiling(m: int, k: int, n: int) -> tuple[int, int, int]:
        return _row_tile(m), _column_tile(k, itemsize), _largest_tile(n, widest)

    return tgmm(_padded(x_md).T, _padded(dy_mf), sizes_e, dtype, tiling, interpret=interpret)


def _row_tile(m: int) -> int:
    """Return the rows of a tile: 512, or all rows if there are fewer, rounded up to 16 (sublanes of a bf16 register)."""
    return min(_TILE_ROWS, -(-m // 16) * 16)


def _padded(x_md: jax.Array) -> jax.Array:
    """Pad to a whole number of tiles with rows that belong to no group."""
    m = x_md.shape[0]
    return jnp.pad(x_md, ((0, -m % _row_tile(m)), (0, 0)))


def _tiling(m: int, k: int, n: int, itemsize: int) -> tuple[int, int, int]:
    """Return the tile of a product [m, k] x [k, n]."""
    return _row_tile(m), _column_tile(k, itemsize), _column_tile(n, itemsize)


def _column_tile(size: int, itemsize: int) -> int:
    return _largest_tile(size, _TILE_BYTES // itemsize)


def _largest_tile(size: int, widest: int) -> int:
    """Return the largest multiple of 128 lanes that divides `size` and is at most `widest`; all of a small or odd size."""
    if size <= widest:
        return size
    return next((tile for tile in range(widest, 0, -128) if size % tile == 0), widest)
