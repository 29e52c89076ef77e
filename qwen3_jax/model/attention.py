"""Grouped-query attention with RMSNorm on queries and keys before RoPE (QK-Norm). Single-device maths.

Source: Qwen3 technical report, section 2; transformers `modeling_qwen3.py`.

Shapes: b batch, t length, d hidden, n query heads, k key/value heads, h head size.
"""

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Chunks, Execution, Pages, attention, linear, paged_attention
from qwen3_jax.model.cache import LayerCache
from qwen3_jax.model.layers import RMSNorm
from qwen3_jax.model.lora import adapted
from qwen3_jax.model.params import Declare
from qwen3_jax.model.rope import Angles, rotate

# The name of queries, keys and values for policies of `jax.checkpoint`: as their products give them, since the gradients of the
# norms of queries and keys need those, and norms and rotations are computed again for less than products.
QKV = "qkv"


class Attention(nnx.Module):
    """o(softmax(rope(norm(q x)) rope(norm(k x))^T / sqrt(H)) v x), causal."""

    def __init__(self, config: Qwen3Config, declare: Declare, execution: Execution):
        d, n, k, h = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        std, bias = config.initializer_range, config.attention_bias
        self.q = declare.normal((d, n, h), ("embed", "heads", "head_dim"), std)
        self.k = declare.normal((d, k, h), ("embed", "kv_heads", "head_dim"), std)
        self.v = declare.normal((d, k, h), ("embed", "kv_heads", "head_dim"), std)
        # What is added to the residual stream starts smaller by its depth (GPT-2; Radford et al. 2019, section 2.3).
        self.o = declare.normal((n, h, d), ("heads", "head_dim", "embed"), std / (2 * config.num_hidden_layers) ** 0.5)
        self.q_norm = RMSNorm(h, "head_dim", config, declare)
        self.k_norm = RMSNorm(h, "head_dim", config, declare)
        self.q_bias = declare.constant((n, h), ("heads", "head_dim"), 0.0) if bias else None
        self.k_bias = declare.constant((k, h), ("kv_heads", "head_dim"), 0.0) if bias else None
        self.v_bias = declare.constant((k, h), ("kv_heads", "head_dim"), 0.0) if bias else None
        self.o_bias = declare.constant((d,), ("hidden",), 0.0) if bias else None
        self.adapters = declare.adapters(
            q=("attention.q", self.q, 1),
            k=("attention.k", self.k, 1),
            v=("attention.v", self.v, 1),
            o=("attention.o", self.o, 2),
        )
        self.dual_chunk = config.dual_chunk_attention_config
        self.execution = execution

    def __call__(
        self,
        x_btd: jax.Array,
        rope: Angles,
        segment_ids_bt: jax.Array | None,
        cache: LayerCache | None,
        chosen_btn: jax.Array | None = None,
    ) -> tuple[jax.Array, Pages | None]:
        """Return the attention output [B, T, D] and, with a cache, its pages with this call's keys and values."""
        q_btnh = checkpoint_name(self._linear("btd,dnh->btnh", x_btd, "q", chosen_btn), QKV)
        k_bkth = checkpoint_name(self._linear("btd,dkh->bkth", x_btd, "k", chosen_btn), QKV)
        v_bkth = checkpoint_name(self._linear("btd,dkh->bkth", x_btd, "v", chosen_btn), QKV)

        q_btnh = self.q_norm(q_btnh)
        q_btnh, *chunk_queries = [self._rotated(q_btnh, cos_sin) for cos_sin in rope.queries]
        cos_bth, sin_bth = rope.keys
        k_bkth = rotate(self.k_norm(k_bkth), cos_bth[:, None], sin_bth[:, None])

        if cache is None:
            out_btnh, pages = attention(q_btnh, k_bkth, v_bkth, segment_ids_bt, self.execution), None
        else:
            chunks = None if self.dual_chunk is None else Chunks(self.dual_chunk.chunk, *chunk_queries)
            out_btnh, pages = paged_attention(q_btnh, k_bkth, v_bkth, *cache, chunks, self.execution)
        return self._linear("btnh,nhd->btd", out_btnh, "o", chosen_btn), pages

    def _linear(self, equation: str, x: jax.Array, name: str, chosen_btn: jax.Array | None) -> jax.Array:
        weight = adapted(getattr(self, name)[...], self.adapters, name, chosen_btn)
        bias = getattr(self, f"{name}_bias")
        return linear(equation, x, weight, self.execution, None if bias is None else bias[...])

    def _rotated(self, q_btnh: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
        cos_bth, sin_bth = cos_sin
        q_btnh = rotate(q_btnh, cos_bth[:, :, None], sin_bth[:, :, None])
        return self.execution.placement.constrain(q_btnh, ("batch", "length", "heads", None))
