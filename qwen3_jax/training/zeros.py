"""What stands for a part of a program that is not computed, because nothing would come of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def zeros_of(function: Callable[[], Any]) -> Any:
    """Return zeros of the shapes and dtypes of what a function returns, which is not computed: a branch of `jax.lax.cond`."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function))
