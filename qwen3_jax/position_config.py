"""How positions are encoded, as `config.json` says it: the base of RoPE, YaRN, Dual Chunk Attention."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.json_fields import check_types

# What transformers assumes when a config names no base (PreTrainedConfig.default_theta); not Qwen3's 1e6.
DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class RopeScaling:
    """Static YaRN (Peng et al. 2023, arXiv 2309.00071), as HF's `rope_scaling` / `rope_parameters` spell it.

    Attributes:
        rope_type: only "yarn"; unscaled RoPE is `rope_scaling=None`.
        factor: context extension factor; None means max_position_embeddings / original_max_position_embeddings.
        original_max_position_embeddings: positions seen in training; None means the config's max_position_embeddings.
        attention_factor: multiplies cos and sin; None means YaRN's 0.1 ln(factor) + 1, or the mscale quotient.
        beta_fast: rotations at which the ramp from extrapolation to interpolation starts.
        beta_slow: rotations at which it ends.
        mscale: with mscale_all_dim, attention_factor = m(mscale) / m(mscale_all_dim).
        mscale_all_dim: see mscale.
        truncate: round the ramp's bounds to whole dimensions.
    """

    rope_type: Literal["yarn"] = "yarn"
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True)
class DualChunk:
    """Dual Chunk Attention (An et al. 2024, arXiv 2402.17463), as `dual_chunk_attention_config` in Qwen's long-context configs.

    No query meets a key farther away than the model was trained for: positions start again with every chunk, and queries have
    others for the chunk before theirs and for all earlier ones. Needs no training.

    Attributes:
        chunk_size: the largest distance that is used, in tokens: at most what the model was trained for.
        local_size: at least this many tokens of the previous chunk keep their true distance. A chunk is
            chunk_size - local_size tokens long.
        original_max_position_embeddings: where not 0, scores of a query at position i beyond it are multiplied by
            0.1 ln((i + 1) / original) + 1, YaRN's temperature. vLLM takes the length of the prompt for i + 1 everywhere in it.
    """

    chunk_size: int
    local_size: int
    original_max_position_embeddings: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.local_size <= self.chunk_size / 2:
            raise UserError(
                f"config field 'dual_chunk_attention_config' has local_size {self.local_size} and chunk_size "
                f"{self.chunk_size}; it needs 0 < local_size <= chunk_size / 2."
            )
        if self.original_max_position_embeddings < 0:
            raise UserError(
                "config field 'dual_chunk_attention_config.original_max_position_embeddings' is "
                f"{self.original_max_position_embeddings}; it must be 0 (no temperature) or more."
            )

    @property
    def chunk(self) -> int:
        """Tokens from one chunk's beginning to the next."""
        return self.chunk_size - self.local_size


def read_rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Take the RoPE base and YaRN settings out of `raw`, from whichever spelling it uses."""
    theta = raw.pop("rope_theta", None)
    merged: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):  # where both occur, the newer spelling is the one HF reads
        block = raw.pop(key, None)
        if block is not None and not isinstance(block, dict):
            raise UserError(f"config field {key!r} must be an object, got {block!r}.")
        block = dict(block or {})
        block.pop("sliding_attention", None)  # transformers 5 may write one for each type of layer
        full = block.pop("full_attention", None)
        merged.update(block | full if isinstance(full, dict) else block)
    merged = {name: value for name, value in merged.items() if value is not None}
    theta = merged.pop("rope_theta", theta)
    if theta is not None and (isinstance(theta, bool) or not isinstance(theta, int | float)):
        raise UserError(f"config field 'rope_theta' is {theta!r}; it must be a number.")
    older = merged.pop("type", None)  # the name before transformers 4.43
    rope_type = merged.pop("rope_type", older)
    if merged.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("config field 'partial_rotary_factor' is not 1.0; Qwen3 rotates whole heads.")
    theta = DEFAULT_ROPE_THETA if theta is None else float(theta)
    if rope_type is None and merged.get("factor", 1.0) != 1.0:
        raise UserError("config field 'rope_scaling' has a 'factor' and no 'rope_type'; set it to 'yarn'.")
    if rope_type in (None, "default") or (rope_type == "linear" and merged.get("factor") == 1.0):
        return theta, None
    if rope_type != "yarn":
        raise UserError(f"config field 'rope_type' is {rope_type!r}; only 'default' and 'yarn' are built.")
    names = [field.name for field in dataclasses.fields(RopeScaling)]
    for name in merged:
        if name not in names:
            raise UserError(f"config field 'rope_scaling.{name}' is not a YaRN setting.{nearest(name, names)}")
    check_types(RopeScaling, merged, source="rope_scaling")
    return theta, RopeScaling(**merged)


def read_dual_chunk(raw: dict[str, Any]) -> DualChunk | None:
    """Take Dual Chunk Attention's settings out of `raw`."""
    block = raw.pop("dual_chunk_attention_config", None)
    if block is None or isinstance(block, DualChunk):
        return block
    if not isinstance(block, Mapping):
        raise UserError(f"config field 'dual_chunk_attention_config' must be an object, got {block!r}.")
    values = {name: value for name, value in block.items() if value is not None}
    if values.pop("sparse_attention_enabled", True) and values.pop("sparse_attention_config", None):
        raise UserError(
            "config field 'dual_chunk_attention_config.sparse_attention_config' is set; attention is computed in full here, "
            "so take it out or set sparse_attention_enabled to false."
        )
    for name in ("sparse_attention_config", "sparse_attention_threshold", "sparse_attention_last_q"):
        values.pop(name, None)
    names = [field.name for field in dataclasses.fields(DualChunk)]
    for name in values:
        if name not in names:
            raise UserError(
                f"config field 'dual_chunk_attention_config.{name}' is not one of its settings.{nearest(name, names)}"
            )
    for name in ("chunk_size", "local_size"):
        if name not in values:
            raise UserError(f"config field 'dual_chunk_attention_config' has no {name}.")
    check_types(DualChunk, values, source="dual_chunk_attention_config")
    return DualChunk(**values)
