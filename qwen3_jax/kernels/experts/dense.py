"""The reference implementation: every expert on every token, with weight 0 where it was not chosen.

Einsums, which any mesh can split, at E / k times the arithmetic.

Shapes: n tokens, d width, e experts, f expert width, k experts per token, r ranks of all adapters.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.experts.stack import unstacked
from qwen3_jax.kernels.low_rank import LowRank
from qwen3_jax.kernels.quantized import dequantize


def dense_mlp(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd):
    """Return the weighted sum of the chosen experts' outputs, [N, D].

    Arguments as in `grouped.grouped_mlp`; weights may be `LowRank`, whose adapters may differ from token to token.
    """
    experts = gate_edf.shape[0]
    combine_ne = (jax.nn.one_hot(index_nk, experts, dtype=weight_nk.dtype) * weight_nk[:, :, None]).sum(axis=1)
    hidden_enf = jax.nn.silu(_product("nd,edf->enf", x_nd, gate_edf)) * _product("nd,edf->enf", x_nd, up_edf)
    hidden_enf *= combine_ne.T[:, :, None]
    return _product("enf,efd->nd", hidden_enf, down_efd)


def _product(equation: str, x, w):
    """Return einsum(equation, x, w); the base of a quantised weight is unpacked."""
    if not isinstance(w, LowRank):
        return jnp.einsum(equation, x, dequantize(unstacked(w), x.dtype))
    (tokens, weight), result = equation.split("->")[0].split(","), equation.split("->")[1]
    middle_enr = w.masked(jnp.einsum(f"{tokens},{weight[:2]}r->enr", x, w.a.astype(x.dtype)))
    addition = jnp.einsum(f"enr,er{weight[2]}->{result}", middle_enr, w.b.astype(x.dtype)) * w.scaling
    return _product(equation, x, w.base) + addition.astype(x.dtype)
