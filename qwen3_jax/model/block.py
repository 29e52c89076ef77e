"""One decoder layer.

Shapes: b batch, t length, d hidden, n adapters side by side.
"""

import jax
from flax import nnx

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Execution, Pages
from qwen3_jax.model.attention import Attention
from qwen3_jax.model.cache import LayerCache
from qwen3_jax.model.layers import MLP, RMSNorm
from qwen3_jax.model.moe import MoE, Routed, Routes
from qwen3_jax.model.params import Declare
from qwen3_jax.model.rope import Angles


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or a stack of equal blocks to be scanned over (`declare.stack`)."""

    def __init__(self, config: Qwen3Config, declare: Declare, execution: Execution, moe: bool):
        self.attention_norm = RMSNorm(config.hidden_size, "hidden", config, declare)
        self.attention = Attention(config, declare, execution)
        self.mlp_norm = RMSNorm(config.hidden_size, "hidden", config, declare)
        self.mlp = MoE(config, declare, execution) if moe else MLP(config, declare, execution)
        self.moe = moe
        self.stack = declare.stack
        self.execution = execution

    def __call__(
        self,
        x_btd: jax.Array,
        rope: Angles,
        segment_ids_bt: jax.Array | None,
        cache: LayerCache | None,
        chosen_btn: jax.Array | None = None,
        routes: Routes | None = None,
    ) -> tuple[jax.Array, Pages | None, Routed | None]:
        """Return the block's output [B, T, D], the pages of its cache, and where its router sent the tokens."""
        attended_btd, pages = self.attention(self.attention_norm(x_btd), rope, segment_ids_bt, cache, chosen_btn)
        x_btd = self._placed(x_btd + attended_btd)
        mlp_btd, routed = self.mlp(self.mlp_norm(x_btd), segment_ids_bt, chosen_btn, routes)
        return self._placed(x_btd + mlp_btd), pages, routed

    def _placed(self, x_btd: jax.Array) -> jax.Array:
        return self.execution.placement.constrain(x_btd, ("batch", "length", "hidden"))
