"""Convert a checkpoint between Hugging Face's format and Orbax, or to another data type.

    qwen3 convert Qwen/Qwen3-0.6B qwen3-0.6b-orbax --to orbax
    qwen3 convert qwen3-0.6b-orbax qwen3-0.6b-hf --to hf
    qwen3 convert Qwen/Qwen3-0.6B qwen3-0.6b-fp32 --to hf --dtype float32
    qwen3 convert runs/quickstart quickstart-500 --to hf --step 500
    qwen3 convert Qwen/Qwen3-0.6B tuned --merge runs/lora/adapter
    qwen3 convert runs/lora/adapter tuned --merge

SOURCE is a Hugging Face folder, a hub repository, a folder that `--to orbax` wrote, a LoRA adapter, or a training run; its
contents tell which. An adapter is added to the weights of its base model.
TARGET is written whole or not at all.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from qwen3_jax.cli.arguments import Parser
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError
from qwen3_jax.paths import local_path, run_path
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.model import Qwen3
    from qwen3_jax.text import Tokenizer


def main(argv: list[str] | None = None, prog: str = "qwen3 convert") -> int:
    """Run the conversion; return the exit code."""
    args = _parser(prog).parse_args(argv)
    return guarded(prog, lambda: _convert(args))


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "source", metavar="SOURCE", help="checkpoint folder, training run or hub repository id; also gs://"
    )
    parser.add_argument("target", metavar="TARGET", help="the folder to write; of --to hf also gs://")
    parser.add_argument("--to", choices=["hf", "orbax"], help="format of TARGET (with --merge hf is the default)")
    parser.add_argument(
        "--merge", nargs="?", const=True, metavar="ADAPTER",
        help="add this LoRA adapter to the weights of SOURCE; without ADAPTER, SOURCE is the adapter (or the run of one)",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="storage type of the weights (default: as they are in SOURCE)",
    )
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of a training run (default: its newest)")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    return parser


def _convert(args: argparse.Namespace) -> int:
    with doing("starting JAX"):
        from qwen3_jax.checkpoint import save
        from qwen3_jax.checkpoint.native import save_native
        from qwen3_jax.checkpoint.publish import check_target

    if args.to is None and args.merge is None:
        raise UserError("give --to hf or --to orbax, the format of TARGET.")
    args.to = args.to or "hf"
    target = (run_path if args.to == "hf" else local_path)(args.target, "TARGET")
    check_target(target, args.overwrite)  # before minutes of loading
    with doing("loading weights"):
        model, tokenizer = _read(args)
    write = {"hf": save, "orbax": save_native}[args.to]
    with doing(f"writing {target}"):
        write(model, tokenizer, target, dtype=args.dtype, overwrite=args.overwrite)
    note = "" if tokenizer is not None else ", no tokenizer (SOURCE has none)"
    print(f"{target}: {model.param_dtype.name} weights{note}", file=sys.stderr)
    return 0


def _read(args: argparse.Namespace) -> "tuple[Qwen3, Tokenizer | None]":
    """Load SOURCE, of any format, with layers stacked as the Orbax format stores them."""
    from qwen3_jax.checkpoint import load, merged
    from qwen3_jax.checkpoint.adapters.folders import holds_adapter
    from qwen3_jax.checkpoint.hub import is_run, resolve
    from qwen3_jax.training.run_folder import load_run

    run = run_path(args.source, "SOURCE")
    adapter = None if args.merge is True else args.merge
    if is_run(run):
        if args.revision is not None:
            raise UserError(f"--revision is for a repository on the hub; {run} is a training run.")
        if adapter is not None:
            raise UserError(
                f"--merge {adapter} is for a checkpoint; {run} is a training run: convert its {run / 'hf'}."
            )
        model, tokenizer = load_run(run, args.step)
        if args.merge and model.lora is None:
            raise UserError(f"--merge: {run} is a training run without an adapter.")
        return merged(model), tokenizer
    if args.step is not None:
        raise UserError(f"--step is for a training run; {args.source} is not one.")
    if args.merge is True and not holds_adapter(resolve(args.source, revision=args.revision)):
        raise UserError(f"--merge: {args.source} holds no adapter; name the one to add, --merge ADAPTER.")
    merging = args.merge is not None and args.dtype == "float32"  # the sum is rounded to the type that is loaded
    dtype = args.dtype if merging else None
    return load(args.source, adapter=adapter, dtype=dtype, revision=args.revision, scan_layers=True)
