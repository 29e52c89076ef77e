"""Server-sent events, and work that ends when its client disconnects or its time is over."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Request, Response

from qwen3_jax.errors import UserError
from qwen3_jax.serving.errors import Refused, note

_LAST_SECONDS = 5  # to send the error that ends a stream


class EventStream(Response):
    """A stream that ends when its client disconnects or its time is over, even if the client reads too slowly.

    Args:
        events: encoded events.
        seconds: time limit.
        request: whose client to watch.
        closed: called at the end, in any case.
        failed: encodes the event of an error behind the first event.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], seconds: float, request: Request, closed: Callable[[], None],
        failed: Callable[[Refused], bytes],
    ):  # fmt: skip
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._seconds, self._request = events, seconds, request
        self._closed, self._failed = closed, failed
        self._started = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await while_connected(self._request, self._send(send), self._seconds)
        except (Refused, UserError) as error:
            refused = Refused.of(error, self._request.url.path)
            note(scope, refused)
            if not self._started:
                await refused.response(self._request.url.path)(scope, receive, send)
            elif refused.status != 499:  # the status line is sent already
                async with asyncio.timeout(_LAST_SECONDS):
                    await send({"type": "http.response.body", "body": self._failed(refused), "more_body": True})
                    await send({"type": "http.response.body", "body": b""})
        finally:
            self._closed()

    async def _send(self, send: Any) -> None:
        async with contextlib.aclosing(self._events):
            async for data in self._events:
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def event(value: dict[str, Any], name: str | None = None) -> bytes:
    """Encode one event, with its name in APIs whose events have names."""
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return (b"" if name is None else f"event: {name}\n".encode()) + b"data: " + data + b"\n\n"


async def while_connected(request: Request, work: Any, seconds: float) -> Any:
    """Await `work` while the client is connected, for at most `seconds`; then cancel it.

    Raises:
        Refused: 499 (nginx's code): the client has disconnected; 504: the time is over.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done, left = working.done(), leaving.done()
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})
    if done:
        return working.result()
    if left:
        raise Refused(499, "the client has disconnected.")
    raise Refused(504, f"the request took longer than {seconds:g} seconds.")
