"""What a step reads and does not train."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class Frozen:
    """An argument of every compiled function of a trainer.

    Attributes:
        base: of a run with adapters the parameters under them, by name, perhaps quantised, and the adapters' constants; None of
            a run that trains all parameters.
        arrays: arrays that the objective reads besides its batch, by name; equal for all micro-batches.
    """

    base: Any = None  # dict[str, jax.Array]; shapes or shardings in a tree of the same form
    arrays: dict[str, jax.Array] = struct.field(default_factory=dict)
