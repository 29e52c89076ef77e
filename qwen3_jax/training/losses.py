"""The loss: token-weighted cross-entropy, z-loss, and the load-balancing loss of MoE layers.

All terms are sums over tokens, divided once at the end, so that micro-batches give the same result as the whole batch.

Shapes: b batch, t length, l MoE layers, e experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from qwen3_jax.model import Hidden, Qwen3, RouterStats, Routes
from qwen3_jax.training.config import LossConfig
from qwen3_jax.training.cross_entropy import token_loss
from qwen3_jax.training.zeros import zeros_of

# int16 [B, T, L * K]: the experts that a rollout's engine sent each token to, in each MoE layer; -1 where they are unknown.
EXPERTS = "experts"  # the router's own choices are compared with them
REPLAYED = "replayed_experts"  # tokens are sent to them again

BATCH_FIELDS = {
    "tokens": jnp.int32, "targets": jnp.int32, "segment_ids": jnp.int32, "positions": jnp.int32, "loss_mask": jnp.float32,
}  # fmt: skip


def total_of(sums: Any) -> Any:
    """Return the total over micro-batches, the first axis of every array."""
    return jax.tree.map(lambda x: x.sum(axis=0), sums)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a trainer minimises. Sums of micro-batches add up; what they are divided by is counted over the global batch.

    Attributes:
        fields: of a batch, with their types; each is [B, T], or of a tuple (type, K) [B, T, K].
        whole: batch -> counts of the global batch.
        share: (model, batch, whole, config) -> (share of the loss, whose gradient is taken; sums).
        finish: (sums, whole, config, coefficient of the balancing loss) -> means, a struct with `total`, `measure`, `tokens`.
        model: the class of the model.
        combine: sums of every micro-batch, along the first axis -> sums of the global batch.
        sparse: batches are filled up to a fixed number of rows: a micro-batch that adds nothing to the loss is not computed.
        experts: one more field of the batches of models with experts, `EXPERTS` or `REPLAYED`; "" for none.
        computed: fields that a program adds to a placed batch: (type, K) of [B, T, K].
    """

    fields: Mapping[str, Any]
    whole: Callable[[dict[str, jax.Array]], Whole]
    share: Callable[..., tuple[jax.Array, Any]]
    finish: Callable[..., Any]
    model: type[Qwen3] = Qwen3
    combine: Callable[[Any], Any] = total_of
    sparse: bool = False
    experts: str = ""
    computed: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    def skipping(self, function: Callable[..., Any], has_experts: bool) -> Callable[..., Any]:
        """Return a function of (anything, micro-batch, anything) that is 0 without being computed where that adds nothing.

        A micro-batch adds nothing if no token of it is learned; with experts, whose load-balancing loss counts all tokens, if
        it is padding alone. The result is that of `function`. All of it is one branch: a gradient's backward pass too.
        """
        if not self.sparse:
            return function

        def skip_empty(model: Any, rows: dict[str, jax.Array], *others: Any) -> Any:
            def compute() -> Any:
                return function(model, rows, *others)

            adds = (rows["segment_ids"] > 0).any() if has_experts else (rows["loss_mask"] > 0).any()
            return jax.lax.cond(adds, compute, lambda: zeros_of(compute))

        return skip_empty


@struct.dataclass
class Sums:
    """Sums over the tokens of one micro-batch, float32.

    Attributes:
        cross_entropy: of -log p(target), over learned tokens, in nats.
        log_z_squared: of the squared log normaliser, over learned tokens.
        balance: the micro-batch's part of the load-balancing loss, mean over MoE layers (0 for a dense model).
        router: of every MoE layer, or None for a dense model.
    """

    cross_entropy: jax.Array
    log_z_squared: jax.Array
    balance: jax.Array
    router: RouterStats | None


@struct.dataclass(kw_only=True)
class RouterMeans:
    """What a loss says of the routers, float32; None for a dense model.

    Attributes:
        router_entropy: [L], mean entropy of each router's distribution, in nats.
        router_max_load: [L], share of the busiest expert times the number of experts; 1 is perfect balance.
        router_min_load: [L], the same of the least used expert; 0 is a dead expert.
        router_load: [L, E], the same of every expert.
    """

    router_entropy: jax.Array | None
    router_max_load: jax.Array | None
    router_min_load: jax.Array | None
    router_load: jax.Array | None


@struct.dataclass
class Loss(RouterMeans):
    """Means over a global batch, float32 scalars.

    Attributes:
        total: cross_entropy + z_loss * z + router_aux_loss_coef * balance; its gradient is taken.
        cross_entropy: mean over the learned tokens, in nats.
        z: mean of (log Z)^2 over the learned tokens.
        balance: load-balancing loss, mean over MoE layers (0 for a dense model).
        tokens: learned tokens.
    """

    total: jax.Array
    cross_entropy: jax.Array
    z: jax.Array
    balance: jax.Array
    tokens: jax.Array

    @property
    def measure(self) -> jax.Array:
        """What held-out data is measured by."""
        return self.cross_entropy


@struct.dataclass
class Whole:
    """Counts of the global batch, which its micro-batches need.

    Attributes:
        tokens: float32 scalar, learned tokens of the global batch; of preferences, their number.
        valid: float32 scalar, tokens of the global batch that are not padding.
        load: float32 [L, E], tokens sent to each expert, for f of the load-balancing loss; None uses those of the
            micro-batch (correct if it is the whole batch).
        load_tokens: float32 scalar, tokens counted in `load`.
        add_own: whether the micro-batch's own counts are added to `load` (the running buffer).
    """

    tokens: jax.Array
    valid: jax.Array
    load: jax.Array | None = None
    load_tokens: jax.Array | None = None
    add_own: bool = struct.field(pytree_node=False, default=False)


