"""The engine's thread: requests of all connections go in, and after each step its tokens go back to their event loop.

Only this thread touches the engine. It does little between two steps, because every answer waits for it: the event loop turns
tokens into text while the next step runs.
"""

import asyncio
import collections
import contextlib
import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine, Request, Stats, Token

T = TypeVar("T")

_FAILED, _STOPPING = "the engine has failed", "the server is shutting down"


class Stopped(Exception):
    """The engine takes no more requests: it has failed, or the server is shutting down."""


class Load(NamedTuple):
    """Load of the engine after its last step: answers running and queued, cache pages held and in all, and its totals."""

    running: int
    waiting: int
    pages_held: int
    pages: int
    stats: Stats


class Ticket:
    """The tokens of some requests of one client.

    Use as `with worker.submit(requests) as ticket`: however the block ends, unfinished requests are cancelled.
    """

    def __init__(self, worker: "Worker", requests: Sequence[Request]):
        self.requests = requests
        self.numbers: list[int] = []
        self._worker = worker
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> "Ticket":
        self._worker.post(self._worker.enter, self)
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.post(self._worker.leave, self, None)

    def cancel(self, index: int) -> None:
        """Cancel one of the requests."""
        self._worker.post(self._worker.leave, self, index)

    async def next(self) -> list[tuple[int, Token]]:
        """Wait for the next tokens; return (index of the request, token) pairs.

        Raises:
            UserError: the engine refuses a request.
            Stopped: the engine has failed or is shutting down.
        """
        item = await self._inbox.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def give(self, item: Any) -> None:
        """Hand tokens or an exception to `next`; called by the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)


class Worker:
    """Runs an engine in a thread of its own, which sleeps while there is nothing to compute.

    Args:
        engine: must not be used elsewhere from now on.

    Attributes:
        failure: the exception that ended the thread, or None.
        load: after the last step.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.failure: BaseException | None = None
        self._inbox: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._tickets: dict[int, tuple[Ticket, int]] = {}
        self._when_idle: collections.deque[Callable[[], None]] = collections.deque()
        self._stopping = False
        self.load = Load(0, 0, *engine.cache_usage, Stats())
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """End the thread after its current step; unfinished requests get `Stopped`.

        Args:
            seconds: how long to wait for the end; None waits for it. A compilation takes its time, see `running`.
        """
        self.post(self._stop)
        self._thread.join(seconds)

    @property
    def running(self) -> bool:
        """Whether the thread has been started and has not ended."""
        return self._thread.is_alive()

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Return a ticket for the requests; they are submitted when it is entered."""
        return Ticket(self, requests)

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call something in the engine's thread, between two steps."""
        self._inbox.put((call, arguments))

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Await a call in the engine's thread, between two steps; it is not made if it is cancelled before.

        Raises:
            Stopped: the engine has failed or is shutting down.
            Exception: what the call raises.
        """
        result: Future[T] = Future()

        def run() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                if self.failure is not None or self._stopping:
                    raise Stopped(_STOPPING if self.failure is None else _FAILED)
                result.set_result(function(*arguments))
            except Exception as error:
                result.set_exception(error)

        self.post(run)
        return await asyncio.wrap_future(result)

    def when_idle(self, call: Callable[[], None]) -> None:
        """Call something in the engine's thread while there is nothing to compute, after earlier calls of this kind."""
        self.post(self._when_idle.append, call)

    # ---- in the engine's thread --------------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> None:
        """Submit a ticket's requests."""
        try:
            if self.failure is not None or self._stopping:
                raise Stopped(_STOPPING if self.failure is None else _FAILED)
            for index, request in enumerate(ticket.requests):
                number = self.engine.submit(request)
                ticket.numbers.append(number)
                self._tickets[number] = ticket, index
        except (UserError, Stopped) as error:
            self.leave(ticket, None)
            ticket.give(error)

    def leave(self, ticket: Ticket, index: int | None) -> None:
        """Cancel one of a ticket's requests, or all if `index` is None; finished ones are ignored."""
        for number in ticket.numbers if index is None else ticket.numbers[index : index + 1]:
            if self._tickets.pop(number, None) is not None:
                self.engine.cancel(number)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._read(wait=not self.engine.busy and not self._when_idle)
                if self._stopping:
                    break
                if self.engine.busy:
                    self._deliver(self.engine.step())
                elif self._when_idle:
                    self._when_idle.popleft()()
                engine = self.engine
                stats = dataclasses.replace(engine.stats)
                self.load = Load(engine.running, engine.waiting, *engine.cache_usage, stats)
        except BaseException as error:
            self.failure = error
            traceback.print_exc()
        finally:
            self.load = self.load._replace(running=0, waiting=0, pages_held=0)
            unfinished = {id(ticket): ticket for ticket, _ in self._tickets.values()}
            self._tickets.clear()
            for ticket in unfinished.values():
                ticket.give(Stopped(_FAILED if self.failure else _STOPPING))
            self._read(wait=False)  # refuse what was posted since
            if self.failure is not None:  # and later requests as well
                while not self._stopping:
                    self._read(wait=True)

    def _read(self, wait: bool) -> None:
        """Make the posted calls; `wait` for one if there are none."""
        while True:
            try:
                call, arguments = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            call(*arguments)

    def _deliver(self, tokens: Sequence[Token]) -> None:
        """Hand the tokens of a step to their tickets."""
        by_ticket: dict[int, tuple[Ticket, list[tuple[int, Token]]]] = {}
        for token in tokens:
            entry = self._tickets.get(token.number)
            if entry is None:
                continue
            ticket, index = entry
            by_ticket.setdefault(id(ticket), (ticket, []))[1].append((index, token))
            if token.finish is not None:
                del self._tickets[token.number]
        for ticket, pairs in by_ticket.values():
            ticket.give(pairs)
