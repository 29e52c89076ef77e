"""The engine's thread: requests of all connections go in, and after each step its tokens go back to their event loop.

Only this thread touches the engine. What it does between two steps is little, because every answer waits for it: tokens become
text in the event loop, while the next step runs.
"""

import asyncio
import contextlib
import dataclasses
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine, Request, Stats, Token


class Stopped(Exception):
    """The engine is not there any more: it failed, or the server is going down."""


class Ticket:
    """The answers to some requests of one client, token by token.

    Use as `with worker.submit(requests) as ticket`: whatever ends the block, what is still running is cancelled.
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
        """Wait for the next tokens: (which request, token).

        Raises:
            UserError: the engine does not take the request.
            Stopped: the engine failed.
        """
        got = await self._inbox.get()
        if isinstance(got, BaseException):
            raise got
        return got

    def give(self, got: Any) -> None:
        """Called by the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, got)


class Worker:
    """Runs an engine's steps in a thread of its own as long as there is something to do.

    Args:
        engine: nobody else uses it from now on.

    Attributes:
        failure: what ended the thread, or None.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.failure: BaseException | None = None
        self._inbox: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]]] = queue.SimpleQueue()
        self._tickets: dict[int, tuple[Ticket, int]] = {}
        self._ends = False
        self._snapshot = (0, 0, engine.cache_usage, Stats())
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def running(self) -> int:
        """Answers that have room."""
        return self._snapshot[0]

    @property
    def waiting(self) -> int:
        """Answers that have none yet."""
        return self._snapshot[1]

    @property
    def cache_usage(self) -> tuple[int, int]:
        """Pages that are held, and all."""
        return self._snapshot[2]

    @property
    def stats(self) -> Stats:
        """What the engine has done."""
        return self._snapshot[3]

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step that runs, and wait for that; what is unfinished is told so."""
        self.post(self._stop)
        self._thread.join()

    def submit(self, requests: Sequence[Request]) -> Ticket:
        """Return a ticket for the answers; they begin when it is entered."""
        return Ticket(self, requests)

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have the engine's thread do something between two steps."""
        self._inbox.put((call, arguments))

    # ---- in the engine's thread --------------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> None:
        """Let a ticket's requests wait their turn."""
        try:
            if self.failure is not None or self._ends:
                raise Stopped("the server is going down" if self.failure is None else "the engine has failed")
            for index, request in enumerate(ticket.requests):
                number = self.engine.submit(request)
                ticket.numbers.append(number)
                self._tickets[number] = ticket, index
        except (UserError, Stopped) as error:
            self.leave(ticket, None)
            ticket.give(error)

    def leave(self, ticket: Ticket, index: int | None) -> None:
        """Drop one of a ticket's requests, or all; those that are finished are not there to be dropped."""
        for number in ticket.numbers if index is None else ticket.numbers[index : index + 1]:
            if self._tickets.pop(number, None) is not None:
                self.engine.cancel(number)

    def _stop(self) -> None:
        self._ends = True

    def _run(self) -> None:
        try:
            while not self._ends:
                self._read(wait=not self.engine.busy)
                if self.engine.busy and not self._ends:
                    self._deliver(self.engine.step())
                engine = self.engine
                self._snapshot = engine.running, engine.waiting, engine.cache_usage, dataclasses.replace(engine.stats)
        except BaseException as error:
            self.failure = error
            traceback.print_exc()
        finally:
            self._snapshot = (0, 0, (0, self._snapshot[2][1]), self._snapshot[3])
            told = {id(ticket): ticket for ticket, _ in self._tickets.values()}
            self._tickets.clear()
            for ticket in told.values():
                ticket.give(Stopped("the engine has failed" if self.failure else "the server is going down"))
            if self.failure is not None:  # those who come later are told as well
                while not self._ends:
                    self._read(wait=True)

    def _read(self, wait: bool) -> None:
        """Do what was posted; with nothing to compute, wait for something."""
        while True:
            try:
                call, arguments = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            call(*arguments)

    def _deliver(self, tokens: Sequence[Token]) -> None:
        of_tickets: dict[int, tuple[Ticket, list[tuple[int, Token]]]] = {}
        for token in tokens:
            entry = self._tickets.get(token.number)
            if entry is None:
                continue
            ticket, index = entry
            of_tickets.setdefault(id(ticket), (ticket, []))[1].append((index, token))
            if token.finish is not None:
                del self._tickets[token.number]
        for ticket, got in of_tickets.values():
            ticket.give(got)