def whole(batch: dict[str, jax.Array]) -> Whole:
    """Return the counts of a global batch."""
    return Whole(batch["loss_mask"].sum(), (batch["segment_ids"] > 0).sum().astype(jnp.float32))


def balance_loss(load_le: jax.Array, load_tokens: jax.Array, prob_le: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the load-balancing loss, mean over layers.

        N_E * sum_i f_i p_i        (Qiu et al. 2025, arXiv 2501.11873, equation 2)

    f_i = load_i / load_tokens is the share of the global batch's tokens that are sent to expert i (each token counts once for
    each of its k experts, so perfect balance gives k), p_i = prob_i / valid the mean probability of expert i. Padding does
    not count. No gradient flows through f. The loss is linear in prob: with the f and `valid` of the global batch, the
    losses of its micro-batches add up to the loss of the whole.
    """
    share_le = jax.lax.stop_gradient(load_le) / jnp.maximum(load_tokens, 1)
    return load_le.shape[-1] * (share_le * prob_le / jnp.maximum(valid, 1)).sum(axis=-1).mean()


def balance_share(router: RouterStats | None, whole: Whole) -> jax.Array:
    """Return a micro-batch's part of the load-balancing loss, 0 for a dense model."""
    if router is None:
        return jnp.zeros((), jnp.float32)
    load, load_tokens = router.load, router.tokens[0]
    if whole.load is not None:
        assert whole.load_tokens is not None
        load = whole.load + load if whole.add_own else whole.load
        load_tokens = whole.load_tokens + router.tokens[0] if whole.add_own else whole.load_tokens
    return balance_loss(load, load_tokens, router.prob, whole.valid)


def router_load(model: Qwen3, batch: dict[str, jax.Array]) -> jax.Array:
    """Count the tokens sent to each expert, [L, E]: a forward pass without output projection."""
    hidden = hidden_of(model, batch)
    assert hidden.router is not None
    return jax.lax.stop_gradient(hidden.router.load)


def objective(model: Qwen3, batch: dict[str, jax.Array], whole: Whole, config: LossConfig) -> tuple[jax.Array, Sums]:
    """Return a micro-batch's share of the global batch's loss, and its sums.

    The shares of all micro-batches add up to `finish(...).total`, and so do their gradients.

    Args:
        model: with the parameters to differentiate.
        batch: `tokens, targets, segment_ids, positions` int32 and `loss_mask` float32 [B, T].
        whole: the global batch.
        config: coefficients.
    """
    hidden = hidden_of(model, batch)
    weight, tied = model.output_matrix()
    loss = token_loss(
        hidden.states.astype(model.dtype),
        weight,
        batch["targets"],
        batch["loss_mask"],
        tied=tied,
        z_loss=config.z_loss,
        chunk=config.chunk_tokens,
        placement=model.execution.placement,
        frozen=is_output_frozen(model),
    )
    balance = balance_share(hidden.router, whole)
    share = loss.total / jnp.maximum(whole.tokens, 1) + model.config.router_aux_loss_coef * balance
    return share, Sums(loss.cross_entropy, loss.log_z_squared, balance, hidden.router)


def finish(sums: Sums, whole: Whole, config: LossConfig, balance_coefficient: float) -> Loss:
    """Return the means of a global batch from its sums."""
    tokens = jnp.maximum(whole.tokens, 1)
    cross_entropy, z = sums.cross_entropy / tokens, sums.log_z_squared / tokens
    total = cross_entropy + config.z_loss * z + balance_coefficient * sums.balance
    return Loss(total, cross_entropy, z, sums.balance, whole.tokens, **router_means(sums.router))


def router_means(router: RouterStats | None) -> dict[str, jax.Array | None]:
    """Return the fields of `RouterMeans`."""
    if router is None:
        return {field.name: None for field in dataclasses.fields(RouterMeans)}
    entropy = router.entropy / jnp.maximum(router.tokens, 1)
    load = router.load / jnp.maximum(router.load.sum(axis=-1, keepdims=True), 1) * router.load.shape[-1]
    return dict(
        router_entropy=entropy,
        router_max_load=load.max(axis=-1),
        router_min_load=load.min(axis=-1),
        router_load=load,
    )


def compute(model: Qwen3, batch: dict[str, jax.Array], config: LossConfig | None = None) -> Loss:
    """Return the loss of a global batch without micro-batches; arguments as for `objective`."""
    count, config = whole(batch), config or LossConfig()
    _, sums = objective(model, batch, count, config)
    return finish(sums, count, config, model.config.router_aux_loss_coef)


def is_output_frozen(model: Qwen3) -> bool:
    """Whether the output projection is not trained: adapters are, and it has none."""
    return model.lora is not None and not model.lora.of("lm_head", [None])


def hidden_of(model: Qwen3, batch: dict[str, jax.Array]) -> Hidden:
    """Return the final hidden states of a packed batch."""
    routes = None
    if (name := REPLAYED if REPLAYED in batch else EXPERTS) in batch:
        shape = *batch["tokens"].shape, model.config.moe_layers, model.config.num_experts_per_tok
        routes = Routes(batch[name].reshape(shape), replay=name == REPLAYED)
    return model.hidden(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"], routes=routes)


LANGUAGE_MODEL = Objective(BATCH_FIELDS, whole, objective, finish)
