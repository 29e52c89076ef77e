"""The parts of a decoder block: RMSNorm, attention with QK-Norm, SwiGLU. Single-device maths.

Source: Qwen3 technical report, section 2; transformers `modeling_qwen3.py`.

Shapes: b batch, t length, d hidden, n query heads, k key/value heads, h head size, f MLP width, s cache slots.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Chunks, Kernels, Pages, Quantization, Rows, attention, linear, paged_attention
from qwen3_jax.model.params import Declare
from qwen3_jax.model.rope import Angles, rotate
from sharding import Placement


class LayerCache(NamedTuple):
    """One layer's part of a cache.

    Attributes:
        pages: the pool of the layer's group.
        rows: where the rows' pages are.
        first_page: where in the pool this layer's pages begin.
    """

    pages: Pages
    rows: Rows
    first_page: jax.Array | int


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis (Zhang & Sennrich 2019), in float32."""

    def __init__(self, size: int, axis: str, config: Qwen3Config, declare: Declare):
        self.scale = declare.constant((size,), (axis,), 1.0)
        self.eps = config.rms_norm_eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with RMSNorm on queries and keys before RoPE (QK-Norm)."""

    def __init__(
        self,
        config: Qwen3Config,
        declare: Declare,
        placement: Placement,
        kernels: Kernels,
        quantization: Quantization | None,
    ):
        d, n, k, h = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        std = config.initializer_range
        self.q = declare.normal((d, n, h), ("embed", "heads", "head_dim"), std)
        self.k = declare.normal((d, k, h), ("embed", "kv_heads", "head_dim"), std)
        self.v = declare.normal((d, k, h), ("embed", "kv_heads", "head_dim"), std)
        # What is added to the residual stream starts smaller by its depth (GPT-2; Radford et al. 2019, section 2.3).
        self.o = declare.normal((n, h, d), ("heads", "head_dim", "embed"), std / (2 * config.num_hidden_layers) ** 0.5)
        self.q_norm = RMSNorm(h, "head_dim", config, declare)
        self.k_norm = RMSNorm(h, "head_dim", config, declare)
        if config.attention_bias:
            self.q_bias = declare.constant((n, h), ("heads", "head_dim"), 0.0)
            self.k_bias = declare.constant((k, h), ("kv_heads", "head_dim"), 0.0)
            self.v_bias = declare.constant((k, h), ("kv_heads", "head_dim"), 0.0)
            self.o_bias = declare.constant((d,), ("hidden",), 0.0)
        self.bias = config.attention_bias
        self.dual_chunk = config.dual_chunk_attention_config
        self.placement = placement
        self.kernels = kernels
        self.quantization = quantization

    def __call__(
        self,
        x_btd: jax.Array,
        rope: Angles,
        segment_ids_bt: jax.Array | None,
        cache: LayerCache | None,
        balanced: bool,
    ) -> tuple[jax.Array, Pages | None]:
        """Return the attention output [B, T, D] and, with a cache, its pages with this call's keys and values.

        `balanced`: the tokens come in the order of `sharding.balanced_order`.
        """
        dtype = x_btd.dtype
        q_btnh = linear("btd,dnh->btnh", x_btd, self.q[...], self.quantization, self.placement)
        k_bkth = linear("btd,dkh->bkth", x_btd, self.k[...], self.quantization, self.placement)
        v_bkth = linear("btd,dkh->bkth", x_btd, self.v[...], self.quantization, self.placement)
        if self.bias:
            q_btnh += self.q_bias[...].astype(dtype)
            k_bkth += self.k_bias[...].astype(dtype)[:, None]
            v_bkth += self.v_bias[...].astype(dtype)[:, None]
        q_btnh = self.q_norm(q_btnh)
        queries = [rotate(q_btnh, cos[:, :, None], sin[:, :, None]) for cos, sin in rope.queries]
        queries = [self.placement.constrain(q, ("batch", "length", "heads", None)) for q in queries]
        q_btnh, *far = (checkpoint_name(q, "qkv") for q in queries)
        cos, sin = rope.keys
        k_bkth = checkpoint_name(rotate(self.k_norm(k_bkth), cos[:, None], sin[:, None]), "qkv")
        v_bkth = checkpoint_name(v_bkth, "qkv")
        pages = None
        if cache is None:
            out_btnh = attention(
                q_btnh,
                k_bkth,
                v_bkth,
                segment_ids_bt,
                balanced=balanced,
                implementation=self.kernels.attention,
                placement=self.placement,
            )
        else:
            chunks = Chunks(self.dual_chunk.chunk, *far) if self.dual_chunk is not None else None
            out_btnh, pages = paged_attention(
                q_btnh,
                k_bkth,
                v_bkth,
                *cache,
                chunks=chunks,
                implementation=self.kernels.paged,
                placement=self.placement,
            )
        out_btd = linear("btnh,nhd->btd", out_btnh, self.o[...], self.quantization, self.placement)
        return out_btd + self.o_bias[...].astype(dtype) if self.bias else out_btd, pages


class MLP(nnx.Module):
    """SwiGLU: down(silu(gate x) * up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: Qwen3Config, declare: Declare, placement: Placement, quantization: Quantization | None):
        d, f, std = config.hidden_size, config.intermediate_size, config.initializer_range
        self.gate = declare.normal((d, f), ("embed", "mlp"), std)
        self.up = declare.normal((d, f), ("embed", "mlp"), std)
        self.down = declare.normal((f, d), ("mlp", "embed"), std / (2 * config.num_hidden_layers) ** 0.5)
        self.placement = placement
        self.quantization = quantization

    def __call__(self, x_btd: jax.Array) -> jax.Array:
        gate_btf = linear("btd,df->btf", x_btd, self.gate[...], self.quantization, self.placement)
        up_btf = linear("btd,df->btf", x_btd, self.up[...], self.quantization, self.placement)
        hidden_btf = self.placement.constrain(jax.nn.silu(gate_btf) * up_btf, ("batch", "length", "mlp"))
        return linear("btf,fd->btd", hidden_btf, self.down[...], self.quantization, self.placement)
