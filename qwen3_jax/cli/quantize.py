"""Write a quantised checkpoint, and measure what the rounding cost.

    qwen3 quantize Qwen/Qwen3-8B --to int8 --out qwen3-8b-int8 --text held-out.txt
    qwen3 quantize Qwen/Qwen3-8B --to fp8 --out qwen3-8b-fp8 --text held-out.txt --dtype bfloat16
    qwen3 quantize Qwen/Qwen3-8B --to int4 --out qwen3-8b-int4 --text held-out.txt --group-size 64

OUT is written whole or not at all: int8 in compressed-tensors' form, fp8 in that of Qwen's own FP8 releases, int4 in AWQ's,
which vLLM and others read too (docs/quantization.md). It is then loaded, and run over the text beside the unquantised model:
perplexities, mean KL divergence, and how often the most probable token is the same.
"""

import argparse
from pathlib import Path

from qwen3_jax.cli import compile_cache
from qwen3_jax.cli.arguments import Parser, local_target, whole_number
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError
from qwen3_jax.progress import doing, progress_bar
from qwen3_jax.text_files import read_text


def main(argv: list[str] | None = None, prog: str = "qwen3 quantize") -> int:
    """Run the command; return the exit code."""
    args = _parser(prog).parse_args(argv)
    return guarded(prog, lambda: _quantize(args))


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("model", metavar="MODEL", help="checkpoint folder, GGUF file or hub repository id")
    add("--to", choices=["int8", "fp8", "int4"], required=True, help="type of the weights")
    add("--out", metavar="DIR", type=local_target, required=True, help="the folder to write")
    add("--text", metavar="FILE", type=Path, required=True, help="UTF-8 text to compare the models on")
    add(
        "--group-size",
        metavar="N",
        type=whole_number(1),
        help="inputs that share a scale, with --to int4 (default: 128)",
    )
    add(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        help="type in which both models compute, and of what is not quantised (default: MODEL's own)",
    )
    add("--length", metavar="N", type=whole_number(2), default=512, help="tokens of a window (default: 512)")
    add("--tokens", metavar="N", type=whole_number(2), help="compare on this many tokens (default: all)")
    add("--revision", metavar="REV", help="branch, tag or commit of a hub repository")
    compile_cache.add_option(add)
    add("--overwrite", action="store_true", help="replace DIR if it exists")
    return parser


def _quantize(args: argparse.Namespace) -> int:
    with doing("starting JAX"):
        import jax
        from flax import nnx

        from qwen3_jax.checkpoint import load
        from qwen3_jax.checkpoint.formats.write import GROUP, save_quantized
        from qwen3_jax.checkpoint.publish import check_target
        from qwen3_jax.evaluation.divergence import divergence
        from qwen3_jax.model import parameter_count

    check_target(args.out, args.overwrite)  # before minutes of loading
    if args.group_size is not None and args.to != "int4":
        raise UserError(f"--group-size is for --to int4; {args.to} has its own scales.")
    compile_cache.enable(args.compile_cache)
    text = read_text(args.text)
    with doing("loading weights"):
        model, tokenizer = load(args.model, dtype=args.dtype, revision=args.revision)
    if tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer, without which --text cannot be read.")
    ids = tokenizer.encode(text)[: args.tokens]
    if len(ids) < 2:
        raise UserError(f"{args.text} has {len(ids)} tokens; at least two are needed to compare.")

    with progress_bar("packing", parameter_count(model.config) / 1e9, unit="G numbers") as bar:
        save_quantized(
            model,
            tokenizer,
            args.out,
            args.to,
            group_size=args.group_size or GROUP,
            overwrite=args.overwrite,
            progress=lambda size: bar.advance(size / 1e9),
        )
    with doing("loading what was written"):
        written, _ = load(args.out, dtype=args.dtype or model.dtype.name)
    result = divergence(model, written, ids, args.length)
    stored = sum(file.stat().st_size for file in args.out.glob("*.safetensors"))
    unquantised = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    print(f"{args.out}: {args.to}, {_bytes(stored)} of weights ({_bytes(unquantised)} unquantised)")
    print(
        f"perplexity: {result.perplexity:.4f} ({result.reference_perplexity:.4f} unquantised, {result.tokens} tokens)"
    )
    print(f"mean KL divergence: {result.kl:.6f} nats per token")
    print(f"same most probable token: {100 * result.same_top:.2f}%")
    return 0


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
