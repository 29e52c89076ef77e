"""Random checkpoints in the form of Qwen3-Embedding and Qwen3-Reranker, which sentence-transformers and transformers load."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

import qwen3_jax
from qwen3_jax import Qwen3Config
from qwen3_jax.text import Tokenizer, train_tokenizer
from tests.helpers import tiny_models

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
PROMPTS = {"query": QUERY, "document": ""}
TEXTS = [
    "What is the capital of China?",
    "",
    "yes",
    "The capital of China is Beijing. " * 6,
    "Gravity is a force that attracts two bodies towards each other.",
    "Ein Satz mit Umlauten: äöü, and <|im_end|> in it.",
]
FIELDS = tiny_models.DENSE | dict(vocab_size=tiny_models.VOCABULARY, num_hidden_layers=2)


def end_token_tokenizer() -> Tokenizer:
    """A tokenizer that ends each text with <|endoftext|>, as Qwen3-Embedding's tokenizer.json does."""
    backend, config, templates = judging_tokenizer().__reduce__()[1]
    backend = type(backend).from_str(backend.to_str())
    end = "<|endoftext|>"
    backend.post_processor = Sequence(
        [
            ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
            TemplateProcessing(
                single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, backend.token_to_id(end))]
            ),
        ]
    )
    return Tokenizer(backend, config, templates)


def judging_tokenizer() -> Tokenizer:
    """A tokenizer with the tokens "yes" and "no"."""
    return train_tokenizer(["yes", "no", *TEXTS] * 3, vocab_size=360)


def write_layout(
    folder: Path, *, pooling: dict[str, Any] | None = None, normalize: bool = True, prompts: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None, width: int = FIELDS["hidden_size"], extra: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Write sentence-transformers' files as the hub's Qwen3-Embedding has them; `extra` are further modules by class."""
    kinds = ["Transformer", "Pooling", *extra, *(["Normalize"] if normalize else [])]
    paths = [f"{i}_{kind}" if i else "" for i, kind in enumerate(kinds)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    last = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": False}
    fields = {"word_embedding_dimension": width, "include_prompt": True} | (last if pooling is None else pooling)
    (folder / "1_Pooling/config.json").write_text(json.dumps(fields))
    asked = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(asked | (prompts or {})))
    if limits is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    return folder


def write_model(folder: Path, *, tied: bool = True, prefix: bool = False, **architecture: Any) -> Path:
    """Write a random decoder without a head, its names with or without `model.`, and a tokenizer that adds an end token."""
    config = dataclasses.replace(Qwen3Config(), **FIELDS | dict(tie_word_embeddings=True))
    qwen3_jax.save(tiny_models.drawn(config), end_token_tokenizer(), folder)
    (folder / "checksums.sha256").unlink()
    file = folder / "model.safetensors"
    start = "" if prefix else "model."
    stored = {name.removeprefix(start): array for name, array in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": tied} | architecture
    (folder / "config.json").write_text(json.dumps(fields))
    return folder
