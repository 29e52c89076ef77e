"""Products of activations with weights: computed in the activations' type, with the weight's gradient in the weight's own.

    y = x W        dx = dy W^T        dW = x^T dy

A bf16 model with float32 parameters so reduces its weight gradients in float32, over tokens and across devices; plain
differentiation of `einsum(x, w.astype(bf16))` would round them to bf16 first.

Quantised training follows SwitchBack (Wortsman et al. 2023, arXiv 2304.13013): y and dx are products of 8-bit numbers, scaled
by row of x and dy and by column of W; dW, whose sum runs over all tokens, is not quantised. Through qwix.

Weights that were quantised when they were loaded (`kernels.quantized`) are multiplied as they are, and never trained.

XLA:CPU multiplies bf16 twice as fast into float32 as into bf16, so there y and dx are rounded after the product. On other
platforms that would double what devices exchange when they sum the parts of a split product. Products of a few rows with bf16
weights, as in decoding, run in tiles on CPU (`tiled_cpu`).
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.choice import target
from qwen3_jax.kernels.quantized import Weight, is_quantized, quantized_einsum, refuse_gradient
from qwen3_jax.kernels.tiled_cpu import few_rows_einsum
from sharding import Placement

Quantization = Literal["int8", "fp8"]
# e4m3 has the digits that values need, e5m2 the range that gradients need (Micikevicius et al. 2022, arXiv 2209.05433).
_TYPES = {"int8": (jnp.int8, jnp.int8), "fp8": (jnp.float8_e4m3fn, jnp.float8_e5m2)}


def check(quantization: Quantization | None) -> None:
    """Refuse a quantisation that is unknown or whose library is missing.

    Raises:
        UserError: says which and what to install.
    """
    if quantization is None:
        return
    if quantization not in _TYPES:
        raise UserError(f"there is no quantization {quantization!r}; choose one of {list(_TYPES)}, or leave it out.")
    try:
        import qwix  # noqa: F401
    except ImportError as error:
        raise UserError(f"quantization {quantization!r} needs qwix: pip install 'qwen3-jax[quantization]'.") from error


def linear(
    equation: str,
    x: jax.Array,
    w: Weight,
    quantization: Quantization | None = None,
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> jax.Array:
    """Return einsum(equation, x, w) in x's dtype; the gradient of w comes in w's dtype from float32 sums.

    Args:
        equation: "rows x columns" in einsum letters, such as "btd,dnh->btnh"; no letter is in one term alone.
        x: activations in the compute type.
        w: weights in their storage type, or quantised.
        quantization: of both products that involve w.
        placement: where the arrays live.

    Raises:
        UserError: the gradient of a product with quantised weights was asked for, or `quantization` of such weights.
    """
    if is_quantized(w):
        if quantization is not None:
            raise UserError(
                f"quantization={quantization!r} is for training, and these weights were quantised when they were loaded."
            )
        return _quantized_linear(equation, placement, x, w)
    return _linear(equation, quantization, placement, x, w)


def project(equation: str, x: jax.Array, w: Weight, placement: Placement = Placement()) -> jax.Array:  # noqa: B008 - frozen
    """Return einsum(equation, x, w) in float32; arguments as for `linear`, with ordinary gradients."""
    if is_quantized(w):
        return quantized_einsum(equation, x, w, jnp.float32, placement)
    return _project(equation, placement, x, w)


def _plain(equation: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, w.astype(x.dtype), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(equation: str, placement: Placement, x: jax.Array, w: jax.Array) -> jax.Array:
    y = few_rows_einsum(equation, x, w, placement)
    return _plain(equation, x, w) if y is None else y


# The integers that tiles are cut from have no gradient.
_project.defvjp(
    lambda equation, placement, x, w: (_project(equation, placement, x, w), (x, w)),
    lambda equation, placement, kept, dy: jax.vjp(functools.partial(_plain, equation), *kept)[1](dy),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _quantized_linear(equation: str, placement: Placement, x: jax.Array, w: Any) -> jax.Array:
    sums = jnp.float32 if target(placement) == "cpu" else None
    return quantized_einsum(equation, x, w, sums, placement).astype(x.dtype)


def _untrained(*_: Any) -> Any:
    refuse_gradient()


_quantized_linear.defvjp(_untrained, _untrained)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _linear(
    equation: str, quantization: Quantization | None, placement: Placement, x: jax.Array, w: jax.Array
) -> jax.Array:
    if quantization is None:
        y = few_rows_einsum(equation, x, w, placement)
        if y is not None:
            return y.astype(x.dtype)
    return _product(equation, quantization, placement, x, w.astype(x.dtype), 0)


def _forward(equation, quantization, placement, x, w):
    return _linear(equation, quantization, placement, x, w), (x, w)


def _backward(equation, quantization, placement, residuals, dy):
    x, w = residuals
    a, b, c = _terms(equation)
    dx = _product(f"{c},{b}->{a}", quantization, placement, dy, w.astype(x.dtype), 1)
    dw = jnp.einsum(f"{a},{c}->{b}", x, dy, preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_linear.defvjp(_forward, _backward)


def _terms(equation: str) -> tuple[str, str, str]:
    inputs, c = equation.split("->")
    a, b = inputs.split(",")
    return a, b, c


def _product(
    equation: str, quantization: Quantization | None, placement: Placement, x: jax.Array, w: jax.Array, kind: int
) -> jax.Array:
    """The product in x's dtype, of quantised operands when asked for; kind 0: x are values, 1: x are gradients."""
    if quantization is None:
        sums = jnp.float32 if target(placement) == "cpu" else None
        return jnp.einsum(equation, x, w, preferred_element_type=sums).astype(x.dtype)
    import qwix

    a, b, c = _terms(equation)
    x_type, w_type = _TYPES[quantization][kind], _TYPES[quantization][0]
    # One scale for each row and each column: along every axis that is not summed over.
    x_8 = qwix.quantize(x, x_type, channelwise_axes=[i for i, letter in enumerate(a) if letter in c])
    w_8 = qwix.quantize(w, w_type, channelwise_axes=[i for i, letter in enumerate(b) if letter in c])
    return qwix.einsum(equation, x_8, w_8).astype(x.dtype)
