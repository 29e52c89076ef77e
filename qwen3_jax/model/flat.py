"""A model's parameters as a flat dictionary, `{"groups.0.attention.q": array}`, and back.

Training works on this form: optimizer, checkpoints, decay masks and metrics all name a parameter by one string.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from qwen3_jax.model.decoder import Qwen3
from sharding import Placement


class Structure:
    """Everything of a model but its numbers: made from a constructor, without memory.

    Args:
        make: builds the model; never run with real arrays.
    """

    def __init__(self, make: Callable[[], Qwen3]):
        self.graphdef, state = nnx.split(nnx.eval_shape(make))
        self._variables = dict(nnx.to_flat_state(state))
        self._names = {path: ".".join(map(str, path)) for path in self._variables}

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and data type of every parameter."""
        return {self._names[path]: variable.get_value() for path, variable in self._variables.items()}

    @property
    def logical_axes(self) -> dict[str, tuple[str, ...]]:
        """Logical axes of every parameter."""
        return {self._names[path]: v.get_metadata()["logical_axes"] for path, v in self._variables.items()}

    def shardings(self, placement: Placement) -> dict[str, jax.sharding.Sharding]:
        """Where every parameter lives.

        Raises:
            ShardingError: names a parameter that does not divide over the mesh.
        """
        axes = self.logical_axes
        return {name: placement.sharding(axes[name], value.shape, name) for name, value in self.shapes.items()}

    def merge(self, params: dict[str, Any]) -> Qwen3:
        """Return the model with these parameters (arrays or tracers)."""
        flat = [(path, variable.replace(params[self._names[path]])) for path, variable in self._variables.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))


def flatten(model: Qwen3) -> dict[str, jax.Array]:
    """Return a model's parameters by dotted path; no copy is made."""
    return {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(nnx.state(model))}
