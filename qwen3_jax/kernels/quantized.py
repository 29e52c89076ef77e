"""Weights of 8 or 4 bits for inference: quantise, dequantise, multiply.

    w  ~  qvalue * scale            y = x w

| name   | numbers             | one float32 scale for                                                          |
|--------|---------------------|--------------------------------------------------------------------------------|
| `int8` | -127 .. 127         | each output channel: all numbers that are summed into one                      |
| `fp8`  | e4m3 (448 at most)  | each output channel                                                            |
| `int4` | -7 .. 7             | each output channel and group of 128 numbers along the last axis that is summed |

A quantised weight is a `qwix.QArray`: `qvalue` has the shape of the weight, `scale` has as many axes, of size 1 where they
share a scale. Only weights are quantised, not activations or sums, so no calibration is needed.

The integer ranges are symmetric (qwix itself would use -128 and -8, by scaling to 127.5 and 7.5): quantising values that were
already rounded in this way, in any file format, does not change them.

A scale per output channel multiplies the product, which costs nothing; a scale per group multiplies the weight, which XLA fuses
into the product's operand on TPU and GPU; one CPU unpacks a few hundred rows at a time (`tiled_cpu`). At most one layer's
weight is unpacked at a time.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard, get_args

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import PartitionSpec

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.kernels.execution import ONE_DEVICE, Execution
from qwen3_jax.kernels.single_row import einsum
from qwen3_jax.kernels.tiled_cpu import Matrices, in_loop, quantized_tiles, scaled_tiles, tile_size, tiled_einsum

WeightType = Literal["int8", "fp8", "int4"]
GROUP = 128
_TYPES = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn, "int4": jnp.int4}
# qwix scales the largest number to 127.5 and 7.5; these factors make it 127 and 7.
_CALIBRATION = {"int8": f"absmax,{127.5 / 127!r}", "fp8": "absmax", "int4": f"absmax,{7.5 / 7!r}"}

Weight = Any  # jax.Array, or qwix.QArray: qwix is imported only where weights are quantised


def check_weight_type(name: str | None) -> None:
    """Check that a type of quantised weights is known and its library installed.

    Raises:
        UserError: it is not; the message names the choices or the package to install.
    """
    if name is None:
        return
    names = get_args(WeightType)
    if name not in names:
        raise UserError(f"there is no quantize={name!r}; choose one of {list(names)}.{nearest(str(name), names)}")
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise UserError(f"quantize={name!r} needs qwix: pip install 'qwen3-jax[quantization]'.") from error


def is_quantized(w: Weight) -> TypeGuard[Any]:
    """Whether a weight is a `qwix.QArray` and not an array."""
    return hasattr(w, "qvalue")


def quantize_weight(w: jax.Array, weight_type: WeightType, summed: Sequence[int], group: int | None = None) -> Any:
    """Return a weight as a `qwix.QArray` with float32 scales.

    Args:
        w: any floating type.
        weight_type: see the table above.
        summed: the axes that a product with the weight sums over; the last of them has the groups of int4.
        group: numbers in a group; None is 128, or the largest power of two below that divides the axis.
    """
    import qwix

    tiled, channels = {}, [axis for axis in range(w.ndim) if axis not in summed]
    if weight_type == "int4":
        tiled = {summed[-1]: group or math.gcd(GROUP, w.shape[summed[-1]])}
        channels += summed[:-1]
    return qwix.quantize(
        w.astype(jnp.float32),
        _TYPES[weight_type],
        channelwise_axes=channels,
        tiled_axes=tiled,
        calibration_method=_CALIBRATION[weight_type],
    )


def dequantize(w: Weight, dtype: Any) -> jax.Array:
    """Return a weight as an array of `dtype`; an array is only cast."""
    if not is_quantized(w):
        return w.astype(dtype)
    import qwix

    # 8-bit numbers are exact in bfloat16; the product with the scale is rounded once, here.
    return qwix.dequantize(w).astype(dtype)


def scaled_per_channel(w: Any, summed: Sequence[int]) -> bool:
    """Whether all numbers that one product sums have the same scale."""
    return w.zero_point is None and all(w.scale.shape[axis] == 1 for axis in summed)


def quantized_einsum(
    equation: str, x: jax.Array, w: Any, sums: Any = None, execution: Execution = ONE_DEVICE
) -> jax.Array:
    """Return einsum(equation, x, w) with a quantised weight, as `sums` or (None) x's dtype.

    Args:
        equation: "rows x columns" in einsum letters; x and the result may begin with an ellipsis, w may not.
        x: activations in the compute type.
        w: a quantised weight.
        sums: type of the result; None is x's.
        execution: one CPU device multiplies tile by tile.
    """
    inputs, c = equation.split("->")
    b = inputs.split(",")[1]
    summed = [axis for axis, letter in enumerate(b) if letter not in c]
    per_channel = scaled_per_channel(w, summed)
    y = _in_tiles(equation, x, w, summed, per_channel) if execution.on_one_cpu and w.zero_point is None else None
    if y is None and per_channel:
        # Unscaled sums may be 127 times too large for float16.
        inner = jnp.float32 if x.dtype == jnp.float16 else sums
        y = einsum(equation, x, w.qvalue.astype(x.dtype), inner, execution)
    elif y is None:
        y = einsum(equation, x, dequantize(w, x.dtype), sums, execution)
    if not per_channel:
        return y.astype(x.dtype if sums is None else sums)
    scale = expand_columns(equation, w.scale.squeeze(summed))
    return (y * scale).astype(x.dtype if sums is None else sums)


def expand_columns(equation: str, columns: jax.Array) -> jax.Array:
    """Return one number per column of w in einsum(equation, x, w), with axes that broadcast against the result."""
    inputs, result = equation.split("->")
    axes = [letter for letter in inputs.split(",")[1] if letter in result]
    columns = columns.transpose([axes.index(letter) for letter in result if letter in axes])
    letters = result.split("...")[-1]
    return jnp.expand_dims(columns, [axis for axis, letter in enumerate(letters) if letter not in axes])


def _in_tiles(equation: str, x: jax.Array, w: Any, summed: Sequence[int], per_channel: bool) -> jax.Array | None:
    """Return the product in float32, tile by tile, scaled unless `per_channel`; None where no tile size fits."""
    if per_channel:
        flat = Matrices(equation, x, w.shape)
        tile = tile_size(flat.shape, (1, 1), [flat.summed])
        if tile is None:
            return None
        numbers = quantized_tiles(w.qvalue.reshape(flat.shape), tile)
        return flat.result(tiled_einsum(flat.equation, flat.x, flat.shape, tile, numbers))
    tile = tile_size(w.shape, w.scale.shape, list(summed))
    return None if tile is None else tiled_einsum(equation, x, w.shape, tile, scaled_tiles(w, tile))


def take_rows(w: Weight, index: jax.Array, dtype: Any, execution: Execution = ONE_DEVICE) -> jax.Array:
    """Return rows of a table in `dtype`; of a quantised table only these rows are unpacked.

    Raises:
        ValueError: the table's scale is not per row.
    """
    if index.size == 1 and execution.placement.parts("vocab") > 1:
        # XLA takes a single row by a dynamic slice, for which it gathers a divided table on every device.
        return take_rows(w, jnp.stack([index, index]), dtype, execution)[0]
    if not is_quantized(w):
        by_bits = w.dtype == jnp.bfloat16 and execution.on_one_cpu
        return (_rows_by_bits(w, index) if by_bits else w[index]).astype(dtype)
    if not scaled_per_channel(w, range(1, w.ndim)):
        raise ValueError(f"a table needs one scale per row, not {w.scale.shape}")
    return (w.qvalue[index].astype(jnp.float32) * w.scale[index]).astype(dtype)


@jax.custom_vjp
def _rows_by_bits(w: jax.Array, index: jax.Array) -> jax.Array:
    """Return w[index] of bfloat16, indexed as integers: XLA:CPU would convert the whole table to float32."""
    bits = jax.lax.bitcast_convert_type(in_loop(w, index), jnp.uint16)[index]
    return jax.lax.bitcast_convert_type(bits, w.dtype)


def _rows_backward(residuals, dy):
    w, index = residuals
    return jax.vjp(lambda w: w[index], w)[1](dy)[0], None


_rows_by_bits.defvjp(lambda w, index: (_rows_by_bits(w, index), (w, index)), _rows_backward)


def specs(w: Weight, spec: PartitionSpec) -> Any:
    """Return the PartitionSpecs of a weight's arrays: a scale is split with its weight, but not along axes of size 1."""
    if hasattr(w, "specs"):  # `Stacked` experts
        return w.specs(spec)
    if not is_quantized(w):
        return spec
    return jax.tree.map(
        lambda part: PartitionSpec(*(None if n == 1 else name for n, name in zip(part.shape, spec, strict=True))), w
    )


def primal_values(arguments: Any, frozen: bool = False) -> Any:
    """Return the values of what a `jax.custom_vjp` with symbolic zeros hands to its forward pass.

    Raises:
        UserError: a gradient of them is asked for, and they are `frozen`: quantised weights.
    """

    def is_primal(leaf: Any) -> bool:
        return isinstance(leaf, CustomVJPPrimal)

    if frozen and any(leaf.perturbed for leaf in jax.tree.leaves(arguments, is_leaf=is_primal)):
        refuse_gradient()
    return jax.tree.map(lambda leaf: leaf.value, arguments, is_leaf=is_primal)


def zeros_of(gradient: Any) -> jax.Array:
    """Return an incoming gradient as an array, where it may be a symbolic zero."""
    return jnp.zeros(gradient.shape, gradient.dtype) if isinstance(gradient, SymbolicZero) else gradient


def refuse_gradient() -> None:
    """Raise the error of training quantised weights.

    Raises:
        UserError: always.
    """
    raise UserError(
        "quantised weights cannot be trained: load the model without quantize=, or with quantization= to train; or train "
        "an adapter over them (lora: in a training configuration)."
    )
