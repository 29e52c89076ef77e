"""The data types that weights are stored in."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qwen3_jax.errors import UserError
from qwen3_jax.kernels import is_quantized
from qwen3_jax.model import Qwen3


def as_dtype(name: Any) -> jnp.dtype:
    """Return a floating data type from its name; refuse others by name."""
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise UserError(f"dtype {name!r} is not supported; choose 'float32', 'bfloat16' or 'float16'.")
    return dtype


def refuse_quantized(model: Qwen3) -> None:
    """Refuse to save what `load(quantize=...)` made.

    Raises:
        UserError: says what to do instead.
    """
    leaves = jax.tree.leaves(nnx.state(model), is_leaf=is_quantized)
    if any(is_quantized(leaf) for leaf in leaves):
        raise UserError(
            "the model's weights were quantised when it was loaded, and saving them would lose what was rounded away: load it "
            "without quantize=, or write a quantised checkpoint with `qwen3 quantize`."
        )


def refuse_adapter(model: Qwen3) -> None:
    """Refuse to save a model without the adapter that it has.

    Raises:
        UserError: says what to do instead.
    """
    refuse_several(model, "saved")
    if model.lora is not None:
        raise UserError(
            "the model has an adapter, which a checkpoint of the model does not hold: add it to the weights first "
            "(`qwen3_jax.merged`), or save it alone (`qwen3_jax.save_adapter`)."
        )


def refuse_several(model: Qwen3, what: str) -> None:
    """Refuse a model with several adapters side by side where one is needed.

    Args:
        model: with adapters or without.
        what: would be done with the one, as "merged".

    Raises:
        UserError: names the adapters and says what to do instead.
    """
    if model.lora is not None and model.lora.names:
        names = ", ".join(map(repr, model.lora.names))
        raise UserError(
            f"the model has several adapters side by side ({names}); one alone can be {what}: load it alone."
        )
