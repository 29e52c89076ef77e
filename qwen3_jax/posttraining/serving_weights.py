"""The weights of a training state as the engine serves them: on the same devices or on others, under the rules of serving.

Training splits large parameters over `data` too; serving keeps whole copies along it (`sharding.SERVING`). Where both rules and
both types agree, the engine uses the very arrays of the training state, and no copy exists. Layers that are trained as a stack
are served one by one where decoding is faster so (`kernels.prefers_unrolled_decoding`), which copies them.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

import sharding
from qwen3_jax.config import Qwen3Config
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.kernels import Execution, prefers_unrolled_decoding
from qwen3_jax.model import Qwen3, Structure, layer_groups
from qwen3_jax.training.step import Params, Trainer

Shapes = Mapping[str, jax.ShapeDtypeStruct]


class ServingWeights:
    """Makes the model that an engine serves from the parameters of a trainer.

    Weights of matrix products are held in the compute type, to which the trainer casts them as well; norms, routers and the
    scalings of adapters keep theirs, so that both compute the same.

    Args:
        trainer: whose parameters they are.
        generation_config: of the model.
        mesh: of the engine; None is the trainer's. On devices of its own every weight is a copy.
    """

    def __init__(self, trainer: Trainer, generation_config: GenerationConfig, mesh: Mesh | None = None):
        placement = sharding.Placement(trainer.placement.mesh if mesh is None else mesh, sharding.SERVING)
        execution = Execution(placement, trainer.kernels)
        self._trainer, self._generation_config = trainer, generation_config
        scan_layers = False if prefers_unrolled_decoding(placement) else None
        self._structure = Structure(lambda: trainer.build(nnx.Rngs(0), execution, scan_layers=scan_layers))
        shardings, shapes = self._structure.shardings(placement), self._structure.shapes
        own_shapes, own = trainer.structure.shapes, trainer.structure.shardings(trainer.placement)
        self._sources = _sources(trainer.config, shapes, own_shapes)
        kinds = {name: self._kind(name, shape) for name, shape in shapes.items()}
        self._moved = {
            name
            for name, (source, layer) in self._sources.items()
            if layer is not None
            or kinds[name] != own_shapes[source].dtype
            or not _agree(shardings[name], own[source], shapes[name])
        }

        def moved(params: Params) -> Params:
            out = {}
            for name in sorted(self._moved):
                source, layer = self._sources[name]
                value = params[source]
                value = value if layer is None else jax.tree.map(lambda x, layer=layer: x[layer], value)
                out[name] = value.astype(kinds[name]) if isinstance(value, jax.Array) else value
            return out

        self._elsewhere = None if mesh is None else shardings
        there = {name: shardings[name] for name in sorted(self._moved)}
        self._move = jax.jit(moved, out_shardings=there if mesh is None else None)

    @property
    def copied(self) -> set[str]:
        """Names of the served parameters that are copied: to other devices, into another type, or out of a stack of layers."""
        return set(self._moved if self._elsewhere is None else self._sources)

    def model(self, params: Params) -> Qwen3:
        """Return the model with these parameters; arrays that are not copied are the trainer's, which its next step donates."""
        every = params if self._trainer.base is None else params | self._trainer.base
        served = {name: every[source] for name, (source, layer) in self._sources.items() if layer is None}
        if self._moved:
            served |= self._move({source: every[source] for source in {self._sources[name][0] for name in self._moved}})
        if self._elsewhere is not None:
            served = jax.device_put(served, {name: self._elsewhere[name] for name in served})
        model = self._structure.merge(served)
        model.generation_config = self._generation_config
        return model

    def _kind(self, name: str, shape: jax.ShapeDtypeStruct) -> jnp.dtype:
        compute = self._trainer.compute_type
        base = self._trainer.base
        source = self._sources[name][0]
        if base is not None and source in base and not isinstance(base[source], jax.Array):
            return shape.dtype  # quantised
        axes = [axis for axis in self._structure.logical_axes[name] if axis != "layers"]
        is_matrix = len(axes) > 1 and "router" not in axes and "adapters." not in name
        return compute if is_matrix else shape.dtype


def _sources(config: Qwen3Config, served: Shapes, trained: Shapes) -> dict[str, tuple[str, int | None]]:
    """Return where each served parameter comes from: a trained one, and which layer of its stack; None is the whole of it."""
    if {name: one.shape for name, one in served.items()} == {name: one.shape for name, one in trained.items()}:
        return {name: (name, None) for name in served}
    groups = enumerate(layer_groups(config, True))
    places = [(group, place) for group, (_, layers) in groups for place in range(len(layers))]  # of each layer
    out: dict[str, tuple[str, int | None]] = {}
    for name in served:
        kind, _, rest = name.partition(".")
        if kind == "groups":
            layer, _, rest = rest.partition(".")
            group, place = places[int(layer)]
            out[name] = f"groups.{group}.{rest}", place
        else:
            out[name] = name, None
    return out


def _agree(one: jax.sharding.Sharding, other: jax.sharding.Sharding, shape: jax.ShapeDtypeStruct) -> bool:
    return one.is_equivalent_to(other, len(shape.shape))
