"""Folders that hold an adapter: found, and joined with the base model that they name."""

from __future__ import annotations

import os
from pathlib import Path

from qwen3_jax.checkpoint.adapters.attach import merged, with_adapter
from qwen3_jax.checkpoint.adapters.config import FILE
from qwen3_jax.checkpoint.adapters.files import read_adapter
from qwen3_jax.checkpoint.hub import resolve, same_hub
from qwen3_jax.checkpoint.small_files import load_tokenizer
from qwen3_jax.errors import UserError, warn
from qwen3_jax.json_fields import read_json
from qwen3_jax.model import Qwen3
from qwen3_jax.paths import visible_files
from qwen3_jax.text import Tokenizer


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    if not (folder / FILE).is_file():
        return False
    weights = [file for file in visible_files(folder, "*.safetensors") if not file.name.startswith("adapter")]
    return not weights and not visible_files(folder, "*.gguf")


def base_and_adapter(folder: Path) -> tuple[Path, Path | None]:
    """Return a checkpoint's folder and None; of an adapter's folder that of its base model, downloaded if need be, and itself.

    The base model of an adapter from ModelScope is sought there.

    Raises:
        UserError: the adapter does not name its base model, or that is not available.
    """
    if not holds_adapter(folder):
        return folder, None
    raw = read_json(folder / FILE)
    name = raw.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise UserError(
            f"{folder} holds an adapter, and its {FILE} names no base model ('base_model_name_or_path'): give the base model "
            "as the model and this folder as the adapter (--model BASE --adapter FOLDER)."
        )
    try:
        base = resolve(same_hub(name, folder), revision=raw.get("revision") or None)
    except UserError as error:
        raise UserError(f"{folder} holds an adapter, and its base model cannot be had: {error}") from None
    if holds_adapter(base):
        raise UserError(f"{folder} holds an adapter whose base model {name!r} is an adapter too; merge that one first.")
    return base, folder


def adapter_folder(path: str | os.PathLike) -> Path:
    """Return the folder of an adapter by path or hub id; that of a training run stands for what it exported.

    Raises:
        UserError: it is not available, or holds no adapter.
    """
    exported = Path(path).expanduser() / "adapter"
    folder = exported if (exported / FILE).is_file() else resolve(path, key="adapter")
    if not (folder / FILE).is_file():
        raise UserError(f"adapter: {folder} holds no adapter: it has no {FILE}.")
    return folder


def attached(model: Qwen3, adapter: Path, merge: bool) -> Qwen3:
    """Return the model with the adapter of a folder: in its weights (`merge`), or beside them.

    Raises:
        UserError: the adapter does not fit the model; names the field or tensor.
    """
    whole = with_adapter(model, read_adapter(adapter, model.config))
    return merged(whole) if merge else whole


def warn_of_tokenizer(adapter: Path, base: Path, tokenizer: Tokenizer | None) -> None:
    """Say where an adapter was trained with another vocabulary or chat template than the base model's, which is used."""
    own = load_tokenizer(adapter)
    if own is None or tokenizer is None:
        return
    differs = [
        name
        for name, ours, theirs in (
            ("vocabulary", tokenizer.to_json(), own.to_json()),
            ("chat template", tokenizer.chat_template, own.chat_template),
        )
        if ours != theirs
    ]
    if differs:
        warn(
            f"the adapter {adapter} has another {' and '.join(differs)} than {base}, whose tokenizer is used; to use the "
            f"adapter's, load the adapter as the model."
        )
