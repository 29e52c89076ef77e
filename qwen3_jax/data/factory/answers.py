"""Recorded answers: a file that is only appended to, one line for each event, a checksum before each line.

    sent    a request is about to go to a remote backend; its reservation
    answer  the reply, final
    lost    a try without a whole reply, which may have been paid
    free    a try that was not paid: refused connection, HTTP 429 or 5xx
    failed  the last try failed too; asked again by the next run
    moved   an answer that was recorded while the corpus was split otherwise; counted there

A line is a checksum, the event with its key and counts, and behind a tab the reply: opening a file reads no texts. It is
written by one call before anything is done with what it says, so a process that is killed loses nothing that it knew: an
incomplete last line is cut off. `sent` without an event that ends it was in flight: its reservation stays counted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.data.records import DataError
from qwen3_jax.endpoints import Reply, Tokens

_SYNC_SECONDS = 2.0
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Reply)}


@dataclass
class Spending:
    """Tokens of one or more files of answers.

    Attributes:
        requests: answers with token counts.
        prompt, completion, cached, thinking: as the backend counted them.
        doubtful_requests: tries that may have been paid and brought no counts: lost, or in flight when a process was killed.
        doubtful_prompt, doubtful_completion: the most that they can have cost.
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0
    thinking: int = 0
    doubtful_requests: int = 0
    doubtful_prompt: int = 0
    doubtful_completion: int = 0

    def add(self, tokens: Tokens) -> None:
        """Count an answer."""
        self.requests += 1
        for name in ("prompt", "completion", "cached", "thinking"):
            setattr(self, name, getattr(self, name) + getattr(tokens, name))

    def doubt(self, bound: Tokens) -> None:
        """Count a try whose cost is not known."""
        self.doubtful_requests += 1
        self.doubtful_prompt += bound.prompt
        self.doubtful_completion += bound.completion

    def __iadd__(self, other: Spending) -> Spending:
        for name, value in dataclasses.asdict(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def at_most(self) -> Tokens:
        """All that can have been paid."""
        return Tokens(self.prompt + self.doubtful_prompt, self.completion + self.doubtful_completion)


class AnswerLog:
    """The answers to the requests of one split.

    Args:
        path: the file; made when something is written.
        write: cut off a line that is not whole, and allow writing; only one process may.

    Raises:
        DataError: a line before the last one is damaged.
    """

    def __init__(self, path: Path, *, write: bool):
        self._path, self._file, self._reader = path, -1, -1
        self._places: dict[str, tuple[int, int]] = {}  # key -> (start, length) of the answer's line
        self._failed: dict[str, str] = {}
        self._open: dict[str, Tokens] = {}
        self._synced = time.monotonic()
        self.spending = Spending()
        self.end = 0
        for start, line in _lines(path):
            self._take(json.loads(line.partition(b"\t")[0]), start, len(line) + 10)
            self.end = start + len(line) + 10
        for bound in self._open.values():
            self.spending.doubt(bound)
        self._open = {}
        if path.exists():
            self._reader = os.open(path, os.O_RDONLY)
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._file, self.end)
            if self._reader < 0:
                self._reader = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        """Keys of all answers."""
        return iter(self._places)

    def get(self, key: str) -> Reply | None:
        """The recorded answer, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        return read_reply(os.pread(self._reader, place[1], place[0]))

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Where each answer's line lies: key -> (start, length)."""
        return self._places

    def failure(self, key: str) -> str | None:
        """Why the last tries of a request without an answer failed; None if they did not."""
        return self._failed.get(key)

    def sent(self, key: str, bound: Tokens) -> None:
        """Note that a request is about to be sent, and what it can cost at most."""
        self._write({"event": "sent", "key": key, "prompt": bound.prompt, "completion": bound.completion})

    def answer(self, key: str, reply: Reply) -> None:
        """Record a final reply."""
        self._write({"event": "answer", "key": key, **_counts(reply)}, reply)

    def moved(self, key: str, reply: Reply) -> None:
        """Record an answer that another file has and counts."""
        self._write({"event": "moved", "key": key}, reply)

    def lost(self, key: str, reason: str) -> None:
        """Note a try without a whole reply that may have been paid."""
        self._write({"event": "lost", "key": key, "reason": reason})

    def free(self, key: str, reason: str) -> None:
        """Note a try that cost nothing."""
        self._write({"event": "free", "key": key, "reason": reason})

    def failed(self, key: str, reason: str) -> None:
        """Note that a request is given up for this run."""
        self._write({"event": "failed", "key": key, "reason": reason})

    def close(self) -> None:
        """Write everything to the disk. What is in flight stays noted as that."""
        for file in (self._file, self._reader):
            if file >= 0:
                if file == self._file:
                    os.fsync(file)
                os.close(file)
        self._file = self._reader = -1

    def _write(self, event: dict[str, Any], reply: Reply | None = None) -> None:
        raw = _json(event)
        if reply is not None:
            values = {name: value for name, value in dataclasses.asdict(reply).items() if value != _DEFAULTS.get(name)}
            values.pop("text", None)  # it says what thinking and content do
            raw += b"\t" + _json(values)
        line = b"%08x %s\n" % (zlib.crc32(raw), raw)
        view = memoryview(line)
        while view:
            view = view[os.write(self._file, view) :]
        self._take(event, self.end, len(line))
        self.end += len(line)
        if time.monotonic() - self._synced > _SYNC_SECONDS:  # a power cut; a kill loses nothing that was written
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _take(self, event: dict[str, Any], start: int, length: int) -> None:
        key, kind = event["key"], event["event"]
        if kind == "sent":
            if key in self._open:  # in flight when a process was killed
                self.spending.doubt(self._open[key])
            self._open[key] = Tokens(event["prompt"], event["completion"])
            return
        bound = self._open.pop(key, None)
        if kind in ("answer", "moved"):
            self._places[key] = (start, length)
            self._failed.pop(key, None)
            if "tokens" in event:
                self.spending.add(Tokens(**event["tokens"]))
            elif event.get("may_cost") and bound is not None:
                self.spending.doubt(bound)
        elif kind == "lost" and bound is not None:
            self.spending.doubt(bound)
        elif kind == "failed":
            self._failed[key] = event["reason"]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(place, JSON) of every whole line; stops before an incomplete last one.

    Raises:
        DataError: a line that is not the last one is damaged.
    """
    if not path.exists():
        return
    start = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not _is_whole(line):
                if stream.readline():
                    raise DataError(
                        f"{path}:{number} is damaged (its checksum is wrong); delete that line, and its request is asked again."
                    )
                return
            yield start, line[9:-1]
            start += len(line)


def _is_whole(line: bytes) -> bool:
    if not line.endswith(b"\n") or line[8:9] != b" ":
        return False
    try:
        return int(line[:8], 16) == zlib.crc32(line[9:-1])
    except ValueError:
        return False


def read_reply(line: bytes) -> Reply:
    """The reply of an answer's line."""
    return _reply(json.loads(line.partition(b"\t")[2]))


def _counts(reply: Reply) -> dict[str, Any]:
    counts = {} if reply.tokens is None else {"tokens": dataclasses.asdict(reply.tokens)}
    return counts | ({"may_cost": True} if reply.may_cost else {})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def _reply(values: dict[str, Any]) -> Reply:
    tokens = values.get("tokens")
    calls = tuple(values.get("tool_calls") or ())
    return Reply(**{**values, "tokens": None if tokens is None else Tokens(**tokens), "tool_calls": calls})
