"""RMSNorm and the dense MLP of a decoder block. Single-device maths.

Source: Qwen3 technical report, section 2; transformers `modeling_qwen3.py`.

Shapes: b batch, t length, d hidden, f MLP width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Execution, linear
from qwen3_jax.kernels.names import GATE
from qwen3_jax.model.lora import adapted
from qwen3_jax.model.params import Declare


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019), in float32."""

    def __init__(self, size: int, axis: str, config: Qwen3Config, declare: Declare):
        self.scale = declare.constant((size,), (axis,), 1.0)
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: Qwen3Config, declare: Declare, execution: Execution):
        d, f, std = config.hidden_size, config.intermediate_size, config.initializer_range
        self.gate = declare.normal((d, f), ("embed", "mlp"), std)
        self.up = declare.normal((d, f), ("embed", "mlp"), std)
        self.down = declare.normal((f, d), ("mlp", "embed"), std / (2 * config.num_hidden_layers) ** 0.5)
        self.adapters = declare.adapters(
            gate=("mlp.gate", self.gate, 1), up=("mlp.up", self.up, 1), down=("mlp.down", self.down, 1)
        )
        self.execution = execution

    def __call__(
        self,
        x_btd: jax.Array,
        segment_ids_bt: jax.Array | None = None,
        chosen_btn: jax.Array | None = None,
        routes: object = None,
    ) -> tuple[jax.Array, None]:
        """Return (output [B, T, D], None): the signature of `MoE`, which has a router."""
        del segment_ids_bt, routes
        gate_btf = checkpoint_name(self._linear("btd,df->btf", x_btd, "gate", chosen_btn), GATE)
        up_btf = self._linear("btd,df->btf", x_btd, "up", chosen_btn)
        hidden_btf = jax.nn.silu(gate_btf) * up_btf
        hidden_btf = self.execution.placement.constrain(hidden_btf, ("batch", "length", "mlp"))
        return self._linear("btf,fd->btd", hidden_btf, "down", chosen_btn), None

    def _linear(self, equation: str, x: jax.Array, name: str, chosen_btn: jax.Array | None) -> jax.Array:
        weight = adapted(getattr(self, name)[...], self.adapters, name, chosen_btn)
        return linear(equation, x, weight, self.execution)
