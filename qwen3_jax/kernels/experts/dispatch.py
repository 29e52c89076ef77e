"""`expert_mlp`: the implementation asked for, or the one that suits the mesh and the platform.

Shapes: b batch, t length, d width, e experts, f expert width, k experts per token.
"""

import functools
import itertools

import jax

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.execution import ONE_DEVICE, Execution, ExpertsKernel
from qwen3_jax.kernels.experts.dense import dense_mlp
from qwen3_jax.kernels.experts.grouped import choose_product, grouped_mlp
from qwen3_jax.kernels.experts.parallel import Exchange, Form, sharded_mlp, token_axes, unsplittable
from qwen3_jax.kernels.experts.stack import Stacked, takes_stacks, unstacked
from qwen3_jax.kernels.low_rank import LowRank, folded
from qwen3_jax.kernels.quantized import Weight, dequantize, is_quantized, primal_values, zeros_of
from sharding import ShardingError


def expert_mlp(
    x_btd: jax.Array,
    index_btk: jax.Array,
    weight_btk: jax.Array,
    gate_edf: Weight,
    up_edf: Weight,
    down_efd: Weight,
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Return the weighted sum of the chosen experts' outputs, [B, T, D] in x's dtype.

    Args:
        x_btd: tokens.
        index_btk: int32, the experts chosen for each token, distinct within a token.
        weight_btk: their weights, in x's dtype.
        gate_edf, up_edf, down_efd: expert weights in their storage type, or quantised, or `Stacked`, or `LowRank` (which is
            added up for all experts of the layer; adapters that differ between tokens are multiplied with all experts on all
            tokens, `dense`); used in x's dtype. Their gradients are computed in x's dtype on each device (on GPUs in the
            storage type where devices split the width, on TPUs if also no axis splits the experts) and summed over devices in
            the storage type.
        execution: placement, and `kernels.experts`: see the table of the package.

    Raises:
        ShardingError: an implementation asked for by name does not suit the mesh.
        UserError: one asked for by name is not for this platform or card; or the weights are quantised and their
            gradient was asked for.
    """
    weights: tuple[Weight, ...] = gate_edf, up_edf, down_efd
    if any(isinstance(w, LowRank) and w.chosen is not None for w in weights):
        return _several_adapters(execution, x_btd, index_btk, weight_btk, *weights)
    # Kernels take all three quantised or none, all three stacked or none; and quantised ones whole along their width (the
    # rules of serving).
    if any(isinstance(w, LowRank) for w in weights):
        weights = tuple(map(unstacked, weights))
    if any(isinstance(w, LowRank) for w in weights) or execution.placement.axes("embed"):
        weights = tuple(dequantize(w, x_btd.dtype) if is_quantized(w) else w for w in weights)
    wide, narrow = ("expert", "embed", "mlp"), ("expert", "mlp", "embed")
    weights = tuple(
        folded(w, x_btd.dtype, execution, axes, experts=True)
        for w, axes in zip(weights, (wide, wide, narrow), strict=True)
    )
    mlp = _frozen_mlp if any(map(is_quantized, weights)) else _expert_mlp
    return mlp(execution, x_btd, index_btk, weight_btk, *weights)


def _several_adapters(execution: Execution, x_btd, index_btk, weight_btk, *weights) -> jax.Array:
    """`expert_mlp` of tokens whose experts have different adapters: no kernel takes those, and no common sum exists."""
    name = execution.kernels.experts
    if name not in ("auto", "dense"):
        raise UserError(f"experts={name!r} takes no adapters that differ between requests; choose 'auto' or 'dense'.")

    def by_token(w: Weight) -> Weight:
        several = isinstance(w, LowRank) and w.chosen is not None
        return w.replace(chosen=w.chosen.reshape(-1, w.chosen.shape[-1])) if several else w

    return _on_tokens(dense_mlp, x_btd, index_btk, weight_btk, *map(by_token, weights))


def _expert_mlp(execution: Execution, x_btd, index_btk, weight_btk, gate_edf, up_edf, down_efd) -> jax.Array:
    placement, platform = execution.placement, execution.platform
    # On GPU `shard_map` over one device too: a Pallas kernel learns from the mesh for which card it is compiled.
    one_device = placement.mesh is None or (placement.mesh.size == 1 and platform != "gpu")
    name = execution.kernels.experts
    problem = None if one_device else unsplittable(x_btd, gate_edf, placement, tokens=name != "auto")
    if problem or not takes_stacks(execution) or gate_edf.dtype != x_btd.dtype:
        gate_edf, up_edf, down_efd = unstacked(gate_edf), unstacked(up_edf), unstacked(down_efd)
    arrays = x_btd, index_btk, weight_btk, gate_edf, up_edf, down_efd
    expert_axis_split = not one_device and placement.parts("expert") > 1
    over = _exchange(name, x_btd, execution) if expert_axis_split or name != "auto" else None
    if name == "dense" or (name == "auto" and problem):
        return _on_tokens(dense_mlp, *_in_compute_type(arrays))
    if problem:
        raise ShardingError(f"experts={name!r} cannot run on this mesh: {problem}; choose 'auto' or 'dense'.")
    if over is not None:
        if not expert_axis_split:
            raise ShardingError(f"experts={name!r} needs a mesh whose expert axis is larger than 1; choose 'grouped'.")
        return _sharded("grouped", arrays, execution, over)
    if expert_axis_split:
        raise ShardingError(
            f"experts={name!r} needs all experts on each device, and the mesh splits them over "
            f"{placement.parts('expert')}; choose 'all_to_all' or 'all_gather'."
        )
    name = "grouped" if name == "auto" else name
    if one_device:
        return _on_tokens(_grouped(name, execution, x_btd.dtype, complete=True), *_in_compute_type(arrays))
    return _sharded(name, arrays, execution, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_mlp(execution: Execution, x_btd, index_btk, weight_btk, *weights) -> jax.Array:
    """`_expert_mlp` with quantised weights, which have no gradient; that of the tokens takes all of a layer's unpacked."""
    return _expert_mlp(execution, x_btd, index_btk, weight_btk, *weights)


def _frozen_forward(execution: Execution, *arguments):
    tokens, weights = primal_values(arguments[:3]), primal_values(arguments[3:], frozen=True)
    return _frozen_mlp(execution, *tokens, *weights), (tokens, weights)


def _frozen_backward(execution: Execution, residuals, dy_btd):
    (x_btd, index_btk, weight_btk), weights = residuals
    weights = tuple(dequantize(unstacked(w), x_btd.dtype) for w in weights)
    _, pull = jax.vjp(lambda x, weight: _expert_mlp(execution, x, index_btk, weight, *weights), x_btd, weight_btk)
    dx_btd, dweight_btk = pull(zeros_of(dy_btd))
    return dx_btd, None, dweight_btk, None, None, None


_frozen_mlp.defvjp(_frozen_forward, _frozen_backward, symbolic_zeros=True)


def _sharded(name, arrays, execution: Execution, over: Exchange | None) -> jax.Array:
    # Outside of a trace `shard_map` takes no function with symbolic zeros in its gradient, as `grouped_mlp` is.
    is_traced = any(isinstance(array, jax.core.Tracer) for array in jax.tree.leaves(arrays))
    return (_traced if is_traced else _jitted)(name, arrays, execution, over)


def _traced(name, arrays, execution: Execution, over: Exchange | None) -> jax.Array:
    mlp = _grouped(name, execution, arrays[0].dtype, complete=over is None)
    product = mlp.keywords["product"]
    form: Form = (
        "width_first" if product == "triton" else "joined" if product == "megablox" and over is None else "arrays"
    )
    return sharded_mlp(*arrays, mlp=mlp, over=over, placement=execution.placement, form=form)


_jitted = jax.jit(_traced, static_argnums=(0, 2, 3))


def _exchange(name: ExpertsKernel, x_btd: jax.Array, execution: Execution) -> Exchange | None:
    """Return how tokens reach experts that are split over devices: as asked for, or what suits the tokens and the platform."""
    if name == "all_gather" or name == "all_to_all":  # mypy narrows no `in`
        return name
    if name != "auto":
        return None
    placement = execution.placement
    if not set(placement.axes("expert")) <= {*itertools.chain(*token_axes(x_btd, placement))}:
        return "all_tokens"
    return "all_gather" if execution.platform == "cpu" else "all_to_all"


def _grouped(name, execution: Execution, dtype, complete: bool):
    card = execution.card
    product = choose_product(name, execution.platform, card, dtype)
    return functools.partial(grouped_mlp, product=product, card=card, complete=complete)


def _in_compute_type(arrays):
    weights = (w if is_quantized(w) or isinstance(w, Stacked) else w.astype(arrays[0].dtype) for w in arrays[3:])
    return *arrays[:3], *weights


def _on_tokens(mlp, x_btd, index_btk, weight_btk, *weights):
    b, t, d = x_btd.shape
    tokens = x_btd.reshape(b * t, d), index_btk.reshape(b * t, -1), weight_btk.reshape(b * t, -1)
    return mlp(*tokens, *weights).reshape(b, t, d)
