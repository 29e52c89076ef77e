"""Environments of reinforcement learning as a run's configuration has them: the key `rl.environment`.

    environment: {tools: [python], max_turns: 6, seconds_per_call: 10}
    environment: {mcp: "uvx mcp-server-time", shared: true}
    environment: {python: "examples.row_lookup:Rows", settings: {}}

With an environment an answer to a prompt is an episode of several turns: the model writes, its tools answer, until the model
calls no tool, the environment ends the episode, or a limit is reached. `qwen3_jax.posttraining.environments` has the protocol.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.errors import UserError, nearest

KINDS = ("python", "mcp", "tools")
TOOLS = ("python",)
"""The built-in tools."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """What answers the model within an episode. It has exactly one of python, mcp and tools.

    Attributes:
        python: module:Class of an environment; the working folder is searched too. Its calls run in threads of this process.
        mcp: the command of an MCP server over stdio, whose tools the model may call; a text is split as a shell does.
        tools: built-in tools: python runs a program that the model writes in the sandbox, a process for each call.
        settings: arguments of the class; of the tool python the limits of the sandbox, without seconds (memory_mb, processes,
            ...), and isolation (auto, bubblewrap, namespaces, or none, which has to be named).
        shared: one MCP server for all episodes; false starts one for each episode, at its first call, so that no episode sees
            what another has done.
        max_turns: most answers of the model in an episode.
        seconds_per_call: for one call of a tool, or of a method of the class; more ends a program of the tool python, and costs
            any other environment its episode.
        seconds_per_episode: for all calls of an episode together; more costs the episode.
        max_result_tokens: longest result of a tool in tokens; the rest is cut off, and a note says so.
        concurrency: calls of environments at a time.
        history: what becomes of earlier turns where a message of the user comes: keep carries all tokens on, thinking
            included, so that an episode is one sample; new_sample renders the conversation anew, as the chat template does for
            a user, mostly without earlier thinking, so that an episode is several samples with one reward. Within the tool
            calls of one user's turn tokens are always carried on.
    """

    python: str | None = None
    mcp: str | list[str] | None = None
    tools: list[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    shared: bool = False
    max_turns: int = 8
    seconds_per_call: float = 30.0
    seconds_per_episode: float = 300.0
    max_result_tokens: int = 1024
    concurrency: int = 16
    history: Literal["keep", "new_sample"] = "keep"

    def __post_init__(self) -> None:
        prefix = "rl.environment"
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            has = " and ".join(given) or "none of them"
            raise UserError(f"{prefix} has one of {', '.join(KINDS)}; it has {has}.")
        check_bounds(
            vars(self), f"{prefix}.", max_turns=whole(1), seconds_per_call=above(0, finite=True),
            seconds_per_episode=above(0, finite=True), max_result_tokens=whole(1), concurrency=whole(1),
        )  # fmt: skip
        if self.python is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.python):
            raise UserError(f"{prefix}.python is {self.python!r}; it must be module:Class.")
        if self.mcp is not None and not self.command:
            raise UserError(f"{prefix}.mcp is {self.mcp!r}; it must be the command of a server.")
        for name in self.tools or []:
            if name not in TOOLS:
                raise UserError(f"{prefix}.tools has {name!r}; there is {', '.join(TOOLS)}.{nearest(name, TOOLS)}")
        if self.tools is not None and self.tools != list(TOOLS):
            raise UserError(f"{prefix}.tools is {self.tools}; it must be [python].")
        if self.mcp is not None and self.settings:
            raise UserError(f"{prefix}.settings is read with python or tools alone; leave it out.")
        if self.shared and self.mcp is None:
            raise UserError(f"{prefix}.shared is read with mcp alone; leave it out.")
        if self.history != "keep" and self.python is None:
            raise UserError(
                f"{prefix}.history is read with python alone, since tools send no messages of a user; leave it out."
            )

    @property
    def command(self) -> list[str]:
        """The command of the MCP server; [] without one."""
        if self.mcp is None:
            return []
        try:
            return shlex.split(self.mcp) if isinstance(self.mcp, str) else [str(part) for part in self.mcp]
        except ValueError as error:
            raise UserError(f"rl.environment.mcp is {self.mcp!r}: {error}.") from None

    @property
    def most_samples(self) -> int:
        """Samples that an episode may become."""
        return self.max_turns if self.history == "new_sample" else 1
