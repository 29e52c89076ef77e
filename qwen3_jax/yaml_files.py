"""YAML files that a user writes: a key that occurs twice in one block is refused, of which YAML's own loader takes the last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qwen3_jax.errors import UserError, repeated
from qwen3_jax.text_files import read_text


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = repeated(keys)
        if twice is not None:
            line = node.start_mark.line + 1
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice in the block of line {line}"
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, holds: str = "keys and values") -> dict[str, Any]:
    """Return the keys of a YAML file with their values.

    Args:
        path: the file.
        holds: what it must hold, for the message.

    Raises:
        UserError: it cannot be opened, is no YAML, has a key twice in a block, or holds something other than keys.
    """
    try:
        values = yaml.load(read_text(path), _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold {holds}.")
    return values
