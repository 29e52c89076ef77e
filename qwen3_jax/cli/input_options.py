"""Options of the commands of `qwen3 data` that read files of documents or records."""

from collections.abc import Callable
from typing import Any

from qwen3_jax.cli.arguments import whole_number

FORMATS = ("auto", "text", "json", "jsonl", "csv", "parquet", "arrayrecord")


def add_paths(add: Callable[..., Any]) -> None:
    """Add --path."""
    add(
        "--path", nargs="+", required=True, metavar="PATH", help="files, folders, globs in quotes, or URLs (gs://, s3://)"
    )  # fmt: skip


def add_records(add: Callable[..., Any]) -> None:
    """Add the form of the files and the key of a record's text."""
    add(
        "--format", choices=FORMATS, default="auto", help="form of the files (default: auto, by their names)"
    )  # fmt: skip
    add("--text-key", default="text", metavar="KEY", help="field of a record with its text (default: text)")


def add_max_malformed(add: Callable[..., Any]) -> None:
    """Add --max-malformed."""
    add(
        "--max-malformed", type=whole_number(0), default=0, metavar="N", help="most unusable records to skip (default: 0)"
    )  # fmt: skip
