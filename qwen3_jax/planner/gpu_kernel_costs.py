"""Costs of kernels for GPUs, from the shapes of a call in a compiled program: cuDNN, Triton and Mosaic.

None of these calls carries a cost estimate. Attention is counted as the causal half of all pairs of a query and a key; paged
attention as a full table of each row, at most `slots`; the grouped products of experts as the rows that reach an expert with
balanced routing, and the weights of at most one expert per row.

Shapes: b batch, t queries, s keys, n query heads, g queries per key/value head, h head size, m rows, e experts.
"""

import math

from qwen3_jax.planner.hlo import Instruction, Shape
from qwen3_jax.planner.operations import backend_field
from qwen3_jax.planner.program import Cost

# Products of a query with a key or value: scores and output; their four gradients, with the scores computed again. Triton's
# backward kernel computes scores and the gradient of the probabilities once for the keys and once for the queries.
_FORWARD, _CUDNN_BACKWARD, _TRITON_BACKWARD = 2, 5, 7

_FLOATS = ("bf16", "f16", "f32")


def gpu_price(
    call: Instruction, operands: list[Shape], rows: float | None, experts: int | None, slots: int | None
) -> Cost | None:
    """Return the cost of one call of a kernel that this project's GPU programs use; None for any other.

    Args:
        call: the custom call.
        operands: the arrays that it reads, in order.
        rows: that reach an expert on this device, with balanced routing; None for a model without experts.
        experts: of one layer on this device.
        slots: of each row of the cache; None where a program has none.
    """
    name = call.kernel or call.source
    if call.target.startswith("__cudnn$fmha"):
        return _cudnn(call, operands)
    if "mha_preprocess_backward" in name:
        return Cost(0.0)  # sums of products of two arrays
    if "mha_forward" in name or "mha_backward" in name:
        return _attention(operands, _FORWARD if "mha_forward" in name else _TRITON_BACKWARD)
    if "paged_attention" in name:
        return _paged(call, operands, slots)
    if "ragged_dot" in f"{name} {call.source}":
        return _grouped(call, operands, rows, experts)
    return None


def _cudnn(call: Instruction, operands: list[Shape]) -> Cost | None:
    """Fused attention: the configuration has the dimensions of the scores, [B, N, T, S], and the mask."""
    scores = backend_field(call, "dimensions")
    if scores is None or len(scores) != 4:
        return None
    causal = "CAUSAL" in str(backend_field(call, "mask_type"))
    pairs = math.prod(int(d) for d in scores) / (2 if causal else 1)
    products = _CUDNN_BACKWARD if "Backward" in call.target else _FORWARD
    return Cost(2.0 * products * pairs * operands[0].dims[-1])


def _attention(operands: list[Shape], products: int) -> Cost | None:
    """JAX's Triton kernel: queries [B, T, ..., H] and keys [B, S, ..., H] are the first two arrays of floats."""
    floats = [shape for shape in operands if shape.dtype in _FLOATS and len(shape.dims) >= 4]
    if len(floats) < 2:
        return None
    q, k = floats[0].dims, floats[1].dims
    return Cost(2.0 * products * math.prod(q) * k[1] / 2)


def _paged(call: Instruction, operands: list[Shape], slots: int | None) -> Cost | None:
    """Paged decoding: queries [R, ..., G, H], pages of keys and of values [..., P, C, H], tables int32 [R, parts, pages]."""
    tables = [shape for shape in operands if shape.dtype == "s32" and len(shape.dims) >= 2]
    queries = [shape for shape in operands if shape.dtype in _FLOATS]
    if not tables or not queries or len(operands) < 3:
        return None
    q, k = queries[0], operands[1]
    pages = math.prod(tables[0].dims[1:])
    length = pages * k.dims[-2]
    length = length if slots is None else min(length, slots)
    rows, size = q.dims[0], k.dims[-1]
    read = 2 * rows * length * k.bytes / (k.elements / size)
    others = q.hbm + tables[0].hbm + sum(shape.hbm for shape in call.shapes)
    scales = [shape for shape in operands[2:] if shape.elements == k.elements // size]
    read += sum(rows * length * shape.bytes / shape.elements for shape in scales)
    return Cost(4.0 * q.elements * length, read + others)


def _grouped(call: Instruction, operands: list[Shape], rows: float | None, experts: int | None) -> Cost | None:
    """A grouped product: rows [M, K] with weights [E, K, N], or for the weights' gradient rows [M, K] with rows [M, N]."""
    arrays = [shape for shape in operands if shape.dtype not in ("s32", "u32", "s64", "pred", "s8", "u8")]
    results = [shape for shape in call.shapes if len(shape.dims) in (2, 3) and shape.dtype in _FLOATS]
    matrices = [shape for shape in arrays if len(shape.dims) == 2]
    stacks = [shape for shape in [*arrays, *results] if len(shape.dims) == 3]
    if not matrices or not stacks or not results:
        return None
    m = matrices[0].dims[0]
    used = m if rows is None else min(m, rows)
    stack = stacks[0]
    flops = 2.0 * used * stack.dims[1] * stack.dims[2]
    moved = sum(shape.hbm for shape in [*operands, *call.shapes]) - stack.hbm
    touched = stack.dims[0] if stack in results else min(stack.dims[0], experts or stack.dims[0], used)
    return Cost(flops, moved + stack.hbm / stack.dims[0] * touched)
