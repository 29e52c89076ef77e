"""Tools of an MCP server over stdio (modelcontextprotocol.io), through the package mcp: the extra `mcp`.

Servers run as processes of their own. All connections live in one thread with an event loop; calls come from any thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.posttraining.environments import ToolEnvironment, ToolError

_STARTS_WITHIN = 60.0  # seconds for a server to start and to list its tools
_ENDS_WITHIN = 15.0


class ServerFailed(Exception):
    """The server did not start, ended, or did not answer in time; says which."""


class _Loop:
    """The thread with the event loop of all connections of this process; begins with the first."""

    _lock = threading.Lock()
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def get(cls) -> asyncio.AbstractEventLoop:
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="mcp", daemon=True).start()
            return cls._loop


class Server:
    """A connection to one server process.

    Args:
        command: program and arguments.

    Raises:
        ServerFailed: it does not start, or does not speak MCP.
    """

    def __init__(self, command: Sequence[str]):
        self._command = list(command)
        self._calls: asyncio.Queue[Any] | None = None
        self._ended = threading.Event()
        self._ready: concurrent.futures.Future[list[dict[str, Any]]] = concurrent.futures.Future()
        self._running = asyncio.run_coroutine_threadsafe(self._run(), _Loop.get())
        try:
            self.tools = self._ready.result(_STARTS_WITHIN)
        except concurrent.futures.TimeoutError:
            self.close()
            raise ServerFailed(f"{self} did not start within {_STARTS_WITHIN:g} s") from None

    def __str__(self) -> str:
        return f"the MCP server {' '.join(self._command)!r}"

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended."""
        return self._running.done()

    def call(self, name: str, arguments: Mapping[str, Any], seconds: float) -> tuple[str, bool]:
        """Return the text of a tool's result, and whether it is an error of the tool.

        Raises:
            ServerFailed: the server has ended or does not answer, and is ended.
        """
        if self.is_over or self._calls is None:
            raise ServerFailed(f"{self} has ended")
        result: concurrent.futures.Future[tuple[str, bool]] = concurrent.futures.Future()
        _Loop.get().call_soon_threadsafe(self._calls.put_nowait, (name, dict(arguments), seconds, result))
        try:
            both: list[concurrent.futures.Future[Any]] = [result, self._running]
            concurrent.futures.wait(both, seconds + 1.0, concurrent.futures.FIRST_COMPLETED)
            if result.done():
                return result.result()
        except concurrent.futures.CancelledError:
            pass
        except ServerFailed:
            self.close(wait=False)
            raise
        ended = self.is_over
        self.close(wait=False)
        raise ServerFailed(f"{self} ended during a call" if ended else f"{self} did not answer within {seconds:g} s")

    def close(self, *, wait: bool = True) -> None:
        """End the server's process."""
        self._running.cancel()
        if wait:
            self._ended.wait(_ENDS_WITHIN)

    async def _run(self) -> None:
        """Live as long as the connection does."""
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client

        program, *arguments = self._command
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            try:
                parameters = StdioServerParameters(command=program, args=arguments)
                async with (
                    stdio_client(parameters, errlog=nowhere) as streams,
                    ClientSession(*streams) as session,
                ):
                    await session.initialize()
                    listed = await session.list_tools()
                    self._calls = asyncio.Queue()
                    self._ready.set_result([_described(one) for one in listed.tools])
                    await self._answer(session)
            except BaseException as error:
                if not self._ready.done():
                    self._ready.set_exception(ServerFailed(f"{self} did not start: {_first(error)}"))
                raise
            finally:
                self._ended.set()

    async def _answer(self, session: Any) -> None:
        """Make the calls of the queue, several at a time; end where the server does."""
        assert self._calls is not None
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                task = asyncio.create_task(_call(session, *await self._calls.get()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            for task in tasks:
                task.cancel()


async def _call(
    session: Any, name: str, arguments: dict[str, Any], seconds: float, result: concurrent.futures.Future[tuple[str, bool]]
) -> None:  # fmt: skip
    from mcp.shared.exceptions import McpError

    try:
        value = await session.call_tool(name, arguments, read_timeout_seconds=timedelta(seconds=seconds))
        texts = [_text(part) for part in value.content]
        result.set_result(("\n".join(texts), bool(value.isError)))
    except McpError as error:
        if error.error.code in _MODELS_FAULTS:
            result.set_result((error.error.message, True))
        else:
            result.set_exception(ServerFailed(f"the MCP server failed: {error}"))
    except BaseException as error:
        if not result.done():
            result.set_exception(ServerFailed(f"the MCP server failed: {_first(error)}"))
        if isinstance(error, asyncio.CancelledError):
            raise


_MODELS_FAULTS = (-32601, -32602)  # JSON-RPC: no such method; invalid parameters


def _text(part: Any) -> str:
    """The text of one part of a result."""
    if part.type == "text":
        return part.text
    inner = getattr(getattr(part, "resource", None), "text", None)
    return inner if isinstance(inner, str) else f"[{part.type}, which is no text]"


def _described(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.inputSchema}
    return {"type": "function", "function": function}


def _first(error: BaseException) -> str:
    """The first cause in an exception group, in words."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Servers:
    """The servers of all episodes.

    Args:
        command: of the server.
        seconds: of one call.
        shared: one server for all episodes.

    Attributes:
        tools: as the server lists them, in OpenAI's form.

    Raises:
        UserError: the package is missing, or the server does not start.
    """

    def __init__(self, command: Sequence[str], seconds: float, *, shared: bool):
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise UserError("rl.environment.mcp needs the package mcp: pip install 'qwen3-jax[mcp]'.") from None
        self.seconds, self.shared, self._command = seconds, shared, command
        self._lock = threading.Lock()
        try:
            first = Server(command)
        except ServerFailed as error:
            raise UserError(f"rl.environment.mcp: {error}.") from None
        self.tools = first.tools
        self._one: Server | None = first if shared else None
        if not shared:
            first.close()

    def get(self) -> Server:
        """Return a server: the one of all, started again where it has ended, or a new one.

        Raises:
            ServerFailed: it does not start.
        """
        if not self.shared:
            return Server(self._command)
        with self._lock:
            if self._one is None or self._one.is_over:
                self._one = Server(self._command)
            return self._one

    def close(self) -> None:
        """End the shared server."""
        if self._one is not None:
            self._one.close()


class McpEnvironment(ToolEnvironment):
    """One episode with the tools of an MCP server.

    Args:
        servers: of the run.
    """

    def __init__(self, servers: Servers):
        self._servers = servers
        self._server: Server | None = None

    @property
    def tools(self) -> list[dict[str, Any]]:
        """As the server lists them."""
        return self._servers.tools

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool of the server.

        Raises:
            ToolError: what the tool says is an error.
            ServerFailed: the server has ended or does not answer.
        """
        if name not in [each["function"]["name"] for each in self.tools]:
            raise ToolError(f"there is no tool {name!r}")
        if self._server is None or self._servers.shared:
            self._server = self._servers.get()
        text, is_error = self._server.call(name, arguments, self._servers.seconds)
        if is_error:
            raise ToolError(text)
        return text

    def close(self) -> None:
        """End the episode's own server."""
        if self._server is not None and not self._servers.shared:
            self._server.close(wait=False)
