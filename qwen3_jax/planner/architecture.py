"""The architecture of a planned model, from names and configuration files alone: no weights, tokenizer or data are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_jax.config import Qwen3Config
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import adapter_base, read_json
from qwen3_jax.training.config import TrainConfig


def checkpoint_architecture(model: str, hf_overrides: Mapping[str, Any] | None = None) -> Qwen3Config:
    """Return the architecture of a checkpoint folder, or of a released model by name.

    Args:
        model: a folder with config.json, or a name as `Qwen3Config.preset` takes it.
        hf_overrides: fields of config.json to replace.

    Raises:
        UserError: it is neither.
    """
    file = Path(model).expanduser() / "config.json"
    if file.is_file():
        return Qwen3Config.from_hf(read_json(file) | dict(hf_overrides or {}))
    if (base := adapter_base(file.parent)) is not None:
        return checkpoint_architecture(base, hf_overrides)
    try:
        config = Qwen3Config.preset(model)
    except UserError as error:
        raise UserError(f"{model!r} is no folder with a config.json, and {error}") from None
    return Qwen3Config.from_hf(config.to_hf() | dict(hf_overrides or {}))


def training_architecture(config: TrainConfig) -> Qwen3Config:
    """Return the architecture that a run trains.

    The size of the vocabulary is the preset's, the configuration's, or that of the tokenizer to be trained.

    Raises:
        UserError: the size of the vocabulary cannot be known without the tokenizer, `init_from` is neither a local folder nor
            a released model, or the sequence is longer than the model's maximum.
    """
    base = None if config.model.init_from is None else _initial_architecture(config.model.init_from)
    tokens = 1  # a minimum only, where the preset, `init_from` or model.config gives the size
    if base is None and config.model.preset is None:
        if config.tokenizer.path is None:
            tokens = config.tokenizer.vocab_size
        elif "vocab_size" not in config.model.config:
            raise UserError(
                "planning reads no tokenizer: set model.config.vocab_size to the number of embedding rows (151936 for "
                "Qwen3's tokenizer)."
            )
    model = dataclasses.replace(config.model.architecture(base, tokens), dtype=config.model.param_dtype)
    if config.data.sequence_length > model.max_position_embeddings:
        raise UserError(
            f"data.sequence_length ({config.data.sequence_length}) is longer than the model's max_position_embeddings "
            f"({model.max_position_embeddings})."
        )
    return model


def _initial_architecture(init_from: str) -> Qwen3Config:
    file = Path(init_from).expanduser() / "config.json"
    if file.is_file():
        return Qwen3Config.from_hf(read_json(file))
    if (base := adapter_base(file.parent)) is not None:
        return _initial_architecture(base)
    try:
        return Qwen3Config.preset(init_from)
    except UserError:
        raise UserError(
            f"model.init_from {init_from!r} is neither a local folder nor a released model; for planning set model.preset to "
            "the architecture instead."
        ) from None
