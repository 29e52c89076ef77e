"""Makes the environments of a run from its configuration: one object for each episode."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.posttraining.environments import Environment
from qwen3_jax.posttraining.mcp_environment import McpEnvironment, Servers
from qwen3_jax.posttraining.python_tool import PythonTool
from qwen3_jax.training.environment_config import EnvironmentConfig

_SANDBOX = 10.0  # seconds that a sandbox may take to start and to end
_SERVER = 65.0  # seconds that a server may take to start


class EnvironmentSource:
    """Makes environments.

    Args:
        config: of the run.

    Attributes:
        note: what people should know, such as the isolation that is in force; "" for nothing.

    Raises:
        UserError: the class cannot be imported or made, the server does not start, or programs cannot be isolated here.
    """

    def __init__(self, config: EnvironmentConfig):
        self.config, self.note = config, ""
        self._slack = 0.0
        self._class: type | None = None
        self._tool: PythonTool | None = None
        self._servers: Servers | None = None
        if config.python is not None:
            self._class = _imported(config.python)
            _checked(self._class, config)
        elif config.tools is not None:
            try:
                self._tool = PythonTool(config.seconds_per_call, **config.settings)
            except UserError as error:
                raise UserError(f"rl.environment: {error}") from None
            self.note, self._slack = f"rl.environment: {self._tool}", _SANDBOX
        else:
            self._servers = Servers(config.command, config.seconds_per_call, shared=config.shared)
            self._slack = _SERVER

    def make(self) -> Any:
        """Return the environment of one episode."""
        if self._class is not None:
            return self._class(**self.config.settings)
        if self._tool is not None:
            return self._tool  # it keeps nothing
        assert self._servers is not None
        return McpEnvironment(self._servers)

    def seconds(self, calls: int) -> float:
        """Time limit of a step with a number of calls, in seconds."""
        return self.config.seconds_per_call * max(calls, 1) + self._slack

    def close(self) -> None:
        """End what all episodes share."""
        if self._servers is not None:
            self._servers.close()


def _imported(path: str) -> type:
    """The class at module:Class."""
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # the environment may import its neighbours later too
    try:
        value = getattr(importlib.import_module(module_name), name, None)
    except Exception as error:  # a module of the user may raise anything
        raise UserError(
            f"rl.environment.python: {module_name} cannot be imported ({type(error).__name__}: {error})."
        ) from None
    if not isinstance(value, type) or not all(
        callable(getattr(value, each, None)) for each in ("reset", "step", "close")
    ):
        raise UserError(f"rl.environment.python: {path} is no class with the methods reset, step and close.")
    return value


def _checked(of: type, config: EnvironmentConfig) -> None:
    """Refuse settings that the class does not take."""
    try:
        inspect.signature(of).bind(**config.settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"rl.environment.settings: {config.python} does not take them: {error}.") from None


__all__ = ["Environment", "EnvironmentSource"]
