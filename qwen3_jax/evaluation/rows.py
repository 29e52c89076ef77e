"""Rows of evaluation data: a JSON object, and where it lies, so that a missing column is named with its file and row.

row = Row({"question": "1 + 1?", "answer": "#### 2"}, "test.jsonl:1")
row.text("question", "Question")     # the first of these columns that the row has
row.integer("answer")                # RowError: test.jsonl:1: the column 'answer' must be a whole number, got '#### 2'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.text_files import is_unicode


class RowError(UserError):
    """A row that is not in the form that its task reads; the message starts with the row's place."""


_ABSENT = object()


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        body: columns by name. Null values and empty cells of CSV are absent.
        location: file and line, or file and number of the row.
        file: path of its file below the folder of the data; some data sets say a subject or a language there and nowhere else.
    """

    body: Mapping[str, Any]
    location: str
    file: str = ""

    def error(self, text: str) -> RowError:
        """The error that says this of the row."""
        return RowError(f"{self.location}: {text}")

    def has(self, *names: str) -> bool:
        """Whether the row has one of these columns."""
        return any(self.body.get(name) is not None for name in names)

    def value(self, *names: str, default: Any = _ABSENT) -> Any:
        """The value of the first of these columns that is there.

        Raises:
            RowError: none is there, and no default is given.
        """
        for name in names:
            if self.body.get(name) is not None:
                return self.body[name]
        if default is not _ABSENT:
            return default
        wanted = " or ".join(repr(name) for name in names)
        has = ", ".join(sorted(map(str, self.body))[:20]) or "no column"
        raise self.error(f"the column {wanted} is missing; the row has {has}.{nearest(names[0], list(self.body))}")

    def text(self, *names: str, default: str | None = None) -> str:
        """The text of the first of these columns; whole numbers are taken as they are written.

        Raises:
            RowError: the column is missing, holds something else, or half of a surrogate pair.
        """
        value = self.value(*names, default=_ABSENT if default is None else default)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if not isinstance(value, str):
            raise self.error(f"the column {self._name(names)} must be text, got {value!r:.100}")
        if not is_unicode(value):
            raise self.error(f"the column {self._name(names)} holds half of a surrogate pair, which is no text")
        return value

    def filled(self, *names: str) -> str:
        """The text of a column that must not be empty."""
        text = self.text(*names)
        if not text.strip():
            raise self.error(f"the column {self._name(names)} is empty")
        return text

    def integer(self, *names: str) -> int:
        """A whole number, or a text that is one.

        Raises:
            RowError: the column is missing or holds something else.
        """
        value = self.value(*names)
        if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"the column {self._name(names)} must be a whole number, got {value!r:.100}")
        return value

    def items(self, *names: str, default: list[Any] | None = None) -> list[Any]:
        """A list, or a text that is one in JSON.

        Raises:
            RowError: the column is missing or holds something else.
        """
        return self._parsed_as(list, "a list", names, default)

    def texts(self, *names: str, default: list[str] | None = None) -> list[str]:
        """A list of texts, or its JSON."""
        values = self.items(*names, default=default)
        for value in values:
            if not isinstance(value, str) or not is_unicode(value):
                raise self.error(f"the column {self._name(names)} must be a list of texts, got {value!r:.100} in it")
        return values

    def mapping(self, *names: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """An object, or a text that is one in JSON."""
        return self._parsed_as(Mapping, "an object", names, default)

    def _parsed_as(self, kind: type, what: str, names: tuple[str, ...], default: Any) -> Any:
        value = self.parsed(*names, default=_ABSENT if default is None else default)
        if not isinstance(value, kind):
            raise self.error(f"the column {self._name(names)} must be {what}, got {value!r:.100}")
        return value

    def parsed(self, *names: str, default: Any = _ABSENT) -> Any:
        """A value, and of a text that is a list or an object in JSON, that list or object."""
        value = self.value(*names, default=default)
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value

    def _name(self, names: tuple[str, ...]) -> str:
        return repr(next((name for name in names if self.body.get(name) is not None), names[0]))
