"""The files of a checkpoint folder besides the weights: config.json, generation_config.json, the tokenizer, its template, and
sentence-transformers' files of an embedding model."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from qwen3_jax.checkpoint.embedding_files import write_embedding_files
from qwen3_jax.checkpoint.formats.opening import gguf_file
from qwen3_jax.config import Qwen3Config
from qwen3_jax.model import EmbeddingModel, Qwen3, RewardModel
from qwen3_jax.text import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder or GGUF file, or None when a folder has no tokenizer files at all."""
    file = gguf_file(folder)
    if file is not None:
        from qwen3_jax.checkpoint.formats.gguf_tokenizer import gguf_tokenizer

        return gguf_tokenizer(file)
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    return Tokenizer.from_pretrained(folder)


def write_small_files(
    model: Qwen3,
    tokenizer: Tokenizer | None,
    dtype: jnp.dtype,
    folder: Path,
    quantization: dict[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json, the tokenizer's files and, of an embedding model, sentence-transformers'.

    `dtype` is what the weights are stored in, and `quantization` describes those that are not.
    """
    config = dataclasses.replace(model.config, dtype=dtype.name)
    generation = model.generation_config
    if not generation.eos_token_id:
        generation = dataclasses.replace(generation, eos_token_id=config.eos_token_ids)
    described: dict[str, Any] = {} if quantization is None else {"quantization_config": quantization}
    if isinstance(model, RewardModel):
        described |= _classifier(config, generation.pad_token_id)
    if isinstance(model, EmbeddingModel):
        described |= {"architectures": ["Qwen3MoeModel" if config.num_experts else "Qwen3Model"]}
    if model.embedding_config is not None:
        write_embedding_files(model.embedding_config, folder, config.hidden_size)
    write_json(folder / "config.json", config.to_hf() | described)
    write_json(folder / "generation_config.json", generation.to_hf())
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _classifier(config: Qwen3Config, pad: int | None) -> dict[str, Any]:
    """What config.json says of a reward model, in transformers' words: a classifier of sequences with one label.

    transformers finds the last token of a padded text by `pad_token_id`.
    """
    family = "Qwen3Moe" if config.num_experts else "Qwen3"
    return {
        "architectures": [f"{family}ForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pad,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object as Hugging Face's files look: two spaces of indentation, UTF-8."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
