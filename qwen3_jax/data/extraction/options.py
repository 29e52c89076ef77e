"""How files are read: what `qwen3 data extract` is told, and what its result depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.endpoints import ChatRequest, Endpoint
from qwen3_jax.errors import UserError

PROMPT = (
    "Write down the text of this page, in reading order, and nothing else: no comments and no descriptions of pictures. "
    "Leave out running heads and page numbers. Join words that are broken at the ends of lines. Separate the cells of a table "
    "by tabs and its rows by new lines."
)


class Unreadable(ValueError):
    """A document that gives no text; one clause, which does not name the file."""


@dataclass(frozen=True)
class Limits:
    """What reading one document may take.

    Attributes:
        seconds: for one page of a PDF file, and for any other file.
        memory: bytes of address space.
        pages: of a PDF file that are read by one process: its memory ends with it.
    """

    seconds: float = 30.0
    memory: int = 2 << 30
    pages: int = 100

    def __post_init__(self) -> None:
        check_bounds(vars(self), "", seconds=above(0, finite=True), memory=whole(1 << 28), pages=whole(1))


@dataclass(frozen=True)
class Recognition:
    """How a page is read from its picture.

    Attributes:
        url: of an OpenAI-compatible endpoint, as its clients' `base_url`.
        model: that reads pictures, under its name there.
        api_key: sent as a bearer token; no part of the settings.
        prompt: what it is told.
        max_new_tokens: of a page.
        dpi: of the picture.
        concurrency: pages at the same time.
        seconds: for one answer.
        attempts: for a page whose request fails in passing.
    """

    url: str
    model: str
    api_key: str | None = None
    prompt: str = PROMPT
    max_new_tokens: int = 8192
    dpi: int = 150
    concurrency: int = 8
    seconds: float = 300.0
    attempts: int = 4

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "recognition.", max_new_tokens=whole(1), dpi=whole(36, 600), concurrency=whole(1),
            seconds=above(0, finite=True), attempts=whole(1),
        )  # fmt: skip

    def endpoint(self) -> Endpoint:
        """A connection to it.

        Raises:
            UserError: not an http address.
        """
        return Endpoint(self.url, self.model, api_key=self.api_key, concurrency=self.concurrency, timeout=self.seconds)

    def request(self, png: str) -> ChatRequest:
        """The request to read a picture, a PNG in base 64."""
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
        content = [picture, {"type": "text", "text": self.prompt}]
        return ChatRequest(({"role": "user", "content": content},), self.max_new_tokens, {"temperature": 0.0})


@dataclass(frozen=True)
class Options:
    """How documents are read.

    Attributes:
        html: "main", the main content of web pages, without menus and the like; or "whole".
        recognise: "auto", pages whose text layer does not do; or "all", every page of PDF files.
        unreadable_pages: "refuse", a document with a page that cannot be read is left out; or "leave out", only the page is.
        recognition: reads pictures; None has pages that need it count as unreadable.
        limits: time and memory.
    """

    html: Literal["main", "whole"] = "main"
    recognise: Literal["auto", "all"] = "auto"
    unreadable_pages: Literal["refuse", "leave out"] = "refuse"
    recognition: Recognition | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if self.recognise == "all" and self.recognition is None:
            raise UserError('recognise "all" needs a model that reads pictures: give recognition.')

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as JSON values: not how fast, nor with which key."""
        seen = self.recognition
        named = ("url", "model", "prompt", "max_new_tokens", "dpi")
        return {
            "html": self.html, "recognise": self.recognise, "unreadable_pages": self.unreadable_pages,
            "recognition": None if seen is None else {name: getattr(seen, name) for name in named},
            "seconds": self.limits.seconds, "memory": self.limits.memory,
        }  # fmt: skip
