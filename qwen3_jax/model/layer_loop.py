"""The loop over a model's layers: unrolled, or a scan over a stack; with rematerialisation and a paged cache.

Shapes: b batch, t length, d hidden, l layers, n adapters side by side.
"""

import itertools
from collections.abc import Iterable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.config import Qwen3Config
from qwen3_jax.kernels import Pages, Rows, Stacked, is_quantized, takes_stacks
from qwen3_jax.kernels.attention.partition import SAVE_NAME
from qwen3_jax.kernels.names import GATE
from qwen3_jax.model.attention import QKV
from qwen3_jax.model.block import Block
from qwen3_jax.model.cache import KVCache, LayerCache
from qwen3_jax.model.moe import Routed, RouterStats, Routes
from qwen3_jax.model.rope import Angles

Remat = Literal["none", "dots", "mlp", "qkv", "attention", "full"]
REMAT: tuple[Remat, ...] = get_args(Remat)
# What is saved of each layer for the backward pass besides its input; the rest is computed again. Most memory first.
_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "mlp": jax.checkpoint_policies.save_only_these_names(QKV, SAVE_NAME, GATE),
    "qkv": jax.checkpoint_policies.save_only_these_names(QKV, SAVE_NAME),
    "attention": jax.checkpoint_policies.save_only_these_names(SAVE_NAME),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def layer_groups(config: Qwen3Config, scan_layers: bool) -> list[tuple[bool, list[int]]]:
    """Return (is MoE, layer indices) for each group: runs of equal layers, or every layer by itself."""
    if not scan_layers:
        return [(config.is_moe_layer(i), [i]) for i in range(config.num_hidden_layers)]
    runs = itertools.groupby(range(config.num_hidden_layers), key=config.is_moe_layer)
    return [(moe, list(layers)) for moe, layers in runs]


def run_layers(
    groups: Iterable[Block],
    x_btd: jax.Array,
    rope: Angles,
    segment_ids_bt: jax.Array | None,
    cache: KVCache | None,
    remat: Remat,
    chosen_btn: jax.Array | None = None,
    routes: Routes | None = None,
    report_experts: bool = False,
) -> tuple[jax.Array, KVCache | None, RouterStats | None, jax.Array | None]:
    """Return the last layer's output, the cache with this call's keys and values, and of all MoE layers the statistics.

    Args:
        routes: of all MoE layers.
        report_experts: return int32 [B, T, L, K] last, the experts of each token in each MoE layer; else None.
    """
    t, moe_layers = x_btd.shape[1], 0
    pools: list[Pages] = []
    routed: list[Routed] = []
    for index, group in enumerate(groups):
        pages, rows = (None, None) if cache is None else (cache.groups[index], cache.rows)
        own, layers = None, (group.stack or 1) * group.moe
        if routes is not None and group.moe:
            own = Routes(routes.experts[:, :, moe_layers : moe_layers + layers], routes.replay)
        moe_layers += layers
        x_btd, pages, of_group = run_group(
            group, x_btd, rope, segment_ids_bt, pages, rows, remat, chosen_btn, own, report_experts
        )
        if pages is not None:
            pools.append(pages)
        if of_group is not None:
            routed.append(of_group if group.stack else jax.tree.map(lambda s: s[None], of_group))
    new_cache = None if cache is None else KVCache(tuple(pools), cache.rows.after(t))
    if not routed:
        return x_btd, new_cache, None, None
    stats, experts = jax.tree.map(lambda *s: jnp.concatenate(s), *routed)
    return x_btd, new_cache, stats, None if experts is None else jnp.moveaxis(experts, 0, 2)


def run_group(
    group: Block, x_btd, rope: Angles, segment_ids_bt, pages: Pages | None, rows: Rows | None, remat: Remat, chosen_btn,
    routes: Routes | None, report_experts: bool,
) -> tuple[jax.Array, Pages | None, Routed | None]:  # fmt: skip
    """Run one group of layers, a single block or a scan over a stack; arguments and results of `run_layers` for it alone."""
    layers = group.stack or 1
    # Experts may stay in their stack: a kernel then reads a layer's experts in place, where a scan would copy them.
    whole = pages is not None and group.stack is not None and group.moe and takes_stacks(group.execution)
    graphdef, experts, state = nnx.split(group, _is_expert if whole else nnx.Nothing(), ...)  # type: ignore[misc]
    # The pool is carried from layer to layer whole: a scan over its layers would copy it.
    first_page_l = None if pages is None else np.arange(layers, dtype=np.int32) * (pages.count // layers)

    def body(carry, layer):
        x_btd, pages = carry
        layer_state, first_page, index, experts_btk = layer
        layer_experts = jax.tree.map(lambda w: Stacked(w, index), experts)
        block = nnx.merge(graphdef, layer_experts, layer_state)
        cache = None if pages is None or rows is None else LayerCache(pages, rows, first_page)
        given = None if routes is None else Routes(experts_btk, routes.replay)
        x_btd, pages, routed = block(x_btd, rope, segment_ids_bt, cache, chosen_btn, given)
        if routed is not None and not report_experts:
            routed = routed._replace(experts=None)
        return (x_btd, pages), routed

    if remat != "none":
        body = jax.checkpoint(body, policy=_POLICIES[remat], prevent_cse=group.stack is None)
    experts_lbtk = None if routes is None else jnp.moveaxis(routes.experts, 2, 0)
    if group.stack is None:
        (x_btd, pages), routed = body((x_btd, pages), (state, 0, 0, None if experts_lbtk is None else experts_lbtk[0]))
    else:
        each = state, first_page_l, np.arange(layers), experts_lbtk
        (x_btd, pages), routed = jax.lax.scan(body, (x_btd, pages), each)
    return x_btd, pages, routed


def _is_expert(path, variable) -> bool:
    return path[-1] in ("gate", "up", "down") and not is_quantized(variable.get_value())
