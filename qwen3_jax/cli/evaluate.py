"""Measure a model on tasks, in one stream of requests for all tasks, modes, thinking budgets and samples.

    qwen3 eval --model DIR --task running_sum --thinking-budget 0 8 16 32 none --output results
    qwen3 eval --model Qwen/Qwen3-0.6B --task gsm8k math_500 --data gsm8k=FOLDER math_500=FILE --mode thinking non-thinking
    qwen3 eval --model http://localhost:8000/v1 --task aime24 --data aime24=FOLDER --samples 64

    qwen3 eval tasks                    # their names
    qwen3 eval compare A B              # two runs, question by question
    qwen3 eval report results           # draw the page of a run again, finished or not

The same command continues a run that was interrupted. docs/evaluation.md has the output and the metrics.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3_jax.cli import background, endpoint_options, model_options
from qwen3_jax.cli.arguments import Parser, local_target, number_or_none, whole_number
from qwen3_jax.cli.exit_codes import INTERRUPTED, guarded
from qwen3_jax.errors import UserError
from qwen3_jax.progress import clear_status, doing, progress_bar

if TYPE_CHECKING:
    from qwen3_jax.evaluation.plan import EvalConfig, Plan
    from qwen3_jax.evaluation.reply import Source
    from qwen3_jax.evaluation.samples import SampleFile

DEFAULT_BATCH_SIZE = 32
DEFAULT_RETRIES, DEFAULT_TIMEOUT = 6, 3600
_LINE_SECONDS = 30.0  # between two lines of progress where no bar is drawn


def main(argv: list[str] | None = None, prog: str = "qwen3 eval") -> int:
    """Run `eval`; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    others = {"compare": _compare, "report": _report, "tasks": _tasks}
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:], f"{prog} {argv[0]}")
    args = _parser(prog).parse_args(argv)
    return guarded(prog, lambda: _run(args))


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    model_options.add_model(parser, servers=True)
    add = parser.add_argument_group("what is asked").add_argument
    add("--task", nargs="+", required=True, metavar="NAME", help="tasks: names (`qwen3 eval tasks`) or YAML files")
    add("--data", nargs="+", default=[], metavar="NAME=PATH", help="file or folder with the data of a task")
    add(
        "--task-option", nargs="+", default=[], metavar="NAME.FIELD=VALUE",
        help="an option of a task, as running_sum.problems=100",
    )  # fmt: skip
    add("--limit", type=whole_number(1), metavar="N", help="the first N problems of each task")
    add("--samples", type=whole_number(1), metavar="N", help="answers to each problem (default: the task's)")
    add(
        "--mode", nargs="+", choices=["thinking", "non-thinking"],
        help="with thinking, without, or both (default: thinking, where the model can)",
    )  # fmt: skip
    add(
        "--thinking-budget", nargs="+", type=number_or_none(0), metavar="N",
        help="thinking budgets, none for no limit: accuracy is measured under each (default: none)",
    )  # fmt: skip
    add("--output", type=local_target, metavar="DIR", help="folder of the run (default: eval-MODEL)")
    add("--json", action="store_true", help="print the results as one JSON object")
    add = parser.add_argument_group(
        "sampling (defaults: the task's, else those of the report for each mode)"
    ).add_argument
    add("--max-new-tokens", type=whole_number(1), metavar="N", help="most tokens of an answer, thinking included")
    model_options.add_sampling(add)
    add("--seed", type=whole_number(0), default=0, metavar="N", help="of all samples (default: 0)")
    model_options.add_speed(parser)
    add = parser.add_argument_group("batches").add_argument
    add(
        "--batch-size", type=whole_number(1), metavar="N",
        help=f"answers decoded together (default {DEFAULT_BATCH_SIZE}); changes no answer",
    )  # fmt: skip
    add("--verifier-threads", type=whole_number(1), metavar="N", help="answers judged at a time (default: one a core)")
    model_options.add_devices(parser)
    endpoint_options.add_endpoint(parser, retries=DEFAULT_RETRIES, timeout=DEFAULT_TIMEOUT)
    return parser


def _config(args: argparse.Namespace) -> "EvalConfig":
    from qwen3_jax.evaluation.plan import EvalConfig

    budgets = (None,) if args.thinking_budget is None else tuple(args.thinking_budget)
    return EvalConfig(
        None if args.mode is None else tuple(args.mode), budgets, args.samples, args.limit, args.max_new_tokens,
        model_options.sampling_fields(args), args.seed,
    )  # fmt: skip


def _pairs(texts: list[str], option: str, form: str) -> dict[str, str]:
    """The values of NAME=VALUE options, by name."""
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UserError(f"{option} {text!r} is not {form}.")
        if name in pairs:
            raise UserError(f"{option} gives {name!r} twice.")
        pairs[name] = value
    return pairs


