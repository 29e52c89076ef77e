"""Values of every token of a global batch, computed as a step computes its loss: in the same rows and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from qwen3_jax.model import Qwen3
from qwen3_jax.training.frozen import Frozen
from qwen3_jax.training.step import DeviceBatch, Params, Trainer
from qwen3_jax.training.zeros import zeros_of


class TokenValues:
    """A compiled function of (parameters, placed global batch), which returns values [B, T, ...] or a tree of such.

    A micro-batch without a learned token is skipped and gives zeros.

    Args:
        trainer: whose model, mesh and micro-batches are used.
        function: (model, rows) -> [rows, T, ...], or a tree of such.
    """

    def __init__(self, trainer: Trainer, function: Callable[[Qwen3, DeviceBatch], Any]):
        self._trainer = trainer

        def compute(params: Params, batch: DeviceBatch, frozen: Frozen) -> Any:
            model = trainer.merge(params, frozen.base)

            def of(rows: DeviceBatch) -> Any:
                def values() -> Any:
                    return function(model, rows)

                return jax.lax.cond(rows["loss_mask"].any(), values, lambda: zeros_of(values))

            return jax.tree.map(self._joined, jax.lax.map(of, trainer.split(batch)))

        self._program = jax.jit(compute)

    def __call__(self, params: Params, batch: DeviceBatch) -> Any:
        """Return the values, NumPy arrays, on the host of every process, with the tokens of each row in order."""
        return jax.tree.map(self._fetch, self.on_devices(params, batch))

    def on_devices(self, params: Params, batch: DeviceBatch) -> Any:
        """Return the values on the trainer's mesh, with the tokens of each row in the order of the batch."""
        return self._program(params, batch, self._trainer.frozen)

    def lower(self, params: Any, batch: Any) -> jax.stages.Lowered:
        """Lower the program for parameters and a batch, abstract or not."""
        return self._program.lower(params, batch, self._trainer.frozen)

    def _joined(self, parts_mrt: jax.Array) -> jax.Array:
        """The inverse of `Trainer.split`: [micro-batches, rows, T, ...] -> [B, T, ...]."""
        placement = self._trainer.placement
        parts = placement.parts("batch")
        count, rows, *rest = parts_mrt.shape
        whole = parts_mrt.reshape(count, parts, rows // parts, *rest).swapaxes(0, 1).reshape(-1, *rest)
        return placement.constrain(whole, ("batch", "length", *(None for _ in rest[1:])))

    def _fetch(self, values: jax.Array) -> np.ndarray:
        if values.is_fully_addressable:
            whole = np.asarray(values)
        else:
            from jax.experimental.multihost_utils import process_allgather

            whole = np.asarray(process_allgather(values, tiled=True))
        execution = self._trainer.execution
        if not execution.balanced:
            return whole
        in_order = np.empty_like(whole)
        in_order[:, execution.order(whole.shape[1])] = whole
        return in_order
