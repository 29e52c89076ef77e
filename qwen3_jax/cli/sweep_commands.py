"""What `qwen3 scaling` and `qwen3 mixture` share: the configurations that their runs change, and how results are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.errors import UserError
from qwen3_jax.paths import replace_file

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def training_config(path: str, changes: Mapping[str, Any], owner: str) -> TrainConfig:
    """Return a training configuration with changes by dotted name.

    Raises:
        UserError: the file or a name is at fault; `owner` is the key of the sweep's configuration that gives them.
    """
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in changes.items()]
    try:
        return parse_config(["--config", path, *flags])
    except UserError as error:
        raise UserError(f"{owner}: {error}") from None


def write(path: Path, text: str) -> Path:
    """Write a whole file or nothing; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
    return path
