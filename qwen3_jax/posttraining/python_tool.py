"""The built-in tool python: a program that the model writes, run in the sandbox, one process for each call.

Isolated as `qwen3_jax.sandbox` finds it here: namespaces of the kernel by default, and refused where there are none unless the
settings name isolation "none". Nothing is kept from call to call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.posttraining.environments import ToolEnvironment, ToolError
from qwen3_jax.sandbox import Limits, find_isolation, run

_STARTS_WITHIN = 5.0  # seconds for the sandbox's own end, beyond those of the program
_PYTHON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "python",
        "description": "Run a Python program and return what it prints. Nothing is kept between calls.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string", "description": "The program."}},
            "required": ["code"],
        },
    },
}


class PythonTool(ToolEnvironment):
    """Runs programs.

    Args:
        seconds: of one program.
        isolation: see `qwen3_jax.sandbox.find_isolation`.
        limits: fields of `qwen3_jax.sandbox.Limits` beside seconds.

    Raises:
        UserError: an unknown or impossible limit, or no such isolation on this machine.
    """

    def __init__(self, seconds: float, isolation: str = "auto", **limits: Any):
        names = [one.name for one in fields(Limits) if one.name != "seconds"]
        for name in limits:
            if name not in names:
                raise UserError(
                    f"rl.environment.settings has {name!r}; the tool python reads isolation, {', '.join(names)}."
                    f"{nearest(name, ['isolation', *names])}"
                )
        try:
            self._limits = Limits(seconds=seconds, **limits)
        except UserError as error:
            raise UserError(f"rl.environment.settings: {error}") from None
        self._isolation = isolation
        self.isolation = find_isolation(isolation)

    def __str__(self) -> str:
        return f"the tool python runs programs in {self.isolation}"

    @property
    def seconds(self) -> float:
        """Most seconds that a call may take, the sandbox's start and end included."""
        return self._limits.seconds + _STARTS_WITHIN + 5.0

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The one tool."""
        return [_PYTHON]

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a program.

        Raises:
            ToolError: there is no such tool, or the program failed.
            SandboxFailed: the sandbox did not start.
        """
        if name != "python":
            raise ToolError(f"there is no tool {name!r}; there is python")
        code = arguments.get("code")
        if set(arguments) != {"code"} or not isinstance(code, str):
            raise ToolError("python takes one argument, the text 'code'")
        code = code.encode("utf-8", "replace").decode()
        outcome = run(code, "", self._limits, self._isolation)
        if outcome.ok:
            return outcome.stdout
        printed = f"{outcome.stdout}\n" if outcome.stdout and not outcome.stdout.endswith("\n") else outcome.stdout
        trace = "" if outcome.ended != "exit" else f"\n{outcome.stderr.strip()[-2000:]}"
        raise ToolError(
            f"{outcome.reason}{trace}" if not printed else f"{outcome.reason}{trace}\nIt printed:\n{printed}"
        )
