"""Which models an engine takes, and how long its requests may be."""

from __future__ import annotations

import warnings

from qwen3_jax.errors import UserError
from qwen3_jax.model import Qwen3


def check_model(model: Qwen3, report_experts: bool) -> None:
    """Check that an engine can answer with a model.

    Raises:
        UserError: a model without a vocabulary; `report_experts` of a dense one.
    """
    if model.no_text is not None:
        raise UserError(f"{model.no_text}.")
    if report_experts and not model.config.moe_layers:
        raise UserError("engine option report_experts: this model is dense; leave it out.")


def length_that_fits(max_length: int | None, context: int, slots: int, cache_tokens: int | None) -> int:
    """Return the tokens of the longest request, in a cache of `slots` tokens.

    Raises:
        UserError: `max_length` is more than that.
    """
    if slots >= (max_length or context):
        return max_length or context
    advice = "quantise the cache or the weights, or use more devices"
    if max_length is not None:
        if cache_tokens is not None:
            raise UserError(
                f"engine option max_length is {max_length}, but a cache of cache_tokens={cache_tokens} holds requests of"
                f" {slots} tokens at most; lower the one or raise the other."
            )
        raise UserError(
            f"engine option max_length is {max_length}, but half of the free memory holds a cache of {slots} tokens; lower it,"
            f" {advice}."
        )
    if cache_tokens is None:
        warnings.warn(
            f"requests may have {slots:,} tokens and not the {context:,} of the model's context, because half of the free"
            f" memory holds no larger cache; {advice}.",
            UserWarning,
            stacklevel=3,
        )
    return slots
