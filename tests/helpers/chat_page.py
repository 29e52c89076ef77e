"""The chat page in a real browser, and a proxy that behaves like a slow network."""

import asyncio
import concurrent.futures
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from playwright.sync_api import expect

expect.set_options(timeout=60_000)  # milliseconds; for an answer, also on a busy machine


class Chat:
    """The page, a user's actions, and the requests it sent."""

    def __init__(self, context, url: str):
        self.page = context.new_page()
        self.bodies: list[dict] = []  # of requests for answers
        self.faults: list[str] = []  # errors
        self.page.on("request", lambda request: self._note(request, url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda message: "Content Security" in message.text and self.faults.append(message.text))
        self.page.goto(url)
        self.turns = self.page.locator(".turn")
        self.answer = self.page.locator(".turn:last-child")

    def _note(self, request, url: str) -> None:
        if urlsplit(request.url)[:2] != urlsplit(url)[:2] and not request.url.startswith("data:"):
            self.faults.append(f"a request to {request.url}")
        if request.url.endswith("/v1/chat/completions"):
            self.bodies.append(json.loads(request.post_data))

    def send(self, text: str) -> None:
        self.page.fill("#draft", text)
        expect(self.page.locator("#send")).to_be_enabled()
        self.page.press("#draft", "Enter")

    def wait(self) -> dict:
        """Wait for the end of the answer; return the page's own record of it."""
        expect(self.page.locator("#stop")).to_be_hidden()
        return self.record()[-1]

    def ask(self, text: str) -> dict:
        self.send(text)
        return self.wait()

    def record(self) -> list[dict]:
        return json.loads(self.page.evaluate("sessionStorage['qwen3.turns']"))

    def show(self, markdown: str) -> None:
        """Load a conversation with this answer, which a random model would not give."""
        answer = {"role": "assistant", "text": markdown, "thinking": "Hm.\n\nWell.", "state": "done", "thoughts": 4}
        turns = [{"role": "user", "text": "How do I use a thinking budget from Python?"}, answer]
        url = self.page.url
        self.page.goto(f"{url}page/chat.css")  # the same origin, but not the page, which would save its own state
        self.page.evaluate("turns => { sessionStorage['qwen3.turns'] = turns; }", json.dumps(turns))
        self.page.goto(url)

    def set_budget(self, place: int) -> None:
        self.page.locator("#budget").fill(str(place))


@dataclass
class Line:
    """A proxy between browser and server: it forwards bytes in small pieces, and can be cut."""

    address: tuple[str, int]
    piece: int = 5  # bytes: it cuts characters, events and chunks anywhere
    cut: bool = False
    pause: float = 0.0  # seconds before each piece for the browser: tiny models answer before a busy browser has looked
    url: str = ""

    @contextlib.contextmanager
    def laid(self) -> Iterator["Line"]:
        """Start the proxy; it listens at `url`."""
        laid: concurrent.futures.Future = concurrent.futures.Future()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(laid)))
        thread.start()
        loop, ends = laid.result()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ends.set)
            thread.join()

    async def _run(self, laid: concurrent.futures.Future) -> None:
        ends = asyncio.Event()
        listener = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        laid.set_result((asyncio.get_running_loop(), ends))
        await ends.wait()

    async def _carry(self, reader, writer) -> None:
        server_reader, server_writer = await asyncio.open_connection(*self.address)
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends; Python 3.11 would log it as an error
            await asyncio.gather(
                self._pump(reader, server_writer, 1 << 16, False), self._pump(server_reader, writer, self.piece, True)
            )

    async def _pump(self, reader, writer, piece: int, writes_to_browser: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                for start in range(0, len(data), piece):
                    if self.cut:
                        writer.transport.abort()
                        return
                    writer.write(data[start : start + piece])
                    await writer.drain()
                    await asyncio.sleep(self.pause if writes_to_browser else 0)
            writer.close()
