"""The metrics of one step, on the device and as numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import struct


@struct.dataclass
class Metrics:
    """Metrics of one step, float32 scalars except those of routers.

    Attributes:
        gradient_norm: global norm before clipping.
        skipped: steps skipped so far.
        skipped_in_row: steps skipped since the last one that was taken; 0 if this one was.
    """

    loss: Any
    gradient_norm: jax.Array
    parameter_norm: jax.Array
    learning_rate: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array


def fetch_metrics(metrics: Metrics) -> dict[str, float]:
    """Fetch metrics and flatten them: {"loss.total": 3.2, "loss.router_entropy": 4.1, "loss.router_entropy.00": 4.0, ...}.

    A metric of each layer becomes its mean and one value for each layer. The load of each expert is left out.
    """
    flat: dict[str, float] = {}
    for key, value in dataclasses.asdict(jax.device_get(metrics)).items():
        for name, number in value.items() if isinstance(value, dict) else [(None, value)]:
            if number is None or np.ndim(number) > 1:
                continue
            label = key if name is None else f"{key}.{name}"
            flat[label] = float(np.mean(number))
            if np.ndim(number):
                flat |= {f"{label}.{layer:02d}": float(x) for layer, x in enumerate(number)}
    return flat
