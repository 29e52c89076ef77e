"""A model's parameters as a flat dictionary, `{"groups.0.attention.q": array}`, and back.

Training uses this form: optimizer, checkpoints, decay masks and metrics name a parameter by one string.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx

from qwen3_jax.model.decoder import Qwen3
from qwen3_jax.model.params import shapes_of
from sharding import Placement


class Structure:
    """A model without its parameter values: names, shapes and logical axes; takes no memory for arrays.

    Args:
        make: builds the model; it is only traced.
    """

    def __init__(self, make: Callable[[], Qwen3]):
        self.graphdef, state = nnx.split(shapes_of(make))
        self._variables = dict(nnx.to_flat_state(state))
        self._names = {path: dotted(path) for path in self._variables}

    @property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and data type of every parameter."""
        return {self._names[path]: variable.get_value() for path, variable in self._variables.items()}

    @property
    def logical_axes(self) -> dict[str, tuple[str, ...]]:
        """Logical axes of every parameter."""
        return {self._names[path]: v.get_metadata()["logical_axes"] for path, v in self._variables.items()}

    @property
    def trained(self) -> list[str]:
        """Names of what is trained: the adapters where the model has any, else all parameters."""
        adapters = [name for path, name in self._names.items() if isinstance(self._variables[path], nnx.LoRAParam)]
        return adapters or list(self._names.values())

    def shardings(self, placement: Placement) -> dict[str, jax.sharding.Sharding]:
        """Return the sharding of every parameter.

        Raises:
            ShardingError: a parameter does not divide over the mesh; the message names it.
        """
        axes = self.logical_axes
        return {name: placement.sharding(axes[name], value.shape, name) for name, value in self.shapes.items()}

    def merge(self, params: dict[str, Any]) -> Qwen3:
        """Return the model with these parameters (arrays or tracers)."""
        flat = [(path, variable.replace(params[self._names[path]])) for path, variable in self._variables.items()]
        return nnx.merge(self.graphdef, nnx.from_flat_state(flat))


def flatten(model: Qwen3) -> dict[str, jax.Array]:
    """Return a model's parameters by dotted name; no copy is made."""
    return {dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model))}


def dotted(path: Iterable[Any]) -> str:
    """Return the name of the parameter at a path of `nnx.to_flat_state`: ("groups", 0, "mlp") -> "groups.0.mlp"."""
    return ".".join(map(str, path))
