"""Train a byte-level BPE tokenizer with Qwen3's special tokens.

    qwen3 tokenizer train --input corpus.txt 'chats/**/*.jsonl' --vocab-size 32000 --output tokenizer/

A .jsonl file gives the "text" of each line; any other file is UTF-8 text. No JAX.
"""

import argparse
import sys

from qwen3_jax.cli.arguments import Parser, local_target, whole_number
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError


def main(argv: list[str] | None = None, prog: str = "qwen3 tokenizer") -> int:
    """Run `tokenizer train`; return the exit code."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("command", choices=["train"], help="train: train a tokenizer on text files")
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="files, or globs in quotes")
    parser.add_argument(
        "--vocab-size",
        type=whole_number(1),
        required=True,
        metavar="N",
        help="tokens in all: 256 bytes, the merges, and Qwen3's 26 added tokens",
    )
    parser.add_argument(
        "--output", type=local_target, required=True, metavar="DIR", help="the tokenizer folder to write"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the tokenizer that DIR holds")
    args = parser.parse_args(argv)
    return guarded(prog, lambda: _train(args))


def _train(args: argparse.Namespace) -> int:
    from qwen3_jax.text import train_from_files

    if args.output.is_file():
        raise UserError(f"--output {args.output} is a file; it must be a folder.")
    if (args.output / "tokenizer.json").exists() and not args.overwrite:
        raise UserError(f"--output {args.output} holds a tokenizer already; choose another folder or add --overwrite.")
    tokenizer = train_from_files(args.input, args.vocab_size, args.output, show_progress=sys.stderr.isatty())
    print(f"{tokenizer.vocab_size} tokens in {args.output}", file=sys.stderr)
    return 0
