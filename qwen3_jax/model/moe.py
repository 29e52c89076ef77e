"""The mixture-of-experts layer: 128 experts of which each token uses 8, no shared expert.

Source: Qwen3 technical report, section 2; transformers `modeling_qwen3_moe.py`. The router's softmax runs over all experts
in float32; the chosen probabilities are rescaled to sum to 1 when `norm_topk_prob`.

Shapes: b batch, t length, d hidden, e experts, k experts per token, f expert width.
"""

from __future__ import annotations

from typing import NamedTuple

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
        agreed: float32 [L], sum over tokens with given `Routes` of the share of them that the router chooses itself.
        compared: float32 [L], the number of those tokens. Both are None without given routes.
    """

    load: jax.Array
    prob: jax.Array
    entropy: jax.Array
    tokens: jax.Array
    agreed: jax.Array | None = None
    compared: jax.Array | None = None


@struct.dataclass
class Routes:
    """Which experts tokens were sent to before, by another program or with other weights.

    Attributes:
        experts: integers [B, T, L, K] ([B, T, K] inside a layer), L MoE layers; -1 where a token's are unknown.
        replay: send tokens there again, weighted by the router's own probabilities of these experts (rollout routing replay:
            arXiv 2510.11370); else they are only compared with the router's choices.
    """

    experts: jax.Array
    replay: bool = struct.field(pytree_node=False, default=False)


class Routed(NamedTuple):
    """Where the tokens of a call were sent.

    Attributes:
        stats: see `RouterStats`.
        experts: int32 [B, T, K], the experts of each token; None where they are not asked for.
    """

    stats: RouterStats
    experts: jax.Array | None


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
        self,
        x_btd: jax.Array,
        segment_ids_bt: jax.Array | None,
        chosen_btn: jax.Array | None = None,
        routes: Routes | None = None,
    ) -> tuple[jax.Array, Routed]:
        """Return the layer's output [B, T, D], and where tokens were sent; tokens of segment 0 are padding."""
        router_de = adapted(self.router[...], self.adapters, "router", chosen_btn)
        logits_bte = self._routed(x_btd.astype(jnp.float32), router_de)
        probs_bte = jax.nn.softmax(logits_bte, axis=-1)
        count_bt = jnp.ones(x_btd.shape[:2]) if segment_ids_bt is None else (segment_ids_bt > 0).astype(jnp.float32)
        weight_btk, index_btk = jax.lax.top_k(probs_bte, self.experts_per_token)
        agreed = compared = None
        if routes is not None:
            given_btk = routes.experts.astype(index_btk.dtype)
            known_bt1 = given_btk[..., :1] >= 0
            same_bt = (given_btk[..., :, None] == index_btk[..., None, :]).any(axis=-1).mean(axis=-1)
            known_bt = known_bt1[..., 0] * count_bt
            agreed, compared = (same_bt * known_bt).sum(), known_bt.sum()
            if routes.replay:
                index_btk = jnp.where(known_bt1, given_btk, index_btk)
                weight_btk = jnp.take_along_axis(probs_bte, index_btk, axis=-1)
        if self.norm_topk_prob:
            weight_btk /= weight_btk.sum(axis=-1, keepdims=True)
        experts = (
            adapted(self.gate[...], self.adapters, "gate_up", chosen_btn, 0),
            adapted(self.up[...], self.adapters, "gate_up", chosen_btn, 1),
            adapted(self.down[...], self.adapters, "down", chosen_btn),
        )
        y_btd = expert_mlp(x_btd, index_btk, weight_btk.astype(x_btd.dtype), *experts, self.execution)
        chosen_bte = jax.nn.one_hot(index_btk, probs_bte.shape[-1]).sum(axis=2)
        stats = RouterStats(
            load=jnp.einsum("bte,bt->e", chosen_bte, count_bt),
            prob=jnp.einsum("bte,bt->e", probs_bte, count_bt),
            entropy=(-jax.scipy.special.xlogy(probs_bte, probs_bte).sum(axis=-1) * count_bt).sum(),
            tokens=count_bt.sum(),
            agreed=agreed,
            compared=compared,
        )
        return y_btd, Routed(stats, index_btk)

    def _routed(self, x_btd: jax.Array, router_de: Weight) -> jax.Array:
        """Return the router's logits, float32 [B, T, E]."""
        if isinstance(router_de, LowRank) and router_de.chosen is not None:
            return project("btd,de->bte", x_btd, router_de, self.execution)
        router_de = folded(router_de, jnp.dtype("float32"), self.execution, ("embed", "router"))
        return jnp.einsum("btd,de->bte", x_btd, router_de.astype(jnp.float32))
