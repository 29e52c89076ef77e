"""int8 weights as the package compressed-tensors (vLLM's llm-compressor) stores them: its format "int-quantized".

    weight[i, j] = weight8[i, j] * weight_scale[i, j // group]      group: all columns (strategy "channel") or fewer ("group")

Source: compressed-tensors' compressors/quantized_compressors and quantization/lifecycle/forward.py (`_dequantize`). The
activations are quantised by whoever multiplies ("dynamic"), or, as here, not at all.
"""

from typing import Any, Self

import numpy as np

from qwen3_jax.checkpoint.formats.unpacked import Entries
from qwen3_jax.checkpoint.source import Entry, TensorReader
from qwen3_jax.errors import UserError

MAX = 127
_TINY = np.finfo(np.float32).tiny


class Int8:
    """A `Scheme`: int8 numbers with a scale per row, or per group of columns in a row."""

    part = "weight"
    needs = ("weight_scale",)
    may_have = ()
    row_step = 1

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read `quant_method: "compressed-tensors"`; raises UserError for other formats than symmetric int8, by name."""
        prefix = "config field 'quantization_config"
        advice = "only symmetric 'int-quantized' int8 of this method is read; load the unquantised checkpoint."
        if config.get("format") != "int-quantized":
            raise UserError(f"{prefix}.format' is {config.get('format')!r}; {advice}")
        if config.get("kv_cache_scheme") is not None:
            raise UserError(f"{prefix}.kv_cache_scheme' is set; the cache's type is chosen by who generates.")
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not groups:
            raise UserError(f"{prefix}.config_groups' says nothing of the weights.")
        for name, group in groups.items():
            weights = group.get("weights") if isinstance(group, dict) else None
            settings = weights if isinstance(weights, dict) else {}
            wanted = {"num_bits": (8,), "type": ("int",), "symmetric": (True,), "strategy": ("channel", "group")}
            for field, values in wanted.items():
                if settings.get(field) not in values:
                    raise UserError(
                        f"{prefix}.config_groups.{name}.weights.{field}' is {settings.get(field)!r}; {advice}"
                    )
            activations = group.get("input_activations")
            if isinstance(activations, dict) and not activations.get("dynamic"):
                raise UserError(f"{prefix}.config_groups.{name}.input_activations' are static; {advice}")
        return cls()

    def is_quantized(self, entry: Entry) -> bool:
        """Weights of ignored modules keep their floating type."""
        return entry.dtype == "int8"

    def shape(self, entries: Entries, stem: str) -> tuple[int, int]:
        """The weight's own shape; groups must divide its columns."""
        weight, scale = entries[f"{stem}.weight"].shape, entries[f"{stem}.weight_scale"].shape
        if len(weight) != 2 or len(scale) != 2 or scale[0] != weight[0] or not scale[1] or weight[1] % scale[1]:
            raise UserError(
                f"tensor '{stem}.weight_scale' has shape {list(scale)}, which does not divide {list(weight)} into channels or "
                "groups."
            )
        return weight[0], weight[1]

    def unpack(self, reader: TensorReader, entries: Entries, stem: str, rows: slice, columns: slice) -> np.ndarray:
        """See the formula above."""
        count = entries[f"{stem}.weight_scale"].shape[1]
        group = entries[f"{stem}.weight"].shape[1] // count
        numbers = reader.read(f"{stem}.weight", (rows, columns)).astype(np.float32)
        groups = slice(columns.start // group, -(-columns.stop // group))
        scale = reader.read(f"{stem}.weight_scale", (rows, groups)).astype(np.float32)
        skip = columns.start % group
        numbers *= scale if count == 1 else scale.repeat(group, axis=1)[:, skip : skip + numbers.shape[1]]
        return numbers


def pack_int8(weight: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parts of a matrix with one scale per row, whose largest number is 127: {"weight", "weight_scale"}.

    Args:
        weight: float32 [rows, columns].
    """
    largest = np.abs(weight).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, np.maximum(largest / np.float32(MAX), _TINY), 1).astype(np.float32)
    return {"weight": np.clip(np.rint(weight / scale), -MAX, MAX).astype(np.int8), "weight_scale": scale}
