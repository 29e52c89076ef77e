"""The SwiGLU experts of an MoE layer, applied to the tokens that were routed to them. Dropless.

    y_i = sum over the chosen experts e of  c_ie * down_e(silu(gate_e x_i) * up_e x_i)

| name         | what it does                                                    | where                               |
|--------------|-----------------------------------------------------------------|-------------------------------------|
| `dense`      | every expert on every token: E / k times the arithmetic         | anywhere; the reference of the tests |
| `grouped`    | rows sorted by expert, with the platform's product: tiles (CPU), | any mesh with expert = 1            |
|              | megablox (TPU), triton (GPU; tiles before sm_80)                |                                     |
| `triton`     | grouped, with Pallas kernels of our own                         | GPU from sm_80, expert = 1          |
| `ragged_dot` | grouped, with `jax.lax.ragged_dot` (2-3 GFLOP/s on CPU)         | CPU and TPU, expert = 1             |
| `all_gather` | grouped; every device sees all tokens of the expert axis        | meshes with expert > 1              |
| `all_to_all` | grouped; each token travels to its experts' devices             | meshes with expert > 1              |

`auto` is `grouped` if the expert axis is not split, else `all_to_all` on TPU and GPU and `all_gather` on CPU (whose
devices share one memory). Where the batch or the length does not divide over the mesh, as when one request is served by
many devices, the devices of those axes have the same tokens, each computes its own experts' share, and the shares are
summed; asking for a form by name is then an error. `auto` is `dense` under rules that split the weights in other ways.

Quantised weights (`kernels.quantized`) run on all of them: `tiles` unpacks one expert at a time, and only those that have
tokens; the others unpack all experts of one layer that the device holds.
"""

from qwen3_jax.kernels.experts.dispatch import expert_mlp

__all__ = ["expert_mlp"]