def _problems(args: argparse.Namespace) -> list[tuple[Any, Any]]:
    """The tasks and their problems, read with their data and options."""
    from qwen3_jax.evaluation.tasks import find, load

    data = _pairs(args.data, "--data", "NAME=PATH")
    options: dict[str, dict[str, str]] = {}
    for name, value in _pairs(args.task_option, "--task-option", "NAME.FIELD=VALUE").items():
        owner, _, field = name.rpartition(".")
        if not owner or not field:
            raise UserError(f"--task-option {name!r} is not NAME.FIELD=VALUE.")
        options.setdefault(owner, {})[field] = value
    found = {name: find(name) for name in args.task}
    if len(found) < len(args.task):
        raise UserError("--task names a task twice.")
    by_name = found | {task.name: task for task in found.values()}
    for option, given in (("--data", data), ("--task-option", options)):
        for name in given:
            if name not in by_name:
                raise UserError(f"{option} names {name!r}, which is no task of this run; they are {', '.join(found)}.")
    out = []
    for name, task in found.items():
        path = data.get(name, data.get(task.name))
        chosen = options.get(name, options.get(task.name, {}))
        out.append((task, load(task, None if path is None else Path(path).expanduser(), chosen)))
    return out


class _Prepared(NamedTuple):
    plan: "Plan"
    source: "Source | None"
    samples: "SampleFile"


def _run(args: argparse.Namespace) -> int:
    from qwen3_jax.cli import inputs

    served = endpoint_options.check_model_options(args)
    axes = None if args.mesh is None else inputs.read_mesh(args.mesh)
    with doing("starting"):
        prepared = background.call(lambda: _prepare(args, axes, served))
    with prepared.samples:
        code = _evaluate(args, prepared)
    return background.leave(code)


def _prepare(args: argparse.Namespace, axes: dict[str, int] | None, served: bool) -> _Prepared:
    """Read and check everything that takes no model first; then load it, unless all samples are there."""
    from qwen3_jax.evaluation.plan import Plan
    from qwen3_jax.evaluation.runner import check_verifiers
    from qwen3_jax.evaluation.samples import SampleFile

    config = _config(args)
    with doing("reading tasks"):
        tasks = _problems(args)
    if served:
        source: Any = _endpoint(args)
        identity, thinks = source.describe(), None
    else:
        source = None
        identity, thinks = _checkpoint(args, axes)
    plan = Plan.of(tasks, config, thinks=thinks, model=args.model)
    with doing("starting the verifiers"):
        check_verifiers(plan)
    name = args.model if source is None else source.model
    output = args.output or Path(f"eval-{name.rstrip('/').rpartition('/')[2] or 'model'}")
    samples = SampleFile(output, plan, {"model": identity, **plan.settings()})
    try:
        if source is None and len(samples.done) < len(plan):
            source = _engine(args, axes, identity)
    except BaseException:
        samples.close()
        raise
    return _Prepared(plan, source, samples)


def _endpoint(args: argparse.Namespace) -> Any:
    from qwen3_jax.evaluation.endpoint_source import EndpointSource

    retries = DEFAULT_RETRIES if args.retries is None else args.retries
    return EndpointSource(endpoint_options.open_endpoint(args, timeout=DEFAULT_TIMEOUT), retries=retries)


def _checkpoint(args: argparse.Namespace, axes: dict[str, int] | None) -> tuple[dict[str, Any], bool]:
    """What determines the answers of a checkpoint, and whether its tokenizer knows thinking; weights are not read."""
    with doing("starting JAX"):
        import jax

        from qwen3_jax.checkpoint.identity import identity
        from qwen3_jax.checkpoint.small_files import load_tokenizer
        from qwen3_jax.kernels.platform import default_compute_dtype

        model_options.make_mesh(axes)  # processes of a run meet here
    if jax.process_count() > 1:
        raise UserError("eval needs a single process; serve the model with `qwen3 serve`, and evaluate its address.")
    folder, own, adapter = model_options.folders(args)
    tokenizer = (load_tokenizer(own) if own is not None else None) or load_tokenizer(folder)
    if tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer files (tokenizer.json); text cannot be read or written.")
    what = {
        "checkpoint": identity(folder),
        "dtype": str(default_compute_dtype()) if args.dtype == "auto" else args.dtype,
        "quantize": args.quantize, "cache_type": args.cache_type, "hf_overrides": args.hf_overrides,
    }  # fmt: skip
    if adapter is not None:
        what["adapter"] = identity(adapter)
    return what, tokenizer.supports_thinking


