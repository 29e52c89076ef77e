"""State and the jitted step. Parameters are a flat dictionary by name (`qwen3_jax.model.flat`).

With adapters (`lora`) the parameters of the state are theirs; the base model's are an argument of every compiled function.

Invariants: parameters and both Adam moments have the parameter's sharding from initialisation on. The step donates its state,
so there is one copy. Loss and gradients depend on the global batch alone, not on the mesh or the number of micro-batches
(except with other counts of the balancing loss than exact ones, `LossConfig.balance_counts`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax.checkpoint.described import described
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution, Kernels, WeightType
from qwen3_jax.model import Lora, Qwen3, RewardModel, Structure, abstract, flatten
from qwen3_jax.training import guard, losses
from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig
from qwen3_jax.training.flops import training_flops_per_token
from qwen3_jax.training.frozen import Frozen
from qwen3_jax.training.optimizer import Schedule, make_optimizer
from qwen3_jax.training.step_metrics import Metrics
from sharding import Placement, ShardingError, compiler_options

Params = dict[str, jax.Array]
DeviceBatch = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """The content of a checkpoint: parameters, optimizer state, guard, and the number of steps, skipped ones included."""

    params: Any  # Params; shardings or shapes in a tree of the same form
    optimizer: Any
    guard: Any
    step: Any


class Trainer:
    """A model's structure and its compiled functions: `init`, `step`, `evaluate`.

    Args:
        config: the architecture.
        model: compute type, storage type, remat, stacking.
        optimizer: see `OptimizerConfig`.
        rate: the learning rate of each step, from `schedule`.
        placement: mesh and rules.
        loss: terms besides cross-entropy.
        micro_batches: number of parts in which a batch is computed.
        lora: the adapters to train over a frozen base (`take_base`); None trains all parameters.
        objective: what is minimised.

    Raises:
        UserError, ShardingError: options that exclude each other, or a parameter that does not divide over the mesh.
    """

    def __init__(
        self,
        config: Qwen3Config,
        model: ModelConfig,
        optimizer: OptimizerConfig,
        rate: Schedule,
        placement: Placement,
        loss: LossConfig = LossConfig(),
        micro_batches: int = 1,
        lora: Lora | None = None,
        objective: losses.Objective = losses.LANGUAGE_MODEL,
    ):
        if loss.balance_counts != "exact" and not config.num_experts:
            raise UserError(
                f"loss.balance_counts {loss.balance_counts!r} needs a model with experts; this one is dense."
            )
        self.config = config
        self.placement = placement
        self.micro_batches = micro_batches
        self.lora = lora
        self.base: Params | None = None  # by name: frozen parameters, perhaps quantised, and constants of the adapters
        self.objective_arrays: dict[str, jax.Array] = {}  # arrays besides the batch that the objective reads
        self.completes: Callable[[DeviceBatch], DeviceBatch] = lambda batch: batch  # adds fields to one that is placed
        self.objective = objective
        self._model_config = model
        self._loss_config = loss
        self._optimizer_config = optimizer
        # A split sequence is computed in the order that gives each device the same share of causal attention.
        balanced = placement.parts("length") > 1
        self.execution = Execution(placement, model.kernels, model.quantization, balanced)
        self.structure = Structure(lambda: self.build(nnx.Rngs(0), self.execution))
        self.optimizer = make_optimizer(optimizer, rate)
        self._schedule = rate
        self.peaks = rate.peaks  # third argument of the compiled step
        self.shardings = self._state_shardings()
        # (state, batch, peaks, frozen) -> (state, Metrics); the state is donated.
        self._program: jax.stages.Wrapped = jax.jit(
            self._step,
            donate_argnums=0,
            out_shardings=(self.shardings, None),
            compiler_options=compiler_options(placement.mesh),
        )
        # (params, batch, frozen) -> Loss
        self._evaluation: jax.stages.Wrapped = jax.jit(self._evaluate)
        # (params, batch, frozen) -> (gradients, Loss)
        self._gradient: jax.stages.Wrapped = jax.jit(self._gradients, out_shardings=(self.shardings.params, None))

    def build(self, rngs: nnx.Rngs, execution: Execution, *, scan_layers: bool | None = None) -> Qwen3:
        """Build the model that is trained, with initial weights; where weights do not matter, trace it.

        Args:
            scan_layers: another layout of the layers than the one that is trained; None is that.
        """
        return self.objective.model(
            self.config,
            rngs=rngs,
            dtype=self._model_config.dtype,
            param_dtype=self._model_config.param_dtype,
            scan_layers=self._model_config.scan_layers if scan_layers is None else scan_layers,
            remat=self._model_config.remat,
            execution=execution,
            lora=self.lora,
        )

    def flops_per_token(self, sequence_length: int) -> float:
        """FLOPs per token of forward and backward pass in rows of a length, see `training_flops_per_token`."""
        outputs = 1 if self.objective.model is RewardModel else None
        return training_flops_per_token(self.config, sequence_length, self.lora, outputs=outputs)

    @property
    def kernels(self) -> Kernels:
        """Implementations that the model runs with."""
        return self._model_config.kernels

    @property
    def compute_type(self) -> jnp.dtype:
        """Type of activations, to which weights are cast for products."""
        return jnp.dtype(self._model_config.dtype)

    @property
    def _trained(self) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = self.structure.shapes
        return {name: shapes[name] for name in self.structure.trained}

    def _state_shardings(self) -> TrainState:
        """Moments have the sharding of their parameter; counters are replicated."""
        every = self.structure.shardings(self.placement)
        params = {name: every[name] for name in self.structure.trained}
        mesh = self.placement.mesh
        everywhere = next(iter(params.values())) if mesh is None else NamedSharding(mesh, PartitionSpec())

        def of(path: tuple, _leaf: Any) -> jax.sharding.Sharding:
            return params.get(str(getattr(path[-1], "key", None)), everywhere)

        return jax.tree_util.tree_map_with_path(of, jax.eval_shape(self._start, self._trained))

    def init(self, seed: int) -> TrainState:
        """Return an initial state; each device initialises only its own part."""

        def make() -> TrainState:
            params = flatten(self.build(nnx.Rngs(seed), self.execution))
            return self._start({name: params[name] for name in self.structure.trained})

        return jax.jit(make, out_shardings=self.shardings)()

    def initial(self, name: str, seed: int) -> jax.Array:
        """Return the initial value of one parameter, placed."""

        def make() -> jax.Array:
            return flatten(self.build(nnx.Rngs(seed), self.execution))[name]

        return jax.jit(make, out_shardings=self.shardings.params[name])()

    def init_from(self, params: Params) -> TrainState:
        """Return a state with these parameters, which are already placed; the first step donates them."""
        return jax.jit(self._start, out_shardings=self.shardings)(params)

    def take_base(self, base: Params | None) -> None:
        """Take the frozen parameters of a run with adapters, and place them on this trainer's mesh; None takes none.

        Args:
            base: by name, with the `constants`; as `load_model` or another stage's trainer has them.
        """
        mesh = self.placement.mesh

        def placed(leaf: jax.Array) -> jax.Array:
            if mesh is None or not isinstance(leaf.sharding, NamedSharding):
                return leaf
            return jax.device_put(leaf, NamedSharding(mesh, leaf.sharding.spec))

        self.base = jax.tree.map(placed, base)

    def constants(self) -> Params:
        """Return the values of the adapters that are not trained: their scalings."""
        every = self.structure.shardings(self.placement)
        names = [name for name in every if "adapters." in name and name not in self.shardings.params]

        def make() -> Params:
            values = flatten(self.build(nnx.Rngs(0), self.execution))
            return {name: values[name] for name in names}

        return jax.jit(make, out_shardings={name: every[name] for name in names})()

    def abstract_base(self, quantize: WeightType | None) -> Params | None:
        """Shapes, types and shardings of the frozen parameters, for compiling a step without them; None without adapters."""
        if self.lora is None:
            return None
        _, state = abstract(lambda: self.build(nnx.Rngs(0), self.execution))
        base = described(state, self.config, self._model_config.scan_layers, self.placement, quantize)
        shapes, every = self.structure.shapes, self.structure.shardings(self.placement)
        for name, shape in shapes.items():
            if name not in base and name not in self.shardings.params:
                base[name] = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=every[name])
        return base

    def evaluate(self, params: Params, batch: DeviceBatch) -> losses.Loss:
        """Return the loss of a placed global batch."""
        return self._evaluation(params, batch, self.frozen)

    def gradients(self, params: Params, batch: DeviceBatch) -> tuple[Params, losses.Loss]:
        """Return the gradients of what is trained, and the loss of a placed global batch."""
        return self._gradient(params, batch, self.frozen)

    @property
    def frozen(self) -> Frozen:
        """The last argument of the compiled functions."""
        if self.lora is not None and self.base is None:
            raise ValueError("a trainer of adapters needs its base model: call take_base first.")
        return Frozen(self.base, self.objective_arrays)

    def _start(self, params: Params) -> TrainState:
        """Return the state before the first step. Call it under jit: else counters share a buffer, which cannot be donated."""
        return TrainState(
            params,
            self.optimizer.init(params),
            guard.fresh(self._optimizer_config.spike_window),
            jnp.zeros((), jnp.int32),
        )

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state, for restoring a checkpoint straight onto its devices."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self._start, self._trained),
            self.shardings,
        )

    def abstract_batch(self, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a global batch, for compiling a step without data.

        Raises:
            ShardingError: the batch does not divide over the mesh and the micro-batches.
        """
        sharding = self._batch_sharding((batch_size, length))
        return {
            name: jax.ShapeDtypeStruct((batch_size, length, *rest), kind, sharding=sharding)
            for name, (kind, *rest) in (self.fields | dict(self.objective.computed)).items()
        }

    @property
    def fields(self) -> dict[str, tuple[Any, ...]]:
        """The fields of a batch that is placed: type, and what [B, T] is followed by."""
        experts, config = self.objective.experts, self.config
        more = (
            {experts: (jnp.int16, config.moe_layers * config.num_experts_per_tok)}
            if config.moe_layers and experts
            else {}
        )
        fields = self.objective.fields.items()
        return {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in fields} | more

    def local_rows(self, batch_size: int) -> list[int]:
        """The rows of a global batch that this process's devices need, ascending."""
        if self.placement.mesh is None:
            return list(range(batch_size))
        sharding = self.placement.sharding(("batch",), (batch_size,), "the global batch")
        indices = sharding.addressable_devices_indices_map((batch_size,)).values()
        return sorted({row for index in indices if index is not None for row in range(batch_size)[index[0]]})

    def place(self, batch: Mapping[str, Any], batch_size: int | None = None) -> DeviceBatch:
        """Put a batch on the devices.

        Args:
            batch: this process's rows (`local_rows`) of a global batch.
            batch_size: rows of the global batch; None if `batch` is the global batch.

        Raises:
            ShardingError: the batch does not divide over the mesh and the micro-batches.
        """
        batch = {name: batch[name] for name in self.fields}
        held, length = batch["tokens"].shape
        shape = (held if batch_size is None else batch_size, length)
        sharding = self._batch_sharding(shape)
        if self.placement.mesh is None:
            return self.completes(jax.device_put(batch))
        if self.execution.balanced:
            order = self.execution.order(length)
            batch = {name: rows[:, order] for name, rows in batch.items()}
        # Global row -> index into this process's rows; its devices read no others.
        place = np.full(shape[0], -1)
        place[range(held) if batch_size is None else self.local_rows(batch_size)] = np.arange(held)

        def put(rows: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None
                return rows[place[index[0]]][:, index[1]]

            return jax.make_array_from_callback((*shape, *rows.shape[2:]), sharding, part)

        return self.completes({name: put(np.asarray(rows)) for name, rows in batch.items()})

    def _batch_sharding(self, shape: tuple[int, ...]) -> jax.sharding.Sharding:
        rows, length = shape
        parts = self.placement.parts("batch")
        if rows % (parts * self.micro_batches):
            raise ShardingError(
                f"a global batch of {rows} rows (data.batch_size) does not divide by {parts} x {self.micro_batches}, the parts "
                f"of the mesh times micro_batches; choose a multiple of {parts * self.micro_batches}."
            )
        self.execution.order(length)  # raises where it cannot be balanced
        return self.placement.sharding(("batch", "length"), shape, "the global batch")

    def step(self, state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        """Take one optimizer step on a placed global batch. `state` is donated; do not reuse it."""
        return self._program(state, batch, self.peaks, self.frozen)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lower the step for a state and batch, abstract or not; the compiled step takes (state, batch, `peaks`, `frozen`)."""
        return self._program.lower(state, batch, self.peaks, self.frozen)

    def _step(
        self, state: TrainState, batch: DeviceBatch, peaks: jax.Array, frozen: Frozen
    ) -> tuple[TrainState, Metrics]:
        schedule = self._schedule.at(peaks)
        gradients, loss = self._gradients(state.params, batch, frozen)
        norm = optax.tree.norm(gradients)
        take, watched = guard.judge(state.guard, loss.total, norm, self._optimizer_config.spike_sigmas)
        update = make_optimizer(self._optimizer_config, schedule).update
        updates, optimizer = update(gradients, state.optimizer, state.params)
        taken = optax.apply_updates(state.params, updates), optimizer
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(take, new, old), taken, (state.params, state.optimizer)
        )
        # The schedule counts steps taken, not skipped ones.
        rate = jnp.asarray(schedule(state.step - state.guard.skipped))
        metrics = Metrics(loss, norm, optax.tree.norm(params), rate, watched.skipped, watched.in_row)
        return TrainState(params, optimizer, watched, state.step + 1), metrics

    def merge(self, params: Params, base: Params | None) -> Qwen3:
        """Return the model with these parameters, and those that are frozen, as the compiled functions see it."""
        return self.structure.merge(params if base is None else params | base)

    def _gradients(self, params: Params, batch: DeviceBatch, frozen: Frozen) -> tuple[Params, Any]:
        """Return the gradient of the loss of a global batch, in the type of the parameters, and the loss."""
        objective, whole = self.objective, self.objective.whole(batch)

        def share(params: Params, rows: DeviceBatch, whole: losses.Whole) -> tuple[jax.Array, Any]:
            return objective.share(self.merge(params, frozen.base), rows | frozen.arrays, whole, self._loss_config)

        gradient = objective.skipping(jax.grad(share, has_aux=True), bool(self.config.num_experts))
        if self.micro_batches == 1:
            gradients, sums = gradient(params, batch, whole)
        else:
            gradients, sums = self._accumulate(gradient, params, self.split(batch), whole, frozen.base)
        return gradients, objective.finish(sums, whole, self._loss_config, self.config.router_aux_loss_coef)

    def _accumulate(
        self, gradient: Callable, params: Params, parts: DeviceBatch, whole: losses.Whole, base: Params | None
    ) -> tuple[Params, Any]:
        """Sum the gradients of micro-batches in float32. `parts`: [micro-batches, rows, T]."""
        moe, buffer = bool(self.config.num_experts), self._loss_config.balance_counts == "buffer"
        seen: tuple[jax.Array, jax.Array] | None = None
        if moe:
            load = jax.eval_shape(self._count, params, base, jax.tree.map(lambda x: x[0], parts))
            seen = jnp.zeros(load.shape, load.dtype), jnp.zeros((), jnp.float32)
        if self._loss_config.balance_counts == "micro_batch":
            seen = None
        elif moe and not buffer:
            seen = self._count_all(params, base, parts, seen), whole.valid

        def body(carry: tuple, rows: DeviceBatch) -> tuple[tuple, Any]:
            total, seen = carry
            counts = whole
            if seen is not None:
                counts = dataclasses.replace(whole, load=seen[0], load_tokens=seen[1], add_own=buffer)
            gradients, sums = gradient(params, rows, counts)
            if buffer:
                seen = seen[0] + sums.router.load, seen[1] + sums.router.tokens[0]
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, gradients)
            return (self._like_params(total), seen), sums

        zeros = {name: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)) for name, p in params.items()}
        (gradients, _), sums = jax.lax.scan(body, (self._like_params(zeros), seen), parts)
        return gradients, self.objective.combine(sums)

    def _count(self, params: Params, base: Params | None, rows: DeviceBatch) -> jax.Array:
        return self.objective.skipping(losses.router_load, True)(self.merge(params, base), rows)

    def _count_all(self, params: Params, base: Params | None, parts: DeviceBatch, seen: Any) -> jax.Array:
        """Return the expert choices of the global batch, [L, E]: one forward pass over all micro-batches."""

        def body(load: jax.Array, rows: DeviceBatch) -> tuple[jax.Array, None]:
            return load + self._count(params, base, rows), None

        return jax.lax.scan(body, seen[0], parts)[0]

    def _like_params(self, tree: Params) -> Params:
        """Constrain sums of gradients to the shardings of their parameters."""
        if self.placement.mesh is None:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.shardings.params)

    def split(self, batch: DeviceBatch) -> DeviceBatch:
        """[B, T, ...] -> [micro-batches, rows, T, ...]; each micro-batch has an equal part of every device's rows."""
        parts, count = self.placement.parts("batch"), self.micro_batches

        def split(x: jax.Array) -> jax.Array:
            rows, *rest = x.shape
            x = x.reshape(parts, count, rows // parts // count, *rest).swapaxes(0, 1)
            axes = (None, "batch", "length", *(None for _ in rest[1:]))
            return self.placement.constrain(x.reshape(count, rows // count, *rest), axes)

        return {name: split(x) for name, x in batch.items()}

    def _evaluate(self, params: Params, batch: DeviceBatch, frozen: Frozen) -> Any:
        """Return the loss of a global batch, one micro-batch at a time; its balance counts each micro-batch by itself."""
        model, whole = self.merge(params, frozen.base), self.objective.whole(batch)
        share = self.objective.skipping(self.objective.share, bool(self.config.num_experts))

        def body(_: None, rows: DeviceBatch) -> tuple[None, Any]:
            return None, share(model, rows | frozen.arrays, whole, self._loss_config)[1]

        _, sums = jax.lax.scan(body, None, self.split(batch))
        sums = self.objective.combine(sums)
        return self.objective.finish(sums, whole, self._loss_config, self.config.router_aux_loss_coef)

    def model(self, params: Params) -> Qwen3:
        """Return the model with these parameters, for rows whose tokens come in order."""
        structure = self.structure
        if self.execution.balanced:
            in_order = dataclasses.replace(self.execution, balanced=False)
            structure = Structure(lambda: self.build(nnx.Rngs(0), in_order))
        return structure.merge(params if self.base is None else params | self.base)
