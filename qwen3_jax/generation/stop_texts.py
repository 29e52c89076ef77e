"""Stop texts: they end an answer where its content contains one, and are not part of it.

Thinking, think tags with the newlines behind them, forced text and tool calls pass unread: the parser has taken them out of the
content. A stop text does not reach across a call. Whitespace between a call and a stop text is no content, as none is behind
the last call of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwen3_jax.text import Piece, ToolCall


class StopTexts:
    """Looks for stop texts in the events of a parser, and holds back content that may begin one.

    Args:
        texts: non-empty. The one that is complete first ends the answer; of several complete at once, the longest.

    Attributes:
        cut: place of the stop text in the text that the parser was fed; None until one was found.
        end: the place behind it.
    """

    def __init__(self, texts: Sequence[str]):
        self.cut: int | None = None
        self.end: int | None = None
        self._texts = tuple(texts)
        self._withheld = ""
        self._start = 0  # place of what is withheld
        self._after_call = False  # whether nothing but whitespace came since the last call

    def feed(self, events: Iterable[Piece | ToolCall]) -> list[Piece | ToolCall]:
        """Return the events that are certain, up to the first stop text."""
        certain: list[Piece | ToolCall] = []
        for event in events:
            if self.cut is not None:
                break
            if isinstance(event, ToolCall):
                certain += [*self.finish(), event]
                self._after_call = True
            elif event.kind == "thinking":
                certain.append(event)
            else:
                certain += self._content(event)
        return certain

    def finish(self) -> list[Piece]:
        """Return what is withheld: no stop text follows."""
        text, self._withheld = self._withheld, ""
        return [Piece("content", text, self._start)] if text else []

    def _content(self, piece: Piece) -> list[Piece]:
        if not self._withheld:
            self._start = piece.start
        text, start = self._withheld + piece.text, self._start
        matches = [(place + len(stop), place) for stop in self._texts if (place := text.find(stop)) >= 0]
        certain = min(matches)[1] if matches else len(text) - overlap(text, self._texts)
        given = 0 if self._after_call and not text[:certain].strip() else certain
        self._after_call &= not given
        if matches:
            self._withheld, self.cut, self.end = "", start + certain, start + min(matches)[0]
        else:
            self._withheld, self._start = text[given:], start + given
        certain = given
        return [Piece("content", text[:certain], start)] if certain else []


def overlap(text: str, stops: tuple[str, ...]) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
