"""The mixture-of-experts layer: 128 experts of which each token uses 8, no shared expert.

Source: Qwen3 technical report, section 2; transformers `modeling_qwen3_moe.py`. The router's softmax runs over all experts
in float32; the chosen probabilities are rescaled to sum to 1 when `norm_topk_prob`.

Shapes: b batch, t length, d hidden, e experts, k experts per token, f expert width.
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Execution, LowRank, Weight, expert_mlp, folded, project
from qwen3_jax.model.lora import adapted
from qwen3_jax.model.params import Declare


@struct.dataclass
class RouterStats:
    """The terms of the load-balancing loss and of the router metrics: sums over the tokens that are not padding.

    Attributes:
        load: float32 [L, E] ([E] inside a layer), tokens sent to each expert; each token counts k times.
        prob: float32 [L, E], sum over tokens of the router's probability of each expert.
        entropy: float32 [L], sum over tokens of the entropy of the router's distribution, in nats.
        tokens: float32 [L], the number of tokens.
    """

    load: jax.Array
    prob: jax.Array
    entropy: jax.Array
    tokens: jax.Array


class MoE(nnx.Module):
    """Top-k routed SwiGLU experts; dropless."""

    def __init__(self, config: Qwen3Config, declare: Declare, execution: Execution):
        d, e, f = config.hidden_size, config.num_experts, config.moe_intermediate_size
        std = config.initializer_range
        self.router = declare.normal((d, e), ("embed", "router"), std)
        self.gate = declare.normal((e, d, f), ("expert", "embed", "mlp"), std)
        self.up = declare.normal((e, d, f), ("expert", "embed", "mlp"), std)
        self.down = declare.normal((e, f, d), ("expert", "mlp", "embed"), std / (2 * config.num_hidden_layers) ** 0.5)
        adapters = declare.adapters(router=("mlp.router", self.router, 1), down=("mlp.experts.down", self.down, 1))
        gate_up = declare.adapter(
            "mlp.experts.gate_up", ((e,), ("expert",)), ((d,), ("embed",)), ((2, f), (None, "mlp"))
        )
        self.adapters = adapters if gate_up is None else nnx.Dict(dict(adapters or {}, gate_up=gate_up))
        self.experts_per_token = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.execution = execution

    def __call__(
        self, x_btd: jax.Array, segment_ids_bt: jax.Array | None, chosen_btn: jax.Array | None = None
    ) -> tuple[jax.Array, RouterStats]:
        """Return the layer's output [B, T, D] and its router's statistics; tokens of segment 0 are padding."""
        router_de = adapted(self.router[...], self.adapters, "router", chosen_btn)
        logits_bte = self._routed(x_btd.astype(jnp.float32), router_de)
        probs_bte = jax.nn.softmax(logits_bte, axis=-1)
        weight_btk, index_btk = jax.lax.top_k(probs_bte, self.experts_per_token)
        if self.norm_topk_prob:
            weight_btk /= weight_btk.sum(axis=-1, keepdims=True)
        experts = (
            adapted(self.gate[...], self.adapters, "gate_up", chosen_btn, 0),
            adapted(self.up[...], self.adapters, "gate_up", chosen_btn, 1),
            adapted(self.down[...], self.adapters, "down", chosen_btn),
        )
        y_btd = expert_mlp(x_btd, index_btk, weight_btk.astype(x_btd.dtype), *experts, self.execution)
        count_bt = jnp.ones(x_btd.shape[:2]) if segment_ids_bt is None else (segment_ids_bt > 0).astype(jnp.float32)
        chosen_bte = jax.nn.one_hot(index_btk, probs_bte.shape[-1]).sum(axis=2)
        stats = RouterStats(
            load=jnp.einsum("bte,bt->e", chosen_bte, count_bt),
            prob=jnp.einsum("bte,bt->e", probs_bte, count_bt),
            entropy=(-jax.scipy.special.xlogy(probs_bte, probs_bte).sum(axis=-1) * count_bt).sum(),
            tokens=count_bt.sum(),
        )
        return y_btd, stats

    def _routed(self, x_btd: jax.Array, router_de: Weight) -> jax.Array:
        """Return the router's logits, float32 [B, T, E]."""
        if isinstance(router_de, LowRank) and router_de.chosen is not None:
            return project("btd,de->bte", x_btd, router_de, self.execution)
        router_de = folded(router_de, jnp.dtype("float32"), self.execution, ("embed", "router"))
        return jnp.einsum("btd,de->bte", x_btd, router_de.astype(jnp.float32))
