"""Prepare a corpus for training: tokens and labels in ArrayRecord, once, on all cores.

    qwen3 data prepare --path 'crawl/*.jsonl.gz' --tokenizer Qwen/Qwen3-0.6B --output prepared/web --language detect
    qwen3 data prepare --path gs://bucket/books --tokenizer tokenizer/ --output prepared/books --domain books --duplicates near
    qwen3 data prepare --path 'crawl/*.parquet' --tokenizer tokenizer/ --output prepared/web --beam --runner=FlinkRunner
    qwen3 data show prepared/web --row 4096
    qwen3 data extract --path papers/ --output text/papers
    qwen3 data show chats.jsonl --tokenizer Qwen/Qwen3-0.6B

A configuration names the folder as a source's path. An interrupted preparation resumes. With --beam the same work runs as an
Apache Beam job (extra `beam`); what follows are Beam's own options, DirectRunner being the default. Its workers must share a
file system.
"""

import argparse
import sys
from typing import Any

from qwen3_jax.cli import data_extract, data_factory, data_show, input_options
from qwen3_jax.cli.arguments import Parser, above_0, local_target, whole_number
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError


def main(argv: list[str] | None = None, prog: str = "qwen3 data") -> int:
    """Run one of the commands; return the exit code."""
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    prepare = commands.add_parser("prepare", help="make a prepared corpus")
    _prepare_flags(prepare)
    prepare.set_defaults(run=_prepare)
    show = commands.add_parser(
        "show", help="print what a corpus holds, and what of it is learned", description=data_show.__doc__
    )
    data_show.add_flags(show)
    show.set_defaults(run=data_show.show)
    data_extract.add_extract(commands.add_parser("extract", help=data_extract.HELP))
    for name, (add_options, help_text) in data_factory.COMMANDS.items():
        add_options(commands.add_parser(name, help=help_text))
    args = parser.parse_args(argv)
    return guarded(prog, lambda: args.run(args))


def _prepare_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    input_options.add_paths(add)
    add("--tokenizer", required=True, metavar="DIR|ID", help="tokenizer folder or hub repository")
    add("--output", type=local_target, required=True, metavar="DIR", help="the folder to make")
    add(
        "--name",
        metavar="NAME",
        help="name of the corpus, and its domain unless --domain is given (default: of the folder)",
    )
    input_options.add_records(add)
    add(
        "--loss-on",
        choices=["all", "assistant"],
        default="assistant",
        help="tokens of chat records that are trained on (default: assistant, the answers)",
    )
    add(
        "--history",
        choices=["new_sample", "keep"],
        default="new_sample",
        help="thinking in earlier turns: each turn is a sample without it, or one sample keeps it (default: new_sample)",
    )
    add("--read-control-tokens", action="store_true", help="read special tokens in the text of messages as tokens")
    add("--pairs", action="store_true", help="records are preferences (chosen, rejected)")

    _label_flags(parser)
    _cleaning_flags(parser)
    add = parser.add_argument_group("how").add_argument
    add("--processes", type=whole_number(1), metavar="N", help="processes at work (default: one for each core)")
    add(
        "--split-mb", type=above_0("size"), default=32, metavar="N", help="megabytes of input of one task (default: 32)"
    )
    add(
        "--beam", nargs=argparse.REMAINDER, metavar="BEAM_OPTION",
        help="run as an Apache Beam job; everything after it is Beam's",
    )  # fmt: skip


def _label_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("labels").add_argument
    add("--domain", metavar="NAME", help="domain of every document")
    add("--domain-key", metavar="KEY", help="field of a record with its domain")
    add(
        "--language",
        default="und",
        metavar="CODE",
        help="language of every document, or detect (extra data; default: und)",
    )
    add("--language-key", metavar="KEY", help="field of a record with its language")
    add(
        "--quality", type=float, metavar="Q",
        help="quality of every document (default: the share of Gopher's rules that a text keeps)",
    )  # fmt: skip
    add("--quality-key", metavar="KEY", help="field of a record with its quality")


def _cleaning_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is left out").add_argument
    add(
        "--duplicates",
        choices=["keep", "exact", "near"],
        default="keep",
        help="which to leave out; near: exact ones too (default: keep)",
    )
    add("--similarity", type=float, default=0.8, metavar="S", help="least similarity of near-duplicates (default: 0.8)")
    add(
        "--held-out",
        nargs="+",
        default=[],
        metavar="PATH",
        help="leave out text that shares n words with these files",
    )
    add(
        "--ngram",
        type=whole_number(1),
        default=13,
        metavar="N",
        help="n of --held-out, consecutive words (default: 13)",
    )
    input_options.add_max_malformed(add)


def _prepare(args: argparse.Namespace) -> int:
    from qwen3_jax.checkpoint.hub import resolve
    from qwen3_jax.data import Cleaning, Labels, Source, prepare
    from qwen3_jax.text import Tokenizer

    source = Source(
        name=args.name or args.output.name,
        path=args.path,
        format=args.format,
        text_key=args.text_key,
        loss_on=args.loss_on,
        history=args.history,
        read_control_tokens=args.read_control_tokens,
        pairs=args.pairs,
        labels=Labels(args.domain, args.domain_key, args.language, args.language_key, args.quality, args.quality_key),
        cleaning=Cleaning(args.duplicates, args.similarity, args.held_out, args.ngram, args.max_malformed),
    )
    tokenizer = Tokenizer.from_pretrained(resolve(args.tokenizer, key="--tokenizer"))
    options: dict[str, Any] = {"split_bytes": max(int(args.split_mb * 2**20), 1)}
    if args.beam is not None:
        if args.processes:
            raise UserError(
                "--processes is for this machine; with --beam give Beam's own option (--direct_num_workers)."
            )
        from qwen3_jax.data.beam import prepare_with_beam

        corpus = prepare_with_beam(source, tokenizer, args.output, args.beam, **options)
    else:
        corpus = prepare(source, tokenizer, args.output, processes=args.processes, **options)
    left_out = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in corpus.manifest["left_out"].items())
    print(
        f"{len(corpus):,} documents, {corpus.tokens:,} tokens in {corpus.folder}; left out: {left_out}", file=sys.stderr
    )
    return 0
