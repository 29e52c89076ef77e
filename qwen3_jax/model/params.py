"""One declaration per parameter gives its shape, logical axes and initialiser; everything else is derived from it."""

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.model.lora import Adapter, Lora, Scaling
from sharding.rules import LogicalAxes

T = TypeVar("T", bound=nnx.Module)
_SHAPES_ONLY = ContextVar("shapes_only", default=False)
Sized = tuple[Sequence[int], Sequence[str | None]]  # sizes and logical axes


@dataclass(frozen=True)
class Declare:
    """Declares the parameters of one block, or of a stack of equal blocks with a leading "layers" axis.

    Attributes:
        rngs: source of initial values.
        dtype: storage data type of the parameters.
        stack: number of equal layers that share one array, or None for a single layer.
        lora: which weights have adapters; None for none.
        layers: the layers of the block, (None,) outside of blocks.
    """

    rngs: nnx.Rngs
    dtype: jnp.dtype
    stack: int | None = None
    lora: Lora | None = None
    layers: tuple[int | None, ...] = (None,)

    def normal(self, shape: Sequence[int], axes: Sequence[str | None], std: float) -> nnx.Param:
        """Return a parameter drawn from N(0, std^2)."""
        shape, axes = self._stacked(shape, axes)
        # In float32 for any storage type: bf16 normals are coarse in the tails.
        drawn = not _SHAPES_ONLY.get()
        value = (
            std * jax.random.normal(self.rngs.params(), shape, jnp.float32) if drawn else jnp.zeros(shape, self.dtype)
        )
        return nnx.Param(value.astype(self.dtype), logical_axes=axes)

    def constant(self, shape: Sequence[int], axes: Sequence[str | None], value: float) -> nnx.Param:
        """Return a parameter that starts at `value` everywhere (norm scales 1, biases 0)."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param(jnp.full(shape, value, self.dtype), logical_axes=axes)

    def adapters(self, **weights: tuple[str, nnx.Param, int]) -> nnx.Dict | None:
        """Return the adapters of the weights that `lora` names, None for none.

        Args:
            weights: for each, its name in `lora`, the parameter, and the number of its axes that a product sums over, which
                come first (behind those of layers and experts).
        """
        lead = int(self.stack is not None)
        made = {}
        for key, (name, param, summed) in weights.items():
            axes, shape = param.get_metadata()["logical_axes"][lead:], param.get_value().shape[lead:]
            experts = int(axes[0] == "expert")
            ends = experts + summed
            adapter = self.adapter(name, (shape[:experts], axes[:experts]), (shape[experts:ends], axes[experts:ends]),
                                   (shape[ends:], axes[ends:]))  # fmt: skip
            if adapter is not None:
                made[key] = adapter
        return nnx.Dict(made) if made else None

    def adapter(self, name: str, experts: Sized, inputs: Sized, outputs: Sized, table: bool = False) -> Adapter | None:
        """Return the adapter of a weight, None where `lora` has none; (sizes, logical axes) of its experts, inputs and outputs.

        A is drawn from U(-1/sqrt(inputs), 1/sqrt(inputs)) and B is 0, or for a `table` of rows A is 0 and B from N(0, 1), as
        in PEFT. Both are float32.
        """
        found = None if self.lora is None else self.lora.of(name, self.layers)
        if self.lora is None or found is None:
            return None
        ranks, scalings = found
        rank, lead = max(ranks), () if self.stack is None else (self.stack,)
        a_shape, a_axes = self._stacked((*experts[0], *inputs[0], rank), (*experts[1], *inputs[1], None))
        b_shape, b_axes = self._stacked((*experts[0], rank, *outputs[0]), (*experts[1], None, *outputs[1]))
        used = (np.arange(rank) < np.asarray(ranks)[:, None]).astype(np.float32)  # [layers, rank]
        used_a = used.reshape(*lead, *(1,) * (len(a_shape) - len(lead) - 1), rank)
        used_b = used.reshape(*lead, *(1,) * len(experts[0]), rank, *(1,) * len(outputs[0]))
        key, bound = self.rngs.params(), math.prod(inputs[0]) ** -0.5
        if table:
            a, b = jnp.zeros(a_shape, jnp.float32), jax.random.normal(key, b_shape, jnp.float32) * used_b
        else:
            a = jax.random.uniform(key, a_shape, jnp.float32, -bound, bound) * used_a
            b = jnp.zeros(b_shape, jnp.float32)
        scaling = jnp.asarray(scalings, jnp.float32).reshape(lead)
        return Adapter(
            nnx.LoRAParam(a, logical_axes=a_axes),
            nnx.LoRAParam(b, logical_axes=b_axes),
            Scaling(scaling, logical_axes=("layers",) * len(lead)),
            several=bool(self.lora.names),
        )

    def _stacked(self, shape: Sequence[int], axes: Sequence[str | None]) -> tuple[tuple[int, ...], LogicalAxes]:
        if len(shape) != len(axes):
            raise ValueError(f"shape {tuple(shape)} and logical axes {tuple(axes)} differ in length")
        lead = () if self.stack is None else (self.stack,)
        return (*lead, *shape), (*(("layers",) * len(lead)), *axes)


def shapes_of(make: Callable[[], T]) -> T:
    """Return the module that `make` builds with `jax.ShapeDtypeStruct` for arrays.

    As `nnx.eval_shape`, but the initial values are not traced, which takes a second for 28 layers.
    """
    token = _SHAPES_ONLY.set(True)
    try:
        return nnx.eval_shape(make)
    finally:
        _SHAPES_ONLY.reset(token)
