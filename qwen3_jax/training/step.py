"""State, optimizer and the jitted step. Parameters are a flat dictionary by name (`qwen3_jax.model.flat`).

Invariant: parameters and both Adam moments live where the placement puts the parameter, from initialisation on; the step
donates its state, so nothing is ever held twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import Qwen3, Structure
from qwen3_jax.training import losses
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from sharding import Placement

Params = dict[str, jax.Array]
Batch = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """What a checkpoint holds: parameters, optimizer state, and the number of steps taken (int32)."""

    params: Any  # Params; shardings or shapes in a tree of the same form
    optimizer: Any
    step: Any


@struct.dataclass
class Metrics:
    """What one step reports, float32 scalars."""

    loss: losses.Loss
    gradient_norm: jax.Array
    parameter_norm: jax.Array
    learning_rate: jax.Array


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate of each step: linear warm-up, then the configured decay up to `steps`."""
    peak, end = config.learning_rate, config.learning_rate * config.final_learning_rate
    rest = steps - config.warmup_steps
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_learning_rate),
        "linear": lambda: optax.linear_schedule(peak, end, rest),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    # The first step already learns: warm-up counts 1, 2, ... and not 0, 1, ...
    warmup = optax.linear_schedule(peak / max(config.warmup_steps, 1), peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW after a clip by global norm; norms and biases are not decayed."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: {name: decayed(name) for name in params},
        ),
    )


def decayed(name: str) -> bool:
    """Whether weight decay applies to a parameter: to every matrix, not to norms and biases."""
    return not name.endswith(("scale", "bias"))


class Trainer:
    """A model's structure with everything that is compiled for it: `init`, `step`, `evaluate`.

    Args:
        config: the architecture.
        model: compute type, storage type, remat, stacking.
        optimizer: see `OptimizerConfig`.
        steps: length of the run, for the schedule.
        placement: mesh and rules.
    """

    def __init__(
        self, config: Qwen3Config, model: ModelConfig, optimizer: OptimizerConfig, steps: int, placement: Placement
    ):
        self.config = config
        self.placement = placement
        self._model = model
        self.structure = Structure(lambda: self._build(nnx.Rngs(0)))
        self.optimizer = make_optimizer(optimizer, steps)
        self._schedule = schedule(optimizer, steps)
        self.shardings = self._state_shardings()
        self.step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]] = jax.jit(
            self._step, donate_argnums=0, out_shardings=(self.shardings, None)
        )
        self.evaluate: Callable[[Params, Batch], losses.Loss] = jax.jit(self._evaluate)

    def _build(self, rngs: nnx.Rngs) -> Qwen3:
        return Qwen3(
            self.config,
            rngs=rngs,
            dtype=self._model.dtype,
            param_dtype=self._model.param_dtype,
            scan_layers=self._model.scan_layers,
            remat=self._model.remat,
            placement=self.placement,
        )

    def _state_shardings(self) -> TrainState:
        """The optimizer's moments live with their parameter, counters everywhere."""
        params = self.structure.shardings(self.placement)
        mesh = self.placement.mesh
        everywhere = next(iter(params.values())) if mesh is None else NamedSharding(mesh, PartitionSpec())
        abstract = jax.eval_shape(self.optimizer.init, self.structure.shapes)

        def of(path: tuple, _leaf: Any) -> jax.sharding.Sharding:
            return params.get(str(getattr(path[-1], "key", None)), everywhere)

        return TrainState(params, jax.tree_util.tree_map_with_path(of, abstract), everywhere)

    def init(self, seed: int) -> TrainState:
        """Return a fresh state; every device makes only its own part."""

        def make() -> TrainState:
            state = nnx.state(self._build(nnx.Rngs(seed)))
            params = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(state)}
            return TrainState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

        return jax.jit(make, out_shardings=self.shardings)()

    def init_from(self, params: Params) -> TrainState:
        """Return a state that starts from given parameters, already placed."""
        optimizer = jax.jit(self.optimizer.init, out_shardings=self.shardings.optimizer)(params)
        return TrainState(params, optimizer, jax.device_put(jnp.zeros((), jnp.int32), self.shardings.step))

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state, for restoring a checkpoint straight onto its devices."""
        shapes = self.structure.shapes
        plain = TrainState(shapes, jax.eval_shape(self.optimizer.init, shapes), jax.ShapeDtypeStruct((), jnp.int32))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            plain,
            self.shardings,
        )

    def place(self, batch: Mapping[str, Any]) -> Batch:
        """Put this process's rows of the global batch on its devices.

        Raises:
            ShardingError: the rows do not divide over the mesh.
        """
        if self.placement.mesh is None:
            return jax.device_put(dict(batch))
        rows, length = batch["tokens"].shape
        shape = (rows * jax.process_count(), length)
        sharding = self.placement.sharding(("batch", "length"), shape, "the global batch (data.batch_size)")
        return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def objective(params: Params) -> tuple[jax.Array, losses.Loss]:
            loss = losses.compute(self.structure.merge(params), batch)
            return loss.total, loss

        gradients, loss = jax.grad(objective, has_aux=True)(state.params)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = Metrics(
            loss, optax.tree.norm(gradients), optax.tree.norm(params), jnp.asarray(self._schedule(state.step))
        )
        return TrainState(params, optimizer, state.step + 1), metrics

    def _evaluate(self, params: Params, batch: Batch) -> losses.Loss:
        return losses.compute(self.structure.merge(params), batch)

    def model(self, params: Params) -> Qwen3:
        """Return the model with these parameters."""
        return self.structure.merge(params)


def host(metrics: Any) -> dict[str, float]:
    """Fetch metrics and flatten them to {"loss.total": 3.2, ...}."""
    flat = {}
    for key, value in dataclasses.asdict(jax.device_get(metrics)).items():
        items = value.items() if isinstance(value, dict) else [(None, value)]
        for name, number in items:
            flat[key if name is None else f"{key}.{name}"] = float(number)
    return flat
