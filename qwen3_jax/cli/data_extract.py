"""Text of PDF, HTML and EPUB files, as records that `qwen3 data prepare` reads: `qwen3 data extract`.

    qwen3 data extract --path papers/ --output text/papers
    qwen3 data extract --path 'scans/*.pdf' --output text/scans --endpoint http://localhost:8000/v1 --endpoint-model Qwen3-VL
    qwen3 data prepare --path text/papers --tokenizer tokenizer/ --output prepared/papers --language-key language

Pages are read from their text layer where it does, and by the model behind the endpoint where they are pictures. A file that
cannot be read costs no other: OUTPUT/.extract/failed.jsonl lists it with the reason. The same command resumes where it was
stopped.
"""

import argparse
import sys

from qwen3_jax.cli import endpoint_options, input_options
from qwen3_jax.cli.arguments import Parser, above_0, local_target, whole_number
from qwen3_jax.errors import UserError

HELP = "make records of PDF, HTML and EPUB files"


def add_extract(parser: Parser) -> None:
    """The options of `qwen3 data extract`."""
    parser.description = __doc__
    parser.set_defaults(run=_extract)
    add = parser.add_argument
    input_options.add_paths(add)
    add("--output", type=local_target, required=True, metavar="DIR", help="the folder to make")
    add(
        "--html", choices=["main", "whole"], default="main",
        help="of web pages: the main content, or everything (default: main)",
    )  # fmt: skip
    add(
        "--unreadable-pages", choices=["refuse", "leave-out"], default="refuse",
        help="of a document with pages that cannot be read: leave out the document, or these pages (default: refuse)",
    )  # fmt: skip
    add("--retry-failed", action="store_true", help="read files again that failed before")
    add = parser.add_argument_group("recognition of pages that are pictures").add_argument
    add("--endpoint", metavar="URL", help="OpenAI-compatible endpoint of a model that reads pictures")
    add("--endpoint-model", metavar="NAME", help="the model's name there")
    add(
        "--recognise",
        choices=["auto", "all"],
        default="auto",
        help="pages without a text layer, or all (default: auto)",
    )
    endpoint_options.add_key(add)
    add("--concurrency", type=whole_number(1), metavar="N", help="pages of a document at a time (default: 8)")
    add("--request-timeout", type=whole_number(1), metavar="SECONDS", help="of one reply (default: 300)")
    add("--max-new-tokens", type=whole_number(1), metavar="N", help="most tokens of a page (default: 8192)")
    add("--dpi", type=whole_number(36, 600), metavar="N", help="dots for an inch of the pictures (default: 150)")
    add = parser.add_argument_group("how").add_argument
    add(
        "--seconds",
        type=above_0("time"),
        default=30.0,
        metavar="S",
        help="for a page, or a web page or book (default: 30)",
    )
    add(
        "--memory-mb",
        type=whole_number(256),
        default=2048,
        metavar="N",
        help="megabytes for one document (default: 2048)",
    )
    add("--processes", type=whole_number(1), metavar="N", help="processes at work (default: one for each core)")
    add(
        "--split-mb", type=whole_number(1), default=32, metavar="N", help="megabytes of input of one task (default: 32)"
    )


def _extract(args: argparse.Namespace) -> int:
    from qwen3_jax.data.extraction import Limits, Options, Recognition, extract

    given = {
        "api_key": None if args.endpoint is None else endpoint_options.key_of(args.endpoint, args.api_key_env),
        "concurrency": args.concurrency,
        "seconds": args.request_timeout,
        "max_new_tokens": args.max_new_tokens,
        "dpi": args.dpi,
    }
    recognition = None
    if args.endpoint is None:
        flags = ("endpoint_model", "api_key_env", "concurrency", "request_timeout", "max_new_tokens", "dpi")
        for name in flags:
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for recognition; give --endpoint URL, or leave it out.")
        if args.recognise == "all":
            raise UserError(
                "--recognise all needs a model that reads pictures: give --endpoint URL and --endpoint-model NAME."
            )
    elif args.endpoint_model is None:
        raise UserError("--endpoint needs --endpoint-model NAME: a model that reads pictures.")
    else:
        recognition = Recognition(
            args.endpoint, args.endpoint_model, **{name: value for name, value in given.items() if value is not None}
        )
    options = Options(
        html=args.html,
        recognise=args.recognise,
        unreadable_pages="leave out" if args.unreadable_pages == "leave-out" else "refuse",
        recognition=recognition,
        limits=Limits(args.seconds, args.memory_mb << 20),
    )
    done = extract(
        args.path, args.output, options, processes=args.processes, split_bytes=args.split_mb << 20,
        retry_failed=args.retry_failed,
    )  # fmt: skip
    methods = ", ".join(f"{count:,} {name}" for name, count in done.by_method.items())
    print(f"{done.documents:,} documents, {done.pages:,} pages ({methods}) in {done.folder}", file=sys.stderr)
    if done.left_out:
        others = ", ".join(f"{count:,} {suffix}" for suffix, count in done.left_out.items())
        print(f"not read, because they are no documents: {others}", file=sys.stderr)
    if done.failed:
        print(f"{done.failed:,} files gave no text, the first of them {done.first_failure}", file=sys.stderr)
        print(f"all of them with reasons: {done.failures}", file=sys.stderr)
    return 0
