"""The teacher of distillation in this process: its hidden states beside every batch.

    teacher = Teacher(config, trainer, tokenizer)
    teacher.attach()                      # `trainer.place` now adds the teacher's states to every batch

On the mesh of the student, or on devices of its own (`distillation.mesh`); then the student's devices hold its output
projection, and get its hidden states.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

import sharding
from qwen3_jax.checkpoint import load_model, load_tokenizer
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution
from qwen3_jax.model import Qwen3, flatten
from qwen3_jax.progress import doing
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.distillation import STATES, projection
from qwen3_jax.training.losses import BATCH_FIELDS, LANGUAGE_MODEL, hidden_of
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.own_devices import own_mesh
from qwen3_jax.training.step import DeviceBatch, Trainer
from qwen3_jax.training.token_values import TokenValues
from sharding import Placement

KEY = "distillation.teacher"


def teacher_folder(config: TrainConfig, tokenizer: Tokenizer) -> Path:
    """Return the teacher's folder, after a check of its tokenizer.

    Args:
        tokenizer: of the student.

    Raises:
        UserError: it cannot be read, or it has another tokenizer than the student.
    """
    assert config.distillation is not None
    name = config.distillation.teacher
    folder = resolve(name, key=KEY)
    own = load_tokenizer(folder)
    if own is None:
        raise UserError(f"{KEY}: {name} has no tokenizer, so its tokens cannot be compared with the student's.")
    if own.vocabulary() != tokenizer.vocabulary():
        raise UserError(
            f"{KEY}: {name} has another tokenizer than the student ({config.model.init_from}): token ids mean other texts. "
            "Take a teacher with the same vocabulary, or train on its answers as text (method: sft)."
        )
    return folder


def check_rows(teacher: int, student: int) -> None:
    """Refuse a teacher whose vocabulary has another number of rows than the student's.

    Raises:
        UserError: says both.
    """
    if teacher != student:
        raise UserError(
            f"{KEY}: the teacher has {teacher} vocabulary rows and the student {student}; distributions are compared row by "
            "row."
        )


def states_program(trainer: Trainer) -> TokenValues:
    """Return the program that gives the final hidden states of a placed batch, [B, T, E] in the compute type."""
    return TokenValues(trainer, lambda model, rows: hidden_of(model, rows).states.astype(model.dtype))


@doing("loading the teacher")
def load_teacher(config: TrainConfig, placement: Placement, tokenizer: Tokenizer, vocabulary: int) -> Qwen3:
    """Return the teacher, in the run's compute type.

    Args:
        placement: of its weights.
        tokenizer: of the student.
        vocabulary: rows of the student's.

    Raises:
        UserError: the teacher cannot be loaded or has another vocabulary.
        ShardingError: it does not divide over its mesh.
    """
    dtype = config.model.dtype
    model = load_model(
        teacher_folder(config, tokenizer), dtype=dtype, param_dtype=dtype, execution=Execution(placement),
        scan_layers=config.model.scan_layers,
    )  # fmt: skip
    assert isinstance(model, Qwen3)
    check_rows(model.config.vocab_size, vocabulary)
    return model


class Teacher:
    """A model whose distribution is learned.

    Args:
        config: the run.
        trainer: of the student.
        tokenizer: of the student.

    Raises:
        UserError: the teacher cannot be loaded or has another vocabulary.
        ShardingError: it does not divide over its mesh.
    """

    def __init__(self, config: TrainConfig, trainer: Trainer, tokenizer: Tokenizer):
        placement = teacher_placement(config, trainer.placement)
        model = load_teacher(config, placement, tokenizer, trainer.config.vocab_size)
        self._student, self._params = trainer, flatten(model)
        self.trainer = teacher_trainer(config, model.config, placement, trainer.micro_batches)
        self._states = states_program(self.trainer)

    def attach(self) -> None:
        """Make the student's trainer add the teacher's states to the batches that it places."""
        weight, tied = self.trainer.merge(self._params, None).output_matrix()
        name, axes = projection(tied)
        self._student.objective_arrays = {
            name: jax.device_put(weight, self._student.placement.sharding(axes, weight.shape))
        }
        self._student.completes = self.states

    def states(self, batch: DeviceBatch) -> DeviceBatch:
        """Return a batch of the student's trainer with the teacher's final hidden states, on the student's mesh."""
        here = {name: batch[name] for name in BATCH_FIELDS}
        if self.trainer.placement != self._student.placement:
            shape = here["tokens"].shape
            there = self.trainer.placement.sharding(("batch", "length"), shape)
            here = {name: jax.device_put(value, there) for name, value in here.items()}
        states = self._states.on_devices(self._params, here)
        axes = ("batch", "length", None)
        return batch | {STATES: jax.device_put(states, self._student.placement.sharding(axes, states.shape))}


def teacher_placement(config: TrainConfig, student: Placement) -> Placement:
    """Return the placement of the teacher: the student's, or one on the last devices.

    Raises:
        UserError: devices of its own, in a run of several processes.
        ShardingError: it does not fit the devices.
    """
    assert config.distillation is not None
    sizes = config.distillation.mesh
    if sizes is None:
        return student
    placement = Placement(own_mesh(sizes, "distillation.mesh", "the teacher has the run's mesh"), sharding.TRAINING)
    if placement.parts("length") != student.parts("length"):
        raise UserError(
            f"distillation.mesh splits sequences into {placement.parts('length')} parts and the run's mesh into "
            f"{student.parts('length')} (context); set both to the same, since hidden states are exchanged in that order."
        )
    return placement


def teacher_trainer(
    config: TrainConfig, architecture: Qwen3Config, placement: Placement, micro_batches: int
) -> Trainer:
    """Return a trainer of the teacher's architecture, of which the forward pass alone is used."""
    model = dataclasses.replace(config.model, quantization=None, param_dtype=config.model.dtype, remat="none")
    objective = dataclasses.replace(LANGUAGE_MODEL, fields=BATCH_FIELDS)
    return Trainer(
        architecture, model, config.optimizer, schedule(config.optimizer, 10**6), placement, micro_batches=micro_batches,
        objective=objective,
    )  # fmt: skip
