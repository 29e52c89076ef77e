"""Qwen's FP8 checkpoints (Qwen/Qwen3-8B-FP8 and the like), which are DeepSeek's form: e4m3 with one scale per block.

    weight[i, j] = float(weight8[i, j]) * weight_scale_inv[i // 128, j // 128]

Blocks at the right and lower edge may be smaller. Source: DeepSeek-V3's inference/kernel.py (`weight_dequant`) and
transformers' integrations/finegrained_fp8.py. The activations are quantised by whoever multiplies ("dynamic"), or, as here,
not at all.
"""

from dataclasses import dataclass
from typing import Any, Self

import ml_dtypes
import numpy as np

from qwen3_jax.checkpoint.formats.unpacked import Entries
from qwen3_jax.checkpoint.source import Entry, TensorReader
from qwen3_jax.errors import UserError

BLOCK = 128
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_MAX = 448.0
_TINY = np.finfo(np.float32).tiny
_VALUES = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)  # a lookup is faster than ml_dtypes' cast


@dataclass(frozen=True)
class Fp8Blocks:
    """A `Scheme`: e4m3 numbers with a scale per block of [block_rows, block_columns]."""

    block_rows: int = BLOCK
    block_columns: int = BLOCK

    part = "weight"
    needs = ("weight_scale_inv",)
    may_have = ()

    @property
    def row_step(self) -> int:
        """Whole blocks."""
        return self.block_rows

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read `quant_method: "fp8"`; raises UserError for scales that are not per block, or static activations."""
        block = config.get("weight_block_size")
        if not (isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)):
            raise UserError(
                f"config field 'quantization_config.weight_block_size' is {block!r}; FP8 checkpoints are read with one scale "
                "per block, such as [128, 128]."
            )
        for field, supported in (("activation_scheme", "dynamic"), ("fmt", "e4m3"), ("scale_fmt", "float")):
            value = config.get(field, supported)
            if value not in (supported, None):
                raise UserError(f"config field 'quantization_config.{field}' is {value!r}; only {supported!r} is read.")
        return cls(*block)

    def is_quantized(self, entry: Entry) -> bool:
        """Weights of modules that were not converted keep their floating type."""
        return entry.dtype == E4M3.name

    def shape(self, entries: Entries, stem: str) -> tuple[int, int]:
        """The weight's own shape; the scales must be one per block."""
        weight, scale = entries[f"{stem}.weight"].shape, entries[f"{stem}.weight_scale_inv"].shape
        wanted = (-(-weight[0] // self.block_rows), -(-weight[-1] // self.block_columns))
        if len(weight) != 2 or scale != wanted:
            raise UserError(
                f"tensor '{stem}.weight_scale_inv' has shape {list(scale)}; blocks of {self.block_rows} x "
                f"{self.block_columns} in {list(weight)} mean {list(wanted)}."
            )
        return weight[0], weight[1]

    def unpack(self, reader: TensorReader, entries: Entries, stem: str, rows: slice, columns: slice) -> np.ndarray:
        """See the formula above."""
        numbers = _VALUES[reader.read(f"{stem}.weight", (rows, columns)).view(np.uint8)]
        blocks = tuple(
            slice(part.start // block, -(-part.stop // block))
            for part, block in ((rows, self.block_rows), (columns, self.block_columns))
        )
        scale = reader.read(f"{stem}.weight_scale_inv", blocks).astype(np.float32)
        scale = scale.repeat(self.block_rows, axis=0)[: rows.stop - rows.start]
        skip = columns.start % self.block_columns
        numbers *= scale.repeat(self.block_columns, axis=1)[:, skip : skip + numbers.shape[1]]
        return numbers


def pack_fp8(weight: np.ndarray, block: int = BLOCK) -> dict[str, np.ndarray]:
    """Return the parts of a matrix in blocks whose largest number is 448: {"weight", "weight_scale_inv"}.

    Args:
        weight: float32 [rows, columns].
        block: side of a block.
    """
    rows, columns = weight.shape
    padded = np.pad(np.abs(weight), ((0, -rows % block), (0, -columns % block)))
    largest = padded.reshape(padded.shape[0] // block, block, -1, block).max(axis=(1, 3))
    scale = np.where(largest > 0, np.maximum(largest / np.float32(E4M3_MAX), _TINY), 1).astype(np.float32)
    spread = scale.repeat(block, axis=0)[:rows].repeat(block, axis=1)[:, :columns]
    numbers = np.clip(weight / spread, -E4M3_MAX, E4M3_MAX).astype(E4M3)
    return {"weight": numbers, "weight_scale_inv": scale}
