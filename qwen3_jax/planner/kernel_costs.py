"""Costs of kernels, from the shapes of a call in a compiled program.

On TPU: splash attention carries no cost estimate. megablox's `gmm` and `tgmm` carry one for the whole buffer of rows, but skip
the rows that no expert fills, with balanced routing half of it (see `kernels.experts.parallel`). Ragged paged attention is
counted with full tables: every row attends to the most slots that its table can name, of one layer of the pool. On
GPU: see `gpu_kernel_costs`.

Shapes: b batch, t queries, s keys, n query heads, h head size, m rows of a buffer.
"""

import re

from qwen3_jax.planner.costs import Price
from qwen3_jax.planner.formulas import estimate
from qwen3_jax.planner.gpu_kernel_costs import gpu_price
from qwen3_jax.planner.hlo import Instruction, Shape
from qwen3_jax.planner.program import Cost

# Products of a block of queries with a block of keys: scores and output; their gradients, with the scores computed again.
_SPLASH_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
_FUSED_BACKWARD = 5
_TPU_KERNEL = "tpu_custom_call"


def pricer(expert_rows: float | None = None, experts: int | None = None, slots: int | None = None) -> Price:
    """Return a function that gives the cost of one kernel call on one device, for `planner.costs.count`.

    Args:
        expert_rows: rows (a token for one of its experts) that a device works on with balanced routing; None for a model
            without experts.
        experts: experts of one layer on a device; where given, at most this many of a stack are read, and at most one per row.
        slots: of each row of the cache, where a GPU's kernel gets tables with room for more.
    """

    def price(call: Instruction, operands: list[Shape]) -> Cost | None:
        if call.target != _TPU_KERNEL:
            return gpu_price(call, operands, expert_rows, experts, slots)
        names = f"{call.name} {call.source}"
        for name, products in _SPLASH_PRODUCTS.items():
            if name in names:
                # The fused backward pass also gives one gradient of the queries per block of keys.
                dims = len(next(shape.dims for shape in operands if shape.dtype in ("bf16", "f16", "f32")))
                fused = name == "splash_mha_dkv" and any(len(shape.dims) > dims for shape in call.shapes)
                return _splash(_FUSED_BACKWARD if fused else products, operands)
        if "ragged_paged_attention" in names:
            return _ragged(operands)
        estimated = estimate(call)
        if estimated is not None and expert_rows is not None and re.search(r"\bt?gmm\b", names.replace("_", " ")):
            rows = max(shape.dims[0] for shape in operands + list(call.shapes) if len(shape.dims) == 2)
            flops = estimated["flops"] * min(1.0, expert_rows / rows)
            weights = [shape for shape in operands if len(shape.dims) == 3]
            if experts is None or not weights:
                return Cost(flops)
            others = sum(shape.hbm for shape in [*operands, *call.shapes]) - weights[0].hbm
            return Cost(flops, others + weights[0].hbm / weights[0].dims[0] * min(experts, expert_rows))
        return None

    return price


def _splash(products: int, operands: list[Shape]) -> Cost | None:
    """Splash attention: the blocks that a causal mask leaves, of which each device has its share.

    The first operands say which blocks to visit, int8 [1, blocks of queries, blocks of keys]; queries [B, N, T, H] and keys
    [B, K, S, H] are the first two arrays of floats, without B where a device has one row.
    """
    grids = [shape.dims for shape in operands if len(shape.dims) == 3 and shape.dtype == "s8"]
    heads = [shape.dims for shape in operands if len(shape.dims) in (3, 4) and shape.dtype in ("bf16", "f16", "f32")]
    if not grids or len(heads) < 2:
        return None
    (n, t, h), s = heads[0][-3:], heads[1][-2]
    b = heads[0][0] if len(heads[0]) == 4 else 1
    block = t // grids[0][1] if t % grids[0][1] == 0 else t
    blocks = s // block
    pairs = block**2 * blocks * (blocks + 1) / 2 * t / s
    return Cost(2.0 * products * b * n * h * pairs)


def _ragged(operands: list[Shape]) -> Cost | None:
    """Ragged paged attention: tables int32 [R, W], queries [F, N, H], pages [P, C, 2 K, H]; each of F is a row's last token."""
    tables = [shape for shape in operands if len(shape.dims) == 2 and shape.dtype == "s32"]
    queries = [shape for shape in operands if len(shape.dims) == 3 and shape.dtype in ("bf16", "f32")]
    pages = [shape for shape in operands if len(shape.dims) == 4]
    if not tables or not queries or not pages:
        return None
    (rows, width), (tokens, heads, size) = tables[0].dims, queries[0].dims
    slots = width * pages[0].dims[1]
    read = rows * width * pages[0].bytes / pages[0].dims[0]
    return Cost(4.0 * tokens * heads * size * slots, read + 2 * queries[0].hbm)
