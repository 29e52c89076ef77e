"""Tables as an answer may write them: CSV, a table of Markdown, XML with one element for each row.

verify("table", "name,age\nAda,36", {"format": "csv", "columns": ["name", "age"], "rows": [["Ada", 36]]})
verify("table", "<people><person><name>Ada</name></person></people>",
       {"format": "xml", "root": "people", "row": "person", "columns": ["name"], "rows": [["Ada"]]})
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.verifiers.verdict import BadReference, Verdict, right, unparsable, wrong

FORMATS = ("csv", "markdown", "xml")
_FENCE = re.compile(r"\A```[ \t]*[A-Za-z]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\Z", re.DOTALL)
_RULE = re.compile(r":?-{3,}:?")


@dataclass(frozen=True)
class TableSettings:
    """Of `verify_table`.

    Attributes:
        ordered: rows must come in the order of the reference.
        fenced: the table may stand in one fenced block of Markdown. Text around it is wrong either way.
        seconds: of time for one answer.
    """

    ordered: bool = True
    fenced: bool = True
    seconds: float = 2.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), "settings of 'table': ", seconds=above(0, finite=True))


def verify_table(answer: str, reference: Any, settings: TableSettings) -> Verdict:
    """Whether the whole answer is one table with these columns, in order, and these rows. Cells are compared as texts.

    Args:
        reference: an object with `format` (csv, markdown, xml), `columns` (names) and `rows` (lists of texts or numbers); for
            xml also `root` and `row`, the names of the elements. Attributes and text between elements are wrong in XML.
    """
    form, columns, rows = _reference(reference)
    text = answer.strip()
    fenced = _FENCE.match(text) if settings.fenced else None
    text = fenced[1] if fenced else text
    try:
        lines = _xml(text, reference, columns) if form == "xml" else {"csv": _csv, "markdown": _markdown}[form](text)
    except _NoTable as error:
        return unparsable(f"the answer is no table in the format {form}: {error}"[:300])
    if lines[0] != columns:
        return wrong(f"the columns are {', '.join(lines[0])}"[:200] + f", not {', '.join(columns)}"[:100])
    found = lines[1:]
    for number, line in enumerate(found, 1):
        if len(line) != len(columns):
            return wrong(f"row {number} has {len(line)} cells, not {len(columns)}")
    if not settings.ordered:
        found, rows = sorted(found), sorted(rows)
    if len(found) != len(rows):
        return wrong(f"the table has {len(found)} rows, not {len(rows)}")
    for number, (line, want) in enumerate(zip(found, rows, strict=True), 1):
        if line != want:
            return wrong(f"row {number} is {', '.join(line)}"[:200] + f", not {', '.join(want)}"[:100])
    return right(f"the table has the {len(rows)} rows of the reference")


class _NoTable(ValueError):
    """The answer is in another format; says why."""


def _reference(reference: Any) -> tuple[str, list[str], list[list[str]]]:
    if not isinstance(reference, Mapping) or reference.get("format") not in FORMATS:
        raise BadReference(f"'table' needs an object with format, one of {', '.join(FORMATS)}, columns and rows")
    names = ("root", "row") if reference["format"] == "xml" else ()
    if not all(isinstance(reference.get(name), str) for name in names):
        raise BadReference("'table' needs root and row, names of elements, for xml")
    columns, rows = reference.get("columns"), reference.get("rows")
    if not isinstance(columns, list) or not columns or not all(isinstance(name, str) for name in columns):
        raise BadReference("'table' needs columns, a list of names")
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise BadReference("'table' needs rows, lists with a cell for each column")
    return reference["format"], columns, [[str(cell).strip() for cell in row] for row in rows]


def _csv(text: str) -> list[list[str]]:
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise _NoTable(str(error)) from None
    if not lines or not any(lines[0]):
        raise _NoTable("it is empty")
    return [[cell.strip() for cell in line] for line in lines]


def _markdown(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.strip().split("\n")]
    for line in lines:
        if len(line) < 2 or not line.startswith("|") or not line.endswith("|"):
            raise _NoTable(f"{line[:80]!r} is no row between vertical bars")
    rows = [[cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line[1:-1])] for line in lines]
    if len(rows) < 2 or not all(_RULE.fullmatch(cell) for cell in rows[1]) or len(rows[1]) != len(rows[0]):
        raise _NoTable("the line of hyphens below the columns is missing")
    return [rows[0], *rows[2:]]


def _xml(text: str, reference: Mapping[str, Any], columns: Sequence[str]) -> list[list[str]]:
    if "<!" in text:  # a document type may declare entities, which grow
        raise _NoTable("declarations and comments are not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise _NoTable(str(error)) from None
    rows = list(root)
    names = {root.tag} | {row.tag for row in rows}
    if root.tag != reference["root"] or names - {reference["root"], reference["row"]}:
        raise _NoTable(f"its elements are {', '.join(sorted(map(str, names)))}")
    stray = [root.text, *(part.tail for part in root.iter() if part is not root), *(row.text for row in rows)]
    if any((text or "").strip() for text in stray) or any(part.attrib for part in root.iter()):
        raise _NoTable("it has attributes, or text between its elements")
    if any(len(cell) for row in rows for cell in row):
        raise _NoTable("the elements of a row hold others")
    for row in rows:
        if [cell.tag for cell in row] != list(columns):
            return [[str(cell.tag) for cell in row]]
    return [list(columns), *([(cell.text or "").strip() for cell in row] for row in rows)]
