"""One layer's experts inside the array that stacks all layers.

A scan over layers passes its body a slice, which XLA fuses into a product but copies for a Pallas kernel: a decode step would
read and write all experts of a layer to multiply by a few. The grouped products on TPU and GPU take the whole stack
instead: their groups are the experts of all layers, and all but this layer's are empty.

Shapes: l layers, e experts, d width, f expert width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from qwen3_jax.kernels.card import why_no_triton
from qwen3_jax.kernels.execution import Execution


@struct.dataclass
class Stacked:
    """The experts of layer `layer`, [E, D, F], in an array [L, E, D, F]."""

    array: jax.Array
    layer: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    @property
    def dtype(self):
        return self.array.dtype

    def __getitem__(self, key) -> Stacked:
        """`weight[...]`, as parameters are read."""
        assert key is Ellipsis
        return self

    @property
    def flat(self) -> jax.Array:
        """The weights of all layers' experts, [L E, D, F]."""
        return self.array.reshape(-1, *self.array.shape[2:])

    def groups(self, sizes_e: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the weights of all layers' experts, [L E, D, F], and the rows of each: 0 but for this layer's."""
        layers, experts = self.array.shape[:2]
        sizes = jnp.zeros(layers * experts, sizes_e.dtype)
        return self.flat, jax.lax.dynamic_update_slice_in_dim(sizes, sizes_e, self.layer * experts, 0)

    def specs(self, spec: PartitionSpec) -> Stacked:
        """Return the PartitionSpecs of the parts, given that of a layer's experts."""
        return Stacked(PartitionSpec(None, *spec), PartitionSpec())  # type: ignore[arg-type]


def unstacked(w):
    """Return a layer's experts as an array of their own."""
    return w.array[w.layer] if isinstance(w, Stacked) else w


def takes_stacks(execution: Execution) -> bool:
    """Whether a model should leave its experts in their stack for `expert_mlp`."""
    if execution.kernels.experts not in ("auto", "grouped", "triton", "all_gather", "all_to_all"):
        return False
    return execution.platform == "tpu" or (execution.platform == "gpu" and why_no_triton(execution.card) is None)
