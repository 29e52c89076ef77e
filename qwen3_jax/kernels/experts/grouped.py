"""Experts by grouped products: rows sorted by expert, and each group multiplied by its expert's weights.

`grouped_mlp` runs on one device, or inside `shard_map` on each. Its products differ by platform:

| product      | platform | what it is                                                                               |
|--------------|----------|------------------------------------------------------------------------------------------|
| `tiles`      | any      | a loop over tiles, all three products in one (`experts.tiles`); for CPU, and for GPUs     |
|              |          | that Triton does not compile for                                                         |
| `megablox`   | TPU      | JAX's Pallas kernels `gmm` and `tgmm` (`experts.megablox`)                               |
| `triton`     | GPU      | Pallas kernels of our own (`experts.triton`)                                             |
| `ragged_dot` | CPU, TPU | `jax.lax.ragged_dot`, which XLA lowers; on GPU it multiplies every row with every expert |

Shapes: n tokens, m rows sorted by expert, d width, e experts, f expert width, k experts per token.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.card import Card
from qwen3_jax.kernels.experts import triton, triton_mlp
from qwen3_jax.kernels.experts.megablox import megablox_dot
from qwen3_jax.kernels.experts.megablox_mlp import Gathered, gathered_mlp
from qwen3_jax.kernels.experts.rows import sort_by_expert, sum_rows, take_rows, take_weights
from qwen3_jax.kernels.experts.stack import Stacked
from qwen3_jax.kernels.experts.tiles import tiles_mlp
from qwen3_jax.kernels.experts.triton_mlp import WidthFirst
from qwen3_jax.kernels.names import GATE
from qwen3_jax.kernels.quantized import dequantize, is_quantized

Product = Literal["tiles", "megablox", "triton", "ragged_dot"]


def choose_product(
    name: Literal["grouped", "triton", "ragged_dot"], platform: str, card: Card | None, dtype: Any
) -> Product:
    """Return the grouped product to use; "grouped" is the platform's best that can run.

    Args:
        name: what the user asked for.
        platform: "cpu", "gpu" or "tpu".
        card: the GPU.
        dtype: the compute type.

    Raises:
        UserError: a product was asked for by name that cannot run here.
    """
    if name == "grouped" and platform != "gpu":
        return "tiles" if platform == "cpu" else "megablox"
    needs = why_not(name, platform, card, dtype)
    if name == "grouped":
        return "tiles" if needs else "triton"
    if needs is not None:
        raise UserError(f"experts={name!r} needs {needs}; choose 'grouped'.")
    return name


def why_not(name: str, platform: str, card: Card | None, dtype: Any) -> str | None:
    """Return what a product ("grouped": a GPU's own) would need to run, or None where it can."""
    if name == "ragged_dot":
        dense = "a CPU or a TPU: XLA's compiler for GPUs multiplies every row with every expert"
        return dense if platform == "gpu" else None
    if platform != "gpu":
        return f"a GPU, and this is a {platform.upper()}"
    return triton.why_not(card, dtype)


def grouped_mlp(
    x_nd,
    index_nk,
    weight_nk,
    gate_edf,
    up_edf,
    down_efd,
    *,
    product: Product,
    card: Card | None = None,
    complete: bool = False,
):
    """Return the weighted sum of the chosen experts' outputs, [N, D] in x's dtype.

    Args:
        x_nd: tokens.
        index_nk: int32; E stands for an expert on another device, whose output is not added.
        weight_nk: the weights of the outputs.
        gate_edf, up_edf, down_efd: expert weights in x's dtype, or quantised; `Stacked` not for "tiles", `WidthFirst` only for
            "triton"; of `Gathered`, only for "megablox", `gate_edf` holds gate and up, and `up_edf` is None.
        product: see the table above.
        card: the GPU.
        complete: every row has its expert here: no index is E.
    """
    if product == "tiles":
        return tiles_mlp(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd)
    unpacked_by_kernel = product == "triton" and _unpacks(gate_edf, x_nd, card)
    if not unpacked_by_kernel and not isinstance(gate_edf, (Stacked, WidthFirst, Gathered)):
        gate_edf, up_edf, down_efd = (dequantize(w, x_nd.dtype) for w in (gate_edf, up_edf, down_efd))
    experts = gate_edf.experts if isinstance(gate_edf, (WidthFirst, Gathered)) else gate_edf.shape[0]
    rows = sort_by_expert(index_nk, experts)
    if isinstance(gate_edf, Gathered):
        return gathered_mlp(x_nd, weight_nk, rows, gate_edf, down_efd)
    if product == "triton" and not unpacked_by_kernel:
        return triton_mlp.triton_mlp(x_nd, weight_nk, rows, gate_edf, up_edf, down_efd, card, complete)
    dot = functools.partial(grouped_dot, sizes_e=rows.sizes_e, product=product, card=card)
    x_md = take_rows(x_nd, rows)
    gate_mf = checkpoint_name(dot(x_md, gate_edf), GATE)
    hidden_mf = jax.nn.silu(gate_mf) * dot(x_md, up_edf) * take_weights(weight_nk, rows)[:, None]
    return sum_rows(dot(hidden_mf, down_efd), rows)


def _unpacks(w_edf, x_nd, card: Card | None) -> bool:
    """Whether the kernel of `triton` unpacks these weights itself."""
    return is_quantized(w_edf) and triton.unpacks(w_edf, x_nd.dtype, card)


def grouped_dot(x_md, w_edf, sizes_e, *, product: Product, card: Card | None = None):
    """Multiply the first sizes_e[0] rows by w_edf[0], the next sizes_e[1] by w_edf[1] and so on; [M, F] in x's dtype.

    Rows past the sum of the sizes are zero, and so are their gradients: kernels leave them uninitialised.
    """
    if product == "triton":  # of other weights `triton_mlp` is faster
        return triton.quantized_dot(x_md, w_edf, sizes_e, card)
    if isinstance(w_edf, Stacked):
        w_edf, sizes_e = w_edf.groups(sizes_e)
    if product == "megablox":
        return megablox_dot(x_md, w_edf, sizes_e)
    inside_m1 = (jnp.arange(x_md.shape[0]) < sizes_e.sum())[:, None]
    # Masked on both sides: the second makes the output zero, and the first makes the gradient of the rows zero.
    x_md = jnp.where(inside_m1, x_md, 0)
    return jnp.where(inside_m1, jax.lax.ragged_dot(x_md, w_edf, sizes_e), 0).astype(x_md.dtype)
