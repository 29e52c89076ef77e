"""Experts by grouped products: rows sorted by expert, and each group multiplied by its expert's weights.

`grouped_mlp` runs on one device, or inside `shard_map` on each. Its products differ by platform:

| product      | platform | what it is                                                                          |
|--------------|----------|-------------------------------------------------------------------------------------|
| `tiles`      | CPU      | a loop over tiles, all three products in one (`experts.tiles`)                      |
| `megablox`   | TPU      | JAX's Pallas kernels `gmm` and `tgmm` (`experts.megablox`)                          |
| `tokamax`    | GPU      | tokamax's kernels (Mosaic GPU, else Triton); where tokamax is installed             |
| `ragged_dot` | any      | `jax.lax.ragged_dot`, which XLA lowers; on GPU where tokamax is not installed      |

Shapes: n tokens, m rows sorted by expert, d width, e experts, f expert width, k experts per token.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.experts.megablox import megablox_dot
from qwen3_jax.kernels.experts.rows import sort_by_expert, sum_rows, take_rows, take_weights
from qwen3_jax.kernels.experts.stack import Stacked
from qwen3_jax.kernels.experts.tiles import tiles_mlp
from qwen3_jax.kernels.quantized import dequantize

Product = Literal["tiles", "megablox", "tokamax", "ragged_dot"]


def choose_product(name: Literal["grouped", "tokamax", "ragged_dot"], platform: str) -> Product:
    """Return the grouped product to use; "grouped" is the platform's best that is installed.

    Raises:
        UserError: tokamax was asked for by name on another platform than a GPU, or is not installed.
    """
    installed = importlib.util.find_spec("tokamax") is not None
    if name == "grouped":
        best: dict[str, Product] = {"cpu": "tiles", "tpu": "megablox"}
        return best.get(platform, "tokamax" if installed else "ragged_dot")
    if name == "tokamax" and platform != "gpu":
        raise UserError(f"experts='tokamax' runs on GPUs; this program is for {platform}. Choose 'grouped'.")
    if name == "tokamax" and not installed:
        raise UserError("experts='tokamax' needs the tokamax package: pip install tokamax, or choose 'ragged_dot'.")
    return name


def grouped_mlp(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd, *, product: Product):
    """Return the weighted sum of the chosen experts' outputs, [N, D] in x's dtype.

    Args:
        x_nd: tokens.
        index_nk: int32; E stands for an expert on another device, whose output is not added.
        weight_nk: the weights of the outputs.
        gate_edf, up_edf, down_efd: expert weights in x's dtype, or quantised; `Stacked` not for "tiles".
        product: see the table above.
    """
    if product == "tiles":
        return tiles_mlp(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd)
    if not isinstance(gate_edf, Stacked):
        gate_edf, up_edf, down_efd = (dequantize(w, x_nd.dtype) for w in (gate_edf, up_edf, down_efd))
    rows = sort_by_expert(index_nk, gate_edf.shape[0])
    dot = functools.partial(grouped_dot, sizes_e=rows.sizes_e, product=product)
    x_md = take_rows(x_nd, rows)
    hidden_mf = jax.nn.silu(dot(x_md, gate_edf)) * dot(x_md, up_edf) * take_weights(weight_nk, rows)[:, None]
    return sum_rows(dot(hidden_mf, down_efd), rows)


def grouped_dot(x_md, w_edf, sizes_e, *, product: Product):
    """Multiply the first sizes_e[0] rows by w_edf[0], the next sizes_e[1] by w_edf[1] and so on; [M, F] in x's dtype.

    Rows past the sum of the sizes are zero, and so are their gradients: kernels leave them uninitialised.
    """
    if isinstance(w_edf, Stacked):
        w_edf, sizes_e = w_edf.groups(sizes_e)
    if product == "megablox":
        return megablox_dot(x_md, w_edf, sizes_e)
    if product == "tokamax":
        import tokamax

        # Both are kernels; tokamax's default would fall back to XLA silently.
        dot: Callable = functools.partial(tokamax.ragged_dot, implementation=("mosaic", "triton"))
    else:
        dot = jax.lax.ragged_dot
    inside_m1 = (jnp.arange(x_md.shape[0]) < sizes_e.sum())[:, None]
    # Masked on both sides: the second makes the output zero, and the first makes the gradient of the rows zero.
    x_md = jnp.where(inside_m1, x_md, 0)
    return jnp.where(inside_m1, dot(x_md, w_edf, sizes_e), 0).astype(x_md.dtype)
