"""Pages read from their pictures, by a model behind an OpenAI-compatible endpoint.

    reader = Reader(recognition, folder)
    reader.read(png)                       # the text; Unreadable where the answer cannot be used

Answers are kept in the folder until the job is done, so that a page is not asked for again when the job is resumed.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from pathlib import Path

from qwen3_jax.data.extraction.options import Recognition, Unreadable
from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import written_whole
from qwen3_jax.text_files import read_text

_FENCED = re.compile(r"\A```\w*\n(.*?)\n?```\Z", re.DOTALL)
_LOOP = 12.0  # times that a text shrinks when compressed: prose shrinks 2 to 4 times, tables 6
_LEAST_LOOP = 1000  # characters; shorter texts are not looked at


class Reader:
    """Reads pictures of pages; safe to call from several threads.

    Args:
        recognition: endpoint, model and prompt.
        folder: where answers are kept.
    """

    def __init__(self, recognition: Recognition, folder: Path):
        self._recognition, self._folder = recognition, folder
        self._endpoint = recognition.endpoint()

    def read(self, png: str) -> str:
        """The text of a picture, a PNG in base 64.

        Raises:
            Unreadable: the model refused, did not come to an end, or repeated itself.
            UserError: the endpoint cannot be reached, or refuses every request.
        """
        told = (self._recognition.model, self._recognition.prompt, str(self._recognition.max_new_tokens), png)
        kept = self._folder / f"{hashlib.sha256('/'.join(told).encode()).hexdigest()}.txt"
        if not kept.exists():
            text = self._ask(png)
            self._folder.mkdir(parents=True, exist_ok=True)
            with written_whole(kept) as path:
                path.write_text(text, encoding="utf-8")
        return read_text(kept)

    def _ask(self, png: str) -> str:
        reply = self._endpoint.ask_again(self._recognition.request(png), self._recognition.attempts)
        if reply.outcome == "unreachable":
            raise UserError(
                f"{self._recognition.url} gave no usable reply ({reply.reason}); the same command resumes from here."
            )
        if reply.outcome != "ok":
            raise Unreadable(f"recognition gave no text: {reply.reason}")
        text = unfenced(reply.content)
        if not text:
            raise Unreadable("recognition gave no text: the answer is empty")
        if is_loop(text):
            raise Unreadable("recognition repeated itself")
        return text


def unfenced(text: str) -> str:
    """An answer without the code fence that models like to put around it."""
    text = text.strip()
    match = _FENCED.match(text)
    return (match[1] if match else text).strip()


def is_loop(text: str) -> bool:
    """Whether a long text says the same again and again."""
    raw = text.encode("utf-8", "replace")
    parts = [raw, raw[-len(raw) // 2 :]]  # a loop begins somewhere
    return len(text) >= _LEAST_LOOP and any(len(part) > _LOOP * len(zlib.compress(part)) for part in parts)
