"""Products of a single row with a weight on GPUs, as in decoding for one user.

XLA:GPU turns the product of a vector with a matrix into an elementwise product, which it rounds and writes to memory, and a
sum: three times the traffic of the matrix. Of two rows it makes one kernel, which reads the matrix once; its
tiles have 16 rows or more anyway.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from qwen3_jax.kernels.execution import Execution


def einsum(equation: str, x: jax.Array, w: jax.Array, sums: Any, execution: Execution) -> jax.Array:
    """Return einsum(equation, x, w) in `sums` (None: the operands' type); on a GPU a single row is multiplied as two.

    Args:
        equation: "rows x columns" in einsum letters; x and the result may begin with an ellipsis.
        x: activations.
        w: a weight in x's dtype.
        sums: type of the result.
        execution: platform, and over how many devices the rows are split.
    """
    inputs, c = equation.split("->")
    a, b = inputs.split(",")
    summed = len([letter for letter in b if letter not in c])
    last = x.ndim - summed - 1  # the last axis of rows
    rows = math.prod(x.shape[: last + 1])
    if execution.platform != "gpu" or x.shape[last] > 1 or rows // execution.placement.parts("batch") > 1:
        return jnp.einsum(equation, x, w, preferred_element_type=sums)
    widths = [(0, 1 if axis == last else 0) for axis in range(x.ndim)]
    y = jnp.einsum(equation, jnp.pad(x, widths), w, preferred_element_type=sums)
    letter, after = a.removeprefix("...")[-summed - 1 : -summed], c.removeprefix("...")
    axis = after.index(letter) - len(after) if letter else -len(after) - 1
    return jax.lax.slice_in_dim(y, 0, 1, axis=axis % y.ndim)
