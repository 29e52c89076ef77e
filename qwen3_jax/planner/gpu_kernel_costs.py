"""Costs of kernels for GPUs, from the shapes of a call in a compiled program: cuDNN and Triton.

None of these calls carries a cost estimate. Attention is counted as half of all pairs of a query and a key, as causal order
leaves; paged attention as a full table of each row, at most `slots`; the grouped products of experts as the rows that reach an
expert with balanced routing, and the weights of at most one expert per row.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head, h head size, m rows.
"""

import math
import re

from qwen3_jax.planner.hlo import Instruction, Shape
from qwen3_jax.planner.operations import backend_field
from qwen3_jax.planner.program import Cost

# Products of a query with a key or value, by a part of the kernel's name: scores and output; their gradients, with the scores
# computed again. `mha` is JAX's kernel, whose backward pass computes scores and the gradient of the probabilities twice.
_PRODUCTS = {"attention_forward": 2, "attention_dq": 3, "attention_dkv": 4, "mha_forward": 2, "mha_backward": 7}
_CUDNN_FORWARD, _CUDNN_BACKWARD = 2, 5

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
    for part, products in _PRODUCTS.items():
        if part in name:
            return _attention(operands, products, keys_first=part.startswith("mha"))
    if "paged_attention" in name or "paged_decode" in name:
        return _paged(call, operands, slots)
    if "grouped_" in f"{name} {call.source}":
        return _grouped(call, operands, rows, experts)
    return None


def _cudnn(call: Instruction, operands: list[Shape]) -> Cost | None:
    """Fused attention: the configuration has the dimensions of the scores, [B, N, T, S], and the mask."""
    scores = backend_field(call, "dimensions")
    if scores is None or len(scores) != 4:
        return None
    causal = "CAUSAL" in str(backend_field(call, "mask_type"))
    pairs = math.prod(int(d) for d in scores) / (2 if causal else 1)
    products = _CUDNN_BACKWARD if "Backward" in call.target else _CUDNN_FORWARD
    return Cost(2.0 * products * pairs * operands[0].dims[-1])


def _attention(operands: list[Shape], products: int, keys_first: bool) -> Cost | None:
    """The first floats: queries [B, T, ..., H], then keys [B, K, S, H] or, with `keys_first`, [B, S, ..., H]."""
    floats = [shape for shape in operands if shape.dtype in _FLOATS and len(shape.dims) >= 4]
    if len(floats) < 2:
        return None
    q, k = floats[0].dims, floats[1].dims
    return Cost(2.0 * products * math.prod(q) * k[1 if keys_first else 2] / 2)


def _paged(call: Instruction, operands: list[Shape], slots: int | None) -> Cost | None:
    """Tables int32 [R, ...], queries [..., G, H] of every row and head, pages of keys and values [P, K, C, H]."""
    tables = [shape for shape in operands if shape.dtype == "s32" and len(shape.dims) >= 2]
    arrays = [shape for shape in operands if len(shape.dims) == 4]
    if not tables or len(arrays) != 3:
        return None
    q, k, _ = arrays
    length = math.prod(tables[0].dims[1:]) * k.dims[-2]
    length = length if slots is None else min(length, slots)
    read = math.prod(q.dims[:-2]) * length  # slots of a head, for every row and head
    scales = [shape for shape in operands if len(shape.dims) == 3 and shape.elements * k.dims[-1] == k.elements]
    bytes_read = 2 * read * k.dims[-1] * k.bytes / k.elements + sum(read * x.bytes / x.elements for x in scales)
    others = q.hbm + tables[0].hbm + sum(shape.hbm for shape in call.shapes)
    return Cost(4.0 * q.elements * length, bytes_read + others)


def _grouped(call: Instruction, operands: list[Shape], rows: float | None, experts: int | None) -> Cost | None:
    """Grouped products of this project's kernels, named by their sides: [M, K] of rows by [K, N] of an expert.

    A product has one or two weights, and reads a row of tokens once for each of the M rows; the gradient of a weight reads rows
    [M, K] and [M, N]. Rows that reach no expert are neither read nor written.
    """
    named = re.search(r"grouped_(product|gradient)\w*_(\d+)x(\d+)x(\d+)", f"{call.kernel} {call.source}")
    floats = [shape for shape in operands if len(shape.dims) == 2 and shape.dtype in _FLOATS]
    if named is None or not floats:
        return None
    m, k, n = map(int, named.groups()[1:])
    used = m if rows is None else min(m, rows)
    read = sum(used * shape.dims[1] * shape.bytes / shape.elements for shape in floats)
    if named[1] == "gradient":
        return Cost(2.0 * used * k * n, read + sum(shape.hbm for shape in call.shapes))
    largest = max((shape.elements for shape in operands if len(shape.dims) == 3), default=0)  # beside it, scales
    weights = [shape for shape in operands if len(shape.dims) == 3 and shape.elements == largest]
    groups = largest / (k * n)
    touched = min(groups, experts or groups, used) / groups
    others = sum(shape.hbm for shape in operands if shape not in floats and shape not in weights)
    written = sum(used * n * shape.bytes / shape.elements for shape in call.shapes if len(shape.dims) == 2)
    return Cost(2.0 * used * k * n * len(weights), read + others + written + touched * sum(w.hbm for w in weights))
