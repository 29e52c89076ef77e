"""The reference implementation: every expert on every token, with weight 0 where it was not chosen.

Einsums, which any mesh can split, at E / k times the arithmetic.

Shapes: n tokens, d width, e experts, f expert width, k experts per token.
"""

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.quantized import dequantize


def dense_mlp(x_nd, index_nk, weight_nk, gate_edf, up_edf, down_efd):
    """Return the weighted sum of the chosen experts' outputs, [N, D]; arguments as in `grouped.grouped_mlp`."""
    gate_edf, up_edf, down_efd = (dequantize(w, x_nd.dtype) for w in (gate_edf, up_edf, down_efd))
    experts = gate_edf.shape[0]
    combine_ne = (jax.nn.one_hot(index_nk, experts, dtype=weight_nk.dtype) * weight_nk[:, :, None]).sum(axis=1)
    hidden_enf = jax.nn.silu(jnp.einsum("nd,edf->enf", x_nd, gate_edf)) * jnp.einsum("nd,edf->enf", x_nd, up_edf)
    hidden_enf *= combine_ne.T[:, :, None]
    return jnp.einsum("enf,efd->nd", hidden_enf, down_efd)