def _engine(args: argparse.Namespace, axes: dict[str, int] | None, identity: dict[str, Any]) -> Any:
    from qwen3_jax.evaluation.engine_source import EngineSource
    from qwen3_jax.generation import Engine

    mesh = model_options.make_mesh(axes)
    with doing("loading weights"):
        model, tokenizer = model_options.load_model(args, mesh)
        speculation = model_options.speculation_of(args, model, mesh)
    engine = Engine(
        model, rows=args.batch_size or DEFAULT_BATCH_SIZE, speculation=speculation, cache_type=args.cache_type,
        offline=True,
    )  # fmt: skip
    return EngineSource(engine, tokenizer, identity)


def _evaluate(args: argparse.Namespace, prepared: _Prepared) -> int:
    """Ask, judge and write; print the results, or how far it got."""
    plan, source, samples = prepared
    total, before = len(plan), len(samples.done)
    if source is not None and before < total:
        with background.ctrl_c() as stopped:
            _ask(args, prepared, total, stopped)
            if stopped():
                background.settle()  # what has been answered is judged and kept
                samples.close()
                clear_status()
                more = "the same command continues"
                print(
                    f"stopped: {len(samples.done)} of {total} samples are in {samples.folder}; {more}.", file=sys.stderr
                )
                return INTERRUPTED
    samples.sort()
    _show(samples.folder, args.json)
    return 0


def _ask(args: argparse.Namespace, prepared: _Prepared, total: int, stopped: Any) -> None:
    from qwen3_jax.evaluation.runner import run

    plan, source, samples = prepared
    assert source is not None
    before = len(samples.done)
    right, count, started, shown = 0, 0, time.monotonic(), time.monotonic()
    try:
        with progress_bar("evaluating", total, done=before) as bar:
            stream = run(plan, source, samples, threads=args.verifier_threads)
            for sample in background.iterate(stream, stopped):
                count += 1
                right += sample["verdict"]["status"] == "right"
                bar.advance(note=f"{right / count:.0%} right")
                if not bar.visible and time.monotonic() - shown > _LINE_SECONDS:
                    shown = time.monotonic()
                    left = (shown - started) / count * (total - before - count)
                    text = f"{before + count} of {total} samples, {right / count:.0%} right, about {left / 60:.0f} min left"
                    print(text, file=sys.stderr, flush=True)
    except UserError as error:
        where = f"{len(samples.done)} of {total} samples are in {samples.folder}, and the same command continues"
        raise UserError(f"{str(error).rstrip('.')}; {where}.") from None


def _show(folder: Path, as_json: bool) -> None:
    """Write results and report; print the table, or the results as JSON."""
    from qwen3_jax.evaluation import tables
    from qwen3_jax.evaluation.report import write_report
    from qwen3_jax.evaluation.results import write_results

    with doing("drawing"):
        out = write_results(folder)
        page = write_report(folder, out)
    if as_json:
        print(json.dumps(out, ensure_ascii=False))
        return
    print(tables.results(out["rows"], f"{folder}: {out['samples']} samples"))
    for task, ids in out["too_long"].items():
        listed = ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
        print(f"{task}: {len(ids)} problems leave no room in the context and count as wrong: {listed}")
    print(page)


def _report(argv: list[str], prog: str) -> int:
    parser = Parser(prog=prog, description="Compute and draw the results of a run again, finished or not.")
    parser.add_argument("run", type=local_target, help="folder of `qwen3 eval --output`")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")
    args = parser.parse_args(argv)

    def work() -> int:
        _show(args.run, args.json)
        return 0

    return guarded(prog, work)


def _compare(argv: list[str], prog: str) -> int:
    parser = Parser(
        prog=prog, description="Differences of two runs over the questions that both have, with their intervals."
    )
    parser.add_argument("first", type=local_target, help="folder of a run")
    parser.add_argument("second", type=local_target, help="folder of another one")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each task, mode and budget")
    args = parser.parse_args(argv)

    def work() -> int:
        from qwen3_jax.evaluation import tables
        from qwen3_jax.evaluation.comparison import compare

        rows = compare(args.first, args.second)
        if args.json:
            print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        else:
            print(tables.comparison(rows, str(args.first), str(args.second)))
        return 0

    return guarded(prog, work)


def _tasks(argv: list[str], prog: str) -> int:
    Parser(prog=prog, description="List the tasks.").parse_args(argv)

    def work() -> int:
        from qwen3_jax.evaluation.tasks import find, names

        width = max(map(len, names()))
        print("\n".join(f"{name:<{width}}  {find(name).about}" for name in names()))
        return 0

    return guarded(prog, work)
