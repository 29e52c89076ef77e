"""Products of activations with weights: computed in the activations' type, with the weight's gradient in the weight's own.

    y = x W        dx = dy W^T        dW = x^T dy

A bf16 model with float32 parameters thus reduces its weight gradients in float32, over tokens and across devices; plain
differentiation of `einsum(x, w.astype(bf16))` would round them to bf16 first.

Quantised training follows SwitchBack (Wortsman et al. 2023, arXiv 2304.13013): y and dx are products of 8-bit numbers, scaled
by row of x and dy and by column of W; dW, whose sum runs over all tokens, is not quantised. Through qwix.

Weights that were quantised when they were loaded (`kernels.quantized`) are multiplied as they are, and never trained: only x
has a gradient. A weight with a low-rank addition (`kernels.low_rank`) is three products.

XLA:CPU multiplies bf16 twice as fast into float32 as into bf16, so there y and dx are rounded after the product. On other
platforms that would double what devices exchange when they sum the parts of a split product. Products of a few rows with bf16
weights, as in decoding, run in tiles on CPU (`tiled_cpu`).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.execution import ONE_DEVICE, Execution
from qwen3_jax.kernels.low_rank import LowRank, split_equation
from qwen3_jax.kernels.quantized import (
    Weight,
    dequantize,
    expand_columns,
    is_quantized,
    primal_values,
    quantized_einsum,
    zeros_of,
)
from qwen3_jax.kernels.single_row import einsum
from qwen3_jax.kernels.tiled_cpu import few_rows_einsum

# e4m3 has the digits that values need, e5m2 the range that gradients need (Micikevicius et al. 2022, arXiv 2209.05433).
_TYPES = {"int8": (jnp.int8, jnp.int8), "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def linear(
    equation: str, x: jax.Array, w: Weight, execution: Execution = ONE_DEVICE, bias: jax.Array | None = None
) -> jax.Array:
    """Return einsum(equation, x, w) + bias in x's dtype; the gradient of w comes in w's dtype from float32 sums.

    Args:
        equation: "rows x columns" in einsum letters, such as "btd,dnh->btnh"; every letter occurs in two of the terms.
        x: activations in the compute type.
        w: weights in their storage type, or quantised, or `LowRank`.
        execution: platform and quantization (of both products that involve w).
        bias: has the axes of w that are not summed over.

    Raises:
        UserError: the gradient of quantised weights was requested, or they meet `execution.quantization`.
    """
    if isinstance(w, LowRank):
        return linear(equation, x, w.base, execution, bias) + _addition(equation, x, w, execution).astype(x.dtype)
    if not is_quantized(w):
        y = _linear(equation, execution, x, w)
    elif execution.quantization is None:
        y = _quantized_linear(equation, execution, x, w)
    else:
        raise UserError(
            f"quantization={execution.quantization!r} is for training, and these weights were quantised when they were loaded."
        )
    return y if bias is None else y + expand_columns(equation, bias.astype(y.dtype))


def project(equation: str, x: jax.Array, w: Weight, execution: Execution = ONE_DEVICE) -> jax.Array:
    """Return einsum(equation, x, w) in float32; arguments as for `linear`, with ordinary gradients."""
    if isinstance(w, LowRank):
        return project(equation, x, w.base, execution) + _addition(equation, x, w, execution)
    if is_quantized(w):
        return quantized_einsum(equation, x, w, jnp.float32, execution)
    return _project(equation, execution, x, w)


def _addition(equation: str, x: jax.Array, w: LowRank, execution: Execution) -> jax.Array:
    """The low-rank part of a product, float32; never in 8 bits."""
    if execution.quantization is not None:
        execution = dataclasses.replace(execution, quantization=None)
    first, second = split_equation(equation)
    if x.dtype == jnp.float32 and execution.platform == "cpu":
        return _thin(second, execution, w.masked(_thin(first, execution, x, w.a)), w.b) * w.scaling
    return project(second, w.masked(linear(first, x, w.a, execution)), w.b, execution) * w.scaling


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _thin(equation: str, execution: Execution, x: jax.Array, w: jax.Array) -> jax.Array:
    """Return a float32 product with a weight of few rows or columns, as `project`.

    Its gradient by the weight sums over all tokens. XLA:CPU transposes the first operand of such a product, element by element:
    with the large one in second place a LoRA step takes a quarter less time.
    """
    return _project(equation, execution, x, w)


def _thin_backward(equation: str, execution: Execution, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = residuals
    (dx,) = jax.vjp(lambda x: _in_float32(equation, execution, x, w), x)[1](dy)
    inputs, of_y = equation.split("->")
    of_x, of_w = inputs.split(",")
    (small, few), (large, many) = sorted([(of_x, x), (of_y, dy)], key=lambda pair: pair[1].size)
    tokens = [letter for letter in of_x if letter not in of_w]
    of_few, of_many = ([letters.index(letter) for letter in tokens] for letters in (small, large))
    product = jax.lax.dot_general(few, many, ((of_few, of_many), ((), ())), preferred_element_type=jnp.float32)
    kept = [letter for letter in small + large if letter not in tokens]
    return dx, product.transpose([kept.index(letter) for letter in of_w]).astype(w.dtype)


_thin.defvjp(lambda equation, execution, x, w: (_thin(equation, execution, x, w), (x, w)), _thin_backward)


def _in_float32(equation: str, execution: Execution, x: jax.Array, w: jax.Array) -> jax.Array:
    return einsum(equation, x, w.astype(x.dtype), jnp.float32, execution)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(equation: str, execution: Execution, x: jax.Array, w: jax.Array) -> jax.Array:
    y = few_rows_einsum(equation, x, w) if execution.on_one_cpu else None
    return _in_float32(equation, execution, x, w) if y is None else y


# The integers that tiles are cut from have no gradient.
_project.defvjp(
    lambda equation, execution, x, w: (_project(equation, execution, x, w), (x, w)),
    lambda equation, execution, residuals, dy: jax.vjp(functools.partial(_in_float32, equation, execution), *residuals)[
        1
    ](dy),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _quantized_linear(equation: str, execution: Execution, x: jax.Array, w: Any) -> jax.Array:
    return quantized_einsum(equation, x, w, _sum_type(execution), execution).astype(x.dtype)


def _quantized_forward(equation: str, execution: Execution, x: Any, w: Any) -> Any:
    x, w = primal_values(x), primal_values(w, frozen=True)
    return _quantized_linear(equation, execution, x, w), (jnp.empty((0,), x.dtype), w)


def _quantized_backward(equation: str, execution: Execution, residuals: Any, dy: Any) -> Any:
    like, w = residuals
    a, b, c = _terms(equation)
    dx = jnp.einsum(f"{c},{b}->{a}", zeros_of(dy), dequantize(w, like.dtype), preferred_element_type=jnp.float32)
    return dx.astype(like.dtype), None


_quantized_linear.defvjp(_quantized_forward, _quantized_backward, symbolic_zeros=True)


def _value(equation: str, execution: Execution, x: jax.Array, w: jax.Array) -> jax.Array:
    if execution.quantization is None and execution.on_one_cpu:
        y = few_rows_einsum(equation, x, w)
        if y is not None:
            return y.astype(x.dtype)
    return _product(equation, execution, x, w.astype(x.dtype), 0)


_linear = jax.custom_vjp(_value, nondiff_argnums=(0, 1))


def _forward(equation, execution, x, w):
    # Not `_linear`: a policy of jax.checkpoint does not see products inside of a function with its own gradient.
    return _value(equation, execution, x, w), (x, w)


def _backward(equation, execution, residuals, dy):
    x, w = residuals
    a, b, c = _terms(equation)
    dx = _product(f"{c},{b}->{a}", execution, dy, w.astype(x.dtype), 1)
    dw = jnp.einsum(f"{a},{c}->{b}", x, dy, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_linear.defvjp(_forward, _backward)


def _terms(equation: str) -> tuple[str, str, str]:
    inputs, c = equation.split("->")
    a, b = inputs.split(",")
    return a, b, c


def _sum_type(execution: Execution) -> Any:
    """The type that XLA sums a product in: float32 on CPU, the operands' elsewhere (None)."""
    return jnp.float32 if execution.platform == "cpu" else None


def _product(equation: str, execution: Execution, x: jax.Array, w: jax.Array, operand: int) -> jax.Array:
    """The product in x's dtype, of quantised operands where asked for; operand 0: x holds values, 1: x holds gradients."""
    if execution.quantization is None:
        return einsum(equation, x, w, _sum_type(execution), execution).astype(x.dtype)
    import qwix

    a, b, c = _terms(equation)
    x_type, w_type = _TYPES[execution.quantization][operand], _TYPES[execution.quantization][0]
    # One scale for each row and each column: along every axis that is not summed over.
    x_8 = qwix.quantize(x, x_type, channelwise_axes=[i for i, letter in enumerate(a) if letter in c])
    w_8 = qwix.quantize(w, w_type, channelwise_axes=[i for i, letter in enumerate(b) if letter in c])
    return qwix.einsum(equation, x_8, w_8).astype(x.dtype)
