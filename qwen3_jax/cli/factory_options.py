"""Options that the commands of the data factory share: what is read, who answers, what it may cost; and running a task."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli import background, endpoint_options, input_options, model_options
from qwen3_jax.cli.arguments import Parser, above_0, json_object, local_target, whole_number
from qwen3_jax.errors import UserError
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.data.factory import Finished, Limits, Task
    from qwen3_jax.data.factory.estimate import Estimate, Interval
    from qwen3_jax.endpoints import Backend, ChatRequest, Reply

DEFAULT_BATCH_SIZE, DEFAULT_RETRIES, DEFAULT_TIMEOUT = 32, 5, 600


def add_input(parser: Parser) -> None:
    """Add the options that say what is read and where the result goes."""
    add = parser.add_argument
    input_options.add_paths(add)
    add("--output", type=local_target, required=True, metavar="DIR", help="folder of the job; the same command resumes")
    input_options.add_records(add)
    input_options.add_max_malformed(add)
    add("--processes", type=whole_number(1), default=1, metavar="N", help="that make records of answers (default: 1)")
    add("--split-mb", type=above_0("size"), default=4, metavar="N", help="megabytes of input of one part (default: 4)")


def add_verifier(add: Callable[..., Any], about: str) -> None:
    """Add the options of a verifier; `about` is the help of its name."""
    add("--verifier", type=_verifier, default="", metavar="NAME", help=about)
    add("--verifier-settings", type=json_object, default={}, metavar="JSON", help="settings of the verifier")
    add(
        "--reference-key",
        default="answer",
        metavar="KEY",
        help="field of a record with the reference (default: answer)",
    )


def _verifier(name: str) -> str:
    if name == "reward":
        from qwen3_jax.evaluation import reward_verifier  # noqa: F401 - registers it
    return name


def add_backend(parser: Parser, *, without: str = "") -> None:
    """Add the options that say who answers and what it may cost; `without` says what happens where nobody does."""
    model_options.add_model(parser, servers=True, without=without)
    add = parser.add_argument_group(
        "budgets: what a request can cost at most is reserved before it is sent"
    ).add_argument
    add("--budget-tokens", type=whole_number(1), metavar="N", help="tokens of prompts and answers, over all runs")
    add("--budget-usd", type=_decimal, metavar="D", help="dollars, over all runs; needs both prices")
    add("--price-in", type=_decimal, metavar="D", help="dollars for a million tokens of prompts")
    add("--price-out", type=_decimal, metavar="D", help="dollars for a million tokens of answers")
    add("--budget-hours", type=float, metavar="H", help="hours of this run, after which no request is sent")
    add("--max-failed", type=whole_number(0), metavar="N", help="most requests that may fail (default: any number)")
    add(
        "--sample", type=whole_number(1), metavar="N",
        help="take only N different records, spread over all; data filter: N queries with all their answers (default: all)",
    )  # fmt: skip
    add(
        "--estimate",
        type=whole_number(1),
        metavar="N",
        help="ask N records (data filter: N queries), and print what all would cost; makes nothing",
    )
    endpoint_options.add_endpoint(parser, retries=DEFAULT_RETRIES, timeout=DEFAULT_TIMEOUT)
    add = parser.add_argument_group("identity").add_argument
    add(
        "--fingerprint", metavar="TEXT",
        help="identifies a server's model, so that a job resumes at another address",
    )  # fmt: skip
    model_options.add_speed(parser)
    add = parser.add_argument_group("batches").add_argument
    add(
        "--batch-size",
        type=whole_number(1),
        metavar="N",
        help=f"answers decoded together (default {DEFAULT_BATCH_SIZE})",
    )
    model_options.add_devices(parser)
    parser.add_argument(
        "--beam", nargs=argparse.REMAINDER, metavar="BEAM_OPTION",
        help="run as an Apache Beam job, budgets divided by part; everything after it is Beam's",
    )  # fmt: skip


def run_task(
    args: argparse.Namespace, task: Task, run: Callable[..., Finished] | None = None,
    show: Callable[[Finished], None] = lambda done: None,
) -> int:  # fmt: skip
    """Run a task with the options of `add_input` and `add_backend`; return the exit code.

    Args:
        run: `qwen3_jax.data.factory.run`, or a function with the same arguments.
        show: prints what is to be said about the result besides.
    """
    from qwen3_jax.data import Cleaning, Source
    from qwen3_jax.data.factory import AskOptions, Limits
    from qwen3_jax.data.factory.job import run as run_job

    run = run or run_job
    cleaning = Cleaning(max_malformed=args.max_malformed)
    source = Source(name=task.name, path=args.path, format=args.format, text_key=args.text_key, cleaning=cleaning)
    limits = Limits(args.budget_tokens, args.budget_usd, args.budget_hours, args.price_in, args.price_out)
    retries = DEFAULT_RETRIES if args.retries is None else args.retries
    options = AskOptions(retries + 1, args.max_failed)
    split_bytes = max(int(args.split_mb * 2**20), 1)
    _refuse_contradictions(args, divides=run is run_job)
    with doing("starting"):
        backend = None if args.model is None else backend_of(args)

    def work() -> Finished | Estimate:
        from qwen3_jax.data.factory.estimate import estimate
        from qwen3_jax.data.factory.job import open_job

        if backend is not None and args.beam is not None:
            from qwen3_jax.data.factory.beam import run_with_beam

            return run_with_beam(
                source, task, args.output, functools.partial(backend_of, args), args.beam, fingerprint=backend.fingerprint,
                limits=limits, options=options, sample=args.sample, split_bytes=split_bytes,
            )  # fmt: skip
        if backend is None or args.estimate is None:
            return run(
                source, task, args.output, backend, limits=limits, options=options, processes=args.processes,
                split_bytes=split_bytes, sample=args.sample,
            )  # fmt: skip
        with open_job(source, task, args.output, backend.fingerprint, split_bytes) as opened:
            return estimate(opened, backend, args.estimate, limits, options)

    try:
        result = background.call(work)
    except KeyboardInterrupt:
        print(f"\nwhat was asked is kept in {args.output}; the same command resumes from there", file=sys.stderr)
        raise
    if args.estimate is None:
        show_finished(result, limits)  # type: ignore[arg-type]
        show(result)  # type: ignore[arg-type]
    else:
        _show_estimate(result)  # type: ignore[arg-type]
    return background.leave(0)


def _refuse_contradictions(args: argparse.Namespace, divides: bool) -> None:
    """Refuse what has an effect only on a model that is asked, or none in a Beam job.

    Args:
        divides: the task looks at every record by itself.

    Raises:
        UserError: names the option.
    """
    if args.sample is not None and args.estimate is not None:
        raise UserError("--sample does not go with --estimate, which takes a sample of its own: leave one of them out.")
    names = (
        "budget_tokens", "budget_usd", "price_in", "price_out", "budget_hours", "max_failed", "estimate", "judge", "beam",
        *endpoint_options.FOR_SERVERS, *endpoint_options.FOR_ENGINES,
    )  # fmt: skip
    given = [name for name in names if getattr(args, name, None) is not None] + ["dtype"] * (args.dtype != "auto")
    if args.model is None and given:
        raise UserError(f"--{given[0].replace('_', '-')} has no effect without --model: give a model, or leave it out.")
    if getattr(args, "verifier", "") == "reward" and (args.processes != 1 or args.beam is not None):
        raise UserError("--verifier reward judges with one model in this process: leave out --processes and --beam.")
    if args.beam is None:
        return
    if not divides:
        raise UserError("--beam does not go with data filter, which compares all answers to a query: use --processes.")
    if args.processes != 1:
        raise UserError("--processes is for this machine; with --beam give Beam's own option (--direct_num_workers).")
    if args.estimate is not None:
        raise UserError("--estimate does not go with --beam: leave one of them out; the answers it asks for are kept.")


def backend_of(args: argparse.Namespace) -> Backend:
    """Who answers; a checkpoint's weights are read when the first request is asked.

    Raises:
        UserError: an option that has no effect on what --model names, a missing key, no model.
    """
    if endpoint_options.check_model_options(args):
        return endpoint_options.open_endpoint(args, timeout=DEFAULT_TIMEOUT)
    return background.call(lambda: _Engine(args))


class _Engine:
    """The engine of a checkpoint, loaded when it is first asked: a job whose answers are all recorded needs no weights."""

    is_remote = False

    def __init__(self, args: argparse.Namespace):
        from qwen3_jax.checkpoint.identity import identity
        from qwen3_jax.kernels.platform import default_compute_dtype

        folder, _, adapter = model_options.folders(args)
        dtype = str(default_compute_dtype()) if args.dtype == "auto" else args.dtype
        more = [args.quantize, args.cache_type, args.hf_overrides and json.dumps(args.hf_overrides, sort_keys=True)]
        more += [None if adapter is None else identity(adapter)]
        self.fingerprint = " ".join([folder.name, identity(folder), dtype, *filter(None, more)])
        self.slots = args.batch_size or DEFAULT_BATCH_SIZE
        self._args = args
        self._backend: Any = None

    def submit(self, number: int, request: ChatRequest, key: str = "") -> None:
        if self._backend is None:
            self._backend = self._load()
        self._backend.submit(number, request, key)

    def collect(self, seconds: float | None = None) -> list[tuple[int, Reply]]:
        return [] if self._backend is None else self._backend.collect(seconds)

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()

    def _load(self) -> Any:
        from qwen3_jax.cli import inputs
        from qwen3_jax.generation import Engine
        from qwen3_jax.generation.backend import EngineBackend

        args = self._args
        mesh = model_options.make_mesh(None if args.mesh is None else inputs.read_mesh(args.mesh))
        with doing("loading weights"):
            model, tokenizer = model_options.load_model(args, mesh)
            speculation = model_options.speculation_of(args, model, mesh)
        engine = Engine(model, rows=self.slots, speculation=speculation, cache_type=args.cache_type)
        return EngineBackend(engine, tokenizer, self.fingerprint, _constraints(engine, tokenizer))


def _constraints(engine: Any, tokenizer: Any) -> Callable[[Any], Any]:
    """A function that makes the constraint of a JSON Schema; each schema is compiled once."""
    from qwen3_jax.generation import end_tokens

    made: dict[str, Any] = {}

    def constrain(schema: Any) -> Any:
        from qwen3_jax.serving.grammars import Grammars
        from qwen3_jax.serving.objects import ResponseFormat

        text = json.dumps(schema, sort_keys=True)
        if text not in made:
            grammars = Grammars(tokenizer, end_tokens(engine.model, tokenizer, chat=True))
            wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
            made[text] = grammars.of(ResponseFormat.model_validate(wanted), [], several=False)
        return made[text]

    return constrain


def show_finished(done: Finished, limits: Limits) -> None:
    """Say on standard error what there is."""
    counts, cost, asking = done.counts, done.cost, done.asking
    left_out = ", ".join(f"{count:,} {name}" for name, count in counts.rejected.items())
    print(
        f"{counts.made:,} records of {counts.read:,} in {done.records}"
        + (f"; left out: {left_out}" if left_out else ""),
        file=sys.stderr,
    )
    if asking is not None:
        asked = f"{asking.sent:,} requests answered, {asking.replayed:,} recorded before, {asking.retries:,} retries"
        print(asked, file=sys.stderr)
    if not cost:
        return
    usd = "" if cost["usd"] is None else f", ${cost['usd']}"
    print(
        f"so far {cost['prompt_tokens']:,} prompt and {cost['completion_tokens']:,} answer tokens{usd}; cost.json has more",
        file=sys.stderr,
    )
    doubtful = cost["without_counts"]
    if doubtful["requests"]:
        most = doubtful["prompt_tokens_at_most"] + doubtful["completion_tokens_at_most"]
        print(f"{doubtful['requests']:,} requests brought no counts, at most {most:,} tokens", file=sys.stderr)
    if asking is not None and asking.over_budget:
        print(f"stopped: {asking.over_budget}; a larger budget resumes from here", file=sys.stderr)


def _show_estimate(found: Estimate) -> None:
    from rich.console import Console
    from rich.table import Table

    def row(name: str, of: Interval, form: Callable[[float], str]) -> tuple[str, str, str, str]:
        return name, form(of.low), form(of.middle), form(of.high)

    def whole(value: float) -> str:
        return f"{value:,.0f}"

    table = Table(f"{found.sampled:,} of {found.of_units:,} {found.units} asked", "95%: from", "estimate", "to")
    if len(found.purposes) > 1:
        for name, of in found.purposes.items():
            table.add_row(*row(f"{name}: requests", of.requests, whole))
            table.add_row(*row(f"{name}: prompt tokens", of.prompt, whole))
            table.add_row(*row(f"{name}: completion tokens", of.completion, whole))
    table.add_row(*row("requests", found.requests, whole))
    for name in ("prompt", "completion", "total"):
        table.add_row(*row(f"{name} tokens", getattr(found, name), whole))
    if found.usd is not None:
        table.add_row(*row("dollars", found.usd, lambda value: f"{value:,.4f}"))
    Console().print(table)
    for name, of in found.purposes.items():
        if of.left_out.middle:
            print(
                f"{name}: nothing is asked about {whole(of.left_out.middle)} of {found.records:,} records "
                f"({whole(of.left_out.low)} to {whole(of.left_out.high)}), which verification, rules or labels settle before"
            )
    if found.doubtful is not None:
        print(
            f"replies that break off may cost {whole(found.doubtful.middle)} tokens more, at most "
            f"({whole(found.doubtful.low)} to {whole(found.doubtful.high)})"
        )
    for name, share in found.failed.items():
        print(f"{share:.1%} of the requests {name}")
    if found.asking.over_budget:
        print(f"the sample is smaller than asked for: {found.asking.over_budget}")


def _decimal(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a decimal number of 0 or more")
    return value
