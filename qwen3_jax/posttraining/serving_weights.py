"""The weights of a training state as the engine serves them: on the same devices, under the rules of serving.

Training splits large parameters over `data` too; serving keeps whole copies along it (`sharding.SERVING`). Where both rules and
both types agree, the engine uses the very arrays of the training state, and no copy exists.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

import sharding
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.kernels import Execution
from qwen3_jax.model import Qwen3, Structure
from qwen3_jax.training.step import Params, Trainer


class ServingWeights:
    """Makes the model that an engine serves from the parameters of a trainer.

    Weights of matrix products are held in the compute type, to which the trainer casts them as well; norms, routers and the
    scalings of adapters keep theirs, so that both compute the same.

    Args:
        trainer: whose parameters they are.
        generation_config: of the model.
    """

    def __init__(self, trainer: Trainer, generation_config: GenerationConfig):
        placement = sharding.Placement(trainer.placement.mesh, sharding.SERVING)
        execution = Execution(placement, trainer.kernels)
        self._trainer, self._generation_config = trainer, generation_config
        self._structure = Structure(lambda: trainer.build(nnx.Rngs(0), execution))
        shardings, shapes = self._structure.shardings(placement), self._structure.shapes
        own = trainer.structure.shardings(trainer.placement)
        kinds = {name: self._kind(name, shape) for name, shape in shapes.items()}
        self._moved = {
            name
            for name in shapes
            if kinds[name] != shapes[name].dtype or not _agree(shardings[name], own[name], shapes[name])
        }

        def moved(params: Params) -> Params:
            return {name: value.astype(kinds[name]) for name, value in params.items()}

        self._move = jax.jit(moved, out_shardings={name: shardings[name] for name in sorted(self._moved)})

    @property
    def copied(self) -> set[str]:
        """Names of the parameters that are copied to other devices or into another type."""
        return set(self._moved)

    def model(self, params: Params) -> Qwen3:
        """Return the model with these parameters; arrays that are not copied are the trainer's, which its next step donates."""
        every = params if self._trainer.base is None else params | self._trainer.base
        if self._moved:
            every = every | self._move({name: every[name] for name in self._moved})
        model = self._structure.merge(every)
        model.generation_config = self._generation_config
        return model

    def _kind(self, name: str, shape: jax.ShapeDtypeStruct) -> jnp.dtype:
        compute = self._trainer.compute_type
        base = self._trainer.base
        if base is not None and name in base and not isinstance(base[name], jax.Array):
            return shape.dtype  # quantised
        axes = [axis for axis in self._structure.logical_axes[name] if axis != "layers"]
        is_matrix = len(axes) > 1 and "router" not in axes and "adapters." not in name
        return compute if is_matrix else shape.dtype


def _agree(one: jax.sharding.Sharding, other: jax.sharding.Sharding, shape: jax.ShapeDtypeStruct) -> bool:
    return one.is_equivalent_to(other, len(shape.shape))
