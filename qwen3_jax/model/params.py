"""One declaration per parameter gives its shape, logical axes and initialiser; everything else is derived from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class Declare:
    """Declares the parameters of one block, or of a stack of equal blocks with a leading "layers" axis.

    Attributes:
        rngs: source of initial values.
        dtype: storage data type of the parameters.
        stack: number of equal layers that share one array, or None for a single layer.
    """

    rngs: nnx.Rngs
    dtype: jnp.dtype
    stack: int | None = None

    def normal(self, shape: Sequence[int], axes: Sequence[str], std: float) -> nnx.Param:
        """Return a parameter drawn from N(0, std^2)."""
        shape, axes = self._stacked(shape, axes)
        # In float32 for any storage type: bf16 normals are coarse in the tails.
        value = std * jax.random.normal(self.rngs.params(), shape, jnp.float32)
        return nnx.Param(value.astype(self.dtype), logical_axes=axes)

    def constant(self, shape: Sequence[int], axes: Sequence[str], value: float) -> nnx.Param:
        """Return a parameter that starts at `value` everywhere (norm scales 1, biases 0)."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param(jnp.full(shape, value, self.dtype), logical_axes=axes)

    def _stacked(self, shape: Sequence[int], axes: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        if len(shape) != len(axes):
            raise ValueError(f"shape {tuple(shape)} and logical axes {tuple(axes)} differ in length")
        lead = () if self.stack is None else (self.stack,)
        return (*lead, *shape), (*(("layers",) * len(lead)), *axes)
