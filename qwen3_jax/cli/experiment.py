"""What the commands of experiments share: the training configuration that they change, and how a folder is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def training(path: str, changes: Mapping[str, Any], what: str) -> TrainConfig:
    """Return a training configuration with changes by dotted name.

    Raises:
        UserError: the file or a name is at fault; `what` says whose.
    """
    from qwen3_jax.cli import train

    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]
    try:
        return train.parse(["--config", path, *flags])
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def write(path: Path, text: str) -> Path:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    return temporary.replace(path)
