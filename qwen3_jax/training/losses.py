"""What is minimised: token-weighted cross-entropy, and the load-balancing loss of MoE layers.

Shapes: b batch, t length, v vocabulary, l MoE layers, e experts.
"""

import jax
import jax.numpy as jnp
from flax import struct

from qwen3_jax.model import Qwen3, RouterStats


@struct.dataclass
class Loss:
    """Sums and means of one batch, float32 scalars.

    Attributes:
        total: what the gradient is taken of.
        cross_entropy: mean over the learned tokens, in nats.
        balance: load-balancing loss, mean over MoE layers (0 for a dense model).
        tokens: learned tokens.
        router_entropy: mean entropy of the routers' distributions, in nats.
        router_max_load: share of the busiest expert times the number of experts, mean over layers; 1 is balance.
    """

    total: jax.Array
    cross_entropy: jax.Array
    balance: jax.Array
    tokens: jax.Array
    router_entropy: jax.Array
    router_max_load: jax.Array


def cross_entropy_sum(logits_btv: jax.Array, targets_bt: jax.Array, weights_bt: jax.Array) -> jax.Array:
    """Return the weighted sum of -log softmax(logits)[target], in nats; logits are float32."""
    log_z_bt = jax.nn.logsumexp(logits_btv, axis=-1)
    chosen_bt = jnp.take_along_axis(logits_btv, targets_bt[..., None], axis=-1)[..., 0]
    return ((log_z_bt - chosen_bt) * weights_bt).sum()


def balance_loss(router: RouterStats, experts: int) -> jax.Array:
    """Return the load-balancing loss, mean over layers.

        N_E * sum_i f_i p_i        (Qiu et al. 2025, arXiv 2501.11873, equation 2)

    f_i is the share of the global batch's tokens that are sent to expert i (each token counts once for each of its k
    experts, so perfect balance gives k), p_i the mean probability of expert i. Padding does not count. No gradient flows
    through f.
    """
    tokens_l1 = jnp.maximum(router.tokens, 1)[:, None]
    share_le = jax.lax.stop_gradient(router.load) / tokens_l1
    return experts * (share_le * router.prob / tokens_l1).sum(axis=-1).mean()


def compute(model: Qwen3, batch: dict[str, jax.Array]) -> Loss:
    """Return the loss of one global batch: `tokens, targets, segment_ids, positions` int32 and `loss_mask` [B, T]."""
    hidden = model.hidden(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"])
    logits_btv = model.placement.constrain(model.logits(hidden.states), ("batch", "length", "vocab"))
    tokens = batch["loss_mask"].sum()
    loss = cross_entropy_sum(logits_btv, batch["targets"], batch["loss_mask"]) / jnp.maximum(tokens, 1)
    zero = jnp.zeros((), jnp.float32)
    if hidden.router is None:
        return Loss(loss, loss, zero, tokens, zero, zero)
    router, experts = hidden.router, model.config.num_experts
    balance = balance_loss(router, experts)
    busiest = router.load.max(axis=-1) / jnp.maximum(router.load.sum(axis=-1), 1) * experts
    return Loss(
        total=loss + model.config.router_aux_loss_coef * balance,
        cross_entropy=loss,
        balance=balance,
        tokens=tokens,
        router_entropy=(router.entropy / jnp.maximum(router.tokens, 1)).mean(),
        router_max_load=busiest.mean(),
    )
