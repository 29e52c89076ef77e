"""Fenced blocks of Markdown (CommonMark, section 4.5), in time linear in the text.

fenced_blocks("Text\\n```python\\nx = 1\\n```")[0]    # Block(language="python", text="x = 1\\n")
"""

import re
from typing import NamedTuple

_OPENS = re.compile(r"( *)(`{3,}(?=[^`]*\Z)|~{3,})[ \t]*(.*)\Z", re.DOTALL)
_LANGUAGE = re.compile(r"\{?\s*\.?([\w.+#-]*)")  # also of "python:main.py", "{.python}", 'python title="x"'


class Block(NamedTuple):
    """A block: its language in lower case, "" if it names none; its text, without the indentation of the fence."""

    language: str
    text: str


def fenced_blocks(text: str) -> list[Block]:
    """All blocks in order. One that the end of the text cuts off counts."""
    blocks: list[Block] = []
    lines: list[str] = []
    fence, indent = "", 0
    for line in re.split(r"(?<=\n)", text.replace("\r\n", "\n")):
        mark = line.strip()
        if fence and mark.startswith(fence) and not mark.strip(fence[0]):
            blocks[-1] = blocks[-1]._replace(text="".join(lines))
            fence = ""
        elif fence:
            lines.append(line[min(indent, len(line) - len(line.lstrip(" "))) :])
        elif (opens := _OPENS.match(line.rstrip())) is not None:
            indent, fence, lines = len(opens[1]), opens[2], []
            language = _LANGUAGE.match(opens[3])
            blocks.append(Block(language[1].lower() if language else "", ""))
    if fence:
        blocks[-1] = blocks[-1]._replace(text="".join(lines))
    return blocks
