"""Sampling defaults of a checkpoint: Hugging Face's `generation_config.json`, field for field."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import Bound, above, at_least, between, check_bounds, whole
from qwen3_jax.json_fields import as_ids, check_types


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling defaults that a checkpoint carries in `generation_config.json`. Field names are HF's.

    Attributes:
        eos_token_id: any of these ends an answer; empty means the model config's and then the tokenizer's.
        do_sample: False means greedy, regardless of `temperature`.
        temperature: see `qwen3_jax.Sampling`; None, here and below, if the file has no such field.
        top_k: see `qwen3_jax.Sampling`.
        top_p: see `qwen3_jax.Sampling`.
        min_p: see `qwen3_jax.Sampling`.
        repetition_penalty: see `qwen3_jax.Sampling`.
        max_new_tokens: largest number of tokens of an answer.
        bos_token_id: kept for export.
        pad_token_id: kept for export.
    """

    eos_token_id: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "GenerationConfig":
        """Build from the contents of a `generation_config.json`; fields that steer other decoders are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in raw.items() if name in names and value is not None}
        values["eos_token_id"] = as_ids(raw.get("eos_token_id"))
        for name in ("bos_token_id", "pad_token_id"):  # some files have a list of one
            if isinstance(values.get(name), list) and len(values[name]) <= 1:
                values[name] = next(iter(values[name]), None)
        if values.get("top_k") == -1:  # vLLM's name of no limit
            values["top_k"] = 0
        check_types(cls, values, source="generation_config.json")
        config = cls(**values)
        check_bounds(
            vars(config), "generation_config.json field ", temperature=at_least(0), top_k=whole(0),
            top_p=Bound(0, 1, low_excluded=True),
            min_p=between(0, 1), repetition_penalty=above(0), max_new_tokens=whole(1),
        )  # fmt: skip
        return config

    def to_hf(self) -> dict[str, Any]:
        """Return the contents of a `generation_config.json`."""
        out = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        out["eos_token_id"] = list(self.eos_token_id)
        if not self.eos_token_id:
            del out["eos_token_id"]
        return dict(sorted(out.items()))
