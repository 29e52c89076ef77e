"""What XLA's operations and custom calls compute: which move data only, which multiply nothing, and the FLOPs of others.

An operation or call that is in none of the tables here is reported by name (`Program.unpriced`), not counted as nothing.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from qwen3_jax.planner.formulas import convolution_flops
from qwen3_jax.planner.hlo import Instruction, Shape

# Operations that neither compute nor move anything.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "domain",
    "opt-barrier", "add-dependency", "recv",
}  # fmt: skip

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip

# Each element of the result is computed from one element of each operand of the same size.
ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan2", "atanh", "bitcast-convert", "cbrt", "ceil", "clamp",
    "compare", "complex", "convert", "copy", "cosh", "cosine", "count-leading-zeros", "divide", "erf", "exponential",
    "exponential-minus-one", "floor", "imag", "is-finite", "log", "log-plus-one", "logistic", "maximum", "minimum",
    "multiply", "negate", "not", "or", "popcnt", "power", "real", "reduce-precision", "remainder", "reverse",
    "round-nearest-afz", "round-nearest-even", "rsqrt", "select", "shift-left", "shift-right-arithmetic",
    "shift-right-logical", "sign", "sine", "sinh", "sqrt", "stochastic-convert", "subtract", "tan", "tanh", "transpose",
    "xor",
}  # fmt: skip

# Other operations without products of matrices (openxla.org/xla/operation_semantics; xla/hlo/ir/hlo_opcode.h).
_NO_PRODUCTS = {
    "batch-norm-grad", "batch-norm-inference", "batch-norm-training", "broadcast", "call", "concatenate", "conditional",
    "dynamic-reshape", "dynamic-slice", "dynamic-update-slice", "fusion", "gather", "get-dimension-size", "infeed",
    "iota", "map", "outfeed", "pad", "recv-done", "reduce", "reduce-window", "reshape", "rng", "rng-bit-generator",
    "rng-get-and-update-state", "scatter", "select-and-scatter", "send", "send-done", "set-dimension-size", "slice",
    "sort", "topk", "while",
}  # fmt: skip

# The same elements under another shape or name.
VIEWS = ("bitcast", "reshape", "get-tuple-element")

# Custom calls that move no data: marks for the compiler, and the ends of asynchronous collectives.
MARKS = {
    "AllocateBuffer", "AssumeGatherIndicesInBound", "AsyncCollectiveStart", "AsyncCollectiveDone", "ConcatBitcast",
    "GatherScatterIndicesBitpacked", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "X64Combine",
}  # fmt: skip

# Custom calls of the compiler that read and write data but multiply nothing: sorts, look-ups, random numbers.
_NO_PRODUCT_CALLS = re.compile(
    r"TopK|PartialReduce|ApproxTopK|__gpu\$TopK|.*cub.*[Ss]ort.*|.*[Rr]adix[Ss]ort.*|cu_threefry2x32.*|__cudnn\$norm|"
    r"__onednn\$(?:softmax|layernorm)|PadToStatic|SliceToDynamic|MoveToHost|MoveToDevice|X64Split(?:Low|High)|"
    r"annotate_device_placement|GatherSortedIndicesOrders|PrepareAsyncCall(?:Start|Done)|ZeroCrop|ResizeNearest.*|Pin|Unpin|CreateBuffer|LayoutConstraint"
)

_PRODUCTS = re.compile(r"__cublas\$(?:gemm|lt\$matmul|lt\$matmul\$f8|lt\$groupedMatmul)|__onednn\$matmul")


def multiplies_nothing(i: Instruction) -> bool:
    """Whether an instruction is known to compute no product of matrices."""
    opcode = i.opcode.removesuffix("-start").removesuffix("-done").removesuffix("-update")
    if opcode == "custom-call":
        return i.target in MARKS or _NO_PRODUCT_CALLS.fullmatch(i.target) is not None
    return any(opcode in known for known in (ELEMENTWISE, _NO_PRODUCTS, FREE, COLLECTIVES)) or opcode == "async"


def product_flops(i: Instruction, operands: list[Shape]) -> float | None:
    """Return the FLOPs of a dot, a convolution or a library's product; None for anything else.

    Args:
        i: the instruction.
        operands: the arrays that it reads, in order.
    """
    if i.opcode in ("dot", "scaled-dot"):
        contracted = re.findall(r"\d+", i.attribute("lhs_contracting_dims") or "")
        return _dot(i.shapes[0], operands[0], [int(d) for d in contracted])
    if i.opcode == "convolution":
        lhs, rhs = operands[:2]
        return convolution_flops(lhs.dims, rhs.dims, i.shapes[0].dims, i.attributes.split(", metadata=")[0])
    if i.opcode.startswith("custom-call") and _PRODUCTS.fullmatch(i.target):
        contracted = backend_field(i, "lhs_contracting_dimensions")
        if contracted is None:
            return None
        return _dot(i.shapes[0], operands[0], [int(d) for d in contracted])
    return None


def _dot(result: Shape, lhs: Shape, contracted: list[int]) -> float:
    return 2.0 * result.elements * math.prod(lhs.dims[d] for d in contracted)


def backend_field(i: Instruction, name: str) -> Any:
    """Return the value of a field of the call's configuration, at any depth of the JSON; None where it has none."""
    match = re.search(rf'\\?"{name}\\?":', i.attributes)
    if match is None:
        return None
    text = i.attributes[match.end() :].replace('\\"', '"')
    try:
        return json.JSONDecoder().raw_decode(text.lstrip())[0]
    except json.JSONDecodeError:
        return None


def results(i: Instruction) -> tuple[Shape, ...]:
    """Return the arrays that an instruction writes, without the scratch memory that a library's call is given."""
    if re.match(r"__(?:cublas|cudnn)\$", i.target) and len(i.shapes) > 1 and i.shapes[-1].dtype in ("s8", "u8"):
        return i.shapes[:-1]
    return i.shapes
