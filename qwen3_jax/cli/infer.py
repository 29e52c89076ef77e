"""Answer prompts with a Qwen3 model, under a thinking budget.

    python infer.py --model Qwen/Qwen3-0.6B --prompt "What is 7 * 8?" --thinking-budget 256
    python infer.py --model DIR --chat
    echo "Name three colours." | python infer.py --model DIR --json
    python infer.py --model DIR --messages questions.jsonl --output answers.jsonl --batch-size 16
    python infer.py --model Qwen/Qwen3-8B --mesh tensor=4 --dtype bfloat16 --prompt "Hello"
    python infer.py --model Qwen/Qwen3-8B --mesh tensor=4 --plan v5e:2x2 --batch-size 16 --context 8192

    python infer.py --model DIR --messages questions.jsonl --output answers.jsonl --resume    # what an interruption left

The answer goes to standard output; a timing summary goes to standard error. On a terminal the answer streams, its thinking
dimmed. Elsewhere the thinking goes to standard error, so that a pipe or file receives only the answer.

`--plan` generates nothing: it compiles the decode step for TPUs or GPUs that need not be present, and reports memory, traffic
and a bound on speed. No weights are read.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qwen3_jax.cli import background, model_options
from qwen3_jax.cli.arguments import Parser, local_target, whole_number
from qwen3_jax.cli.exit_codes import INTERRUPTED, guarded
from qwen3_jax.errors import UserError, warn
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.generation import Engine, Sampling
    from qwen3_jax.text import Tokenizer

DEFAULT_BATCH_SIZE = 8
DEFAULT_CONTEXT = 4096


def main(argv: list[str] | None = None, prog: str = "qwen3 infer") -> int:
    """Run `infer`; return the exit code."""
    parser = _parser(prog)
    args = parser.parse_args(argv)
    _check_together(parser, args)
    return guarded(prog, lambda: _run_plan(args) if args.plan is not None else _run(args))


def _parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    model_options.add_model(parser)
    add = parser.add_argument_group(
        "input (one of these; otherwise the prompt is read from standard input)"
    ).add_argument
    add("--prompt", metavar="TEXT", help="the user's message")
    add(
        "--messages", type=Path, metavar="FILE",
        help="JSON: a list of messages, answered once. JSONL: batch mode, one conversation per line, as a list of "
        'messages, {"messages": [...]} or {"prompt": TEXT}, with an optional "id"; writes one line of JSON per answer',
    )  # fmt: skip
    add("--chat", action="store_true", help="a conversation; /help there lists the commands")
    add("--raw", action="store_true", help="continue the text of the prompt as it is, without the chat template")
    add("--system", metavar="TEXT", help="system message")
    add(
        "--tools",
        type=Path,
        metavar="FILE",
        help="JSON list of functions that may be called, in OpenAI's form",
    )

    add = parser.add_argument_group("thinking").add_argument
    add(
        "--thinking-budget",
        type=whole_number(0),
        metavar="N",
        help="most thinking tokens; 0 for no thinking (default: no limit)",
    )
    add("--no-thinking", action="store_true", help="answer without thinking")
    _add_sampling(parser)
    model_options.add_speed(parser)
    _add_output(parser)
    model_options.add_devices(parser)
    add = parser.add_argument_group("planning (with --mesh, --dtype, --quantize, --batch-size and --json)").add_argument
    add(
        "--plan",
        metavar="TOPOLOGY",
        help="compile the decode step for this TPU slice (v5e:2x2) or these GPUs (h100:8) and report",
    )
    add("--search", action="store_true", help="with --plan: try other meshes of all devices and rank them")
    add("--slices", type=whole_number(1), metavar="N", help="number of equal TPU slices (default 1)")
    add(
        "--context", type=whole_number(1), metavar="N",
        help=f"slots of the cache in each row, all attended to (default {DEFAULT_CONTEXT})",
    )  # fmt: skip
    return parser


def _add_sampling(parser: Parser) -> None:
    add = parser.add_argument_group("sampling (defaults: the checkpoint's generation_config.json)").add_argument
    add("--max-new-tokens", type=whole_number(1), metavar="N", help="most tokens of an answer, thinking included")
    model_options.add_sampling(add)
    add("--seed", type=int, metavar="N", help="makes the answer reproducible")
    add("--stop", action="append", default=[], metavar="TEXT", help="text that ends the answer; may be repeated")
    add(
        "--stop-token-ids", type=_token_ids, default=(), metavar="ID,...",
        help="tokens that end the answer, besides the model's own end tokens",
    )  # fmt: skip
    add("--n", type=whole_number(1), default=1, metavar="N", help="answers per prompt")
    add(
        "--logprobs",
        type=int,
        metavar="N",
        help="report log probabilities and N alternatives (with --json or in batch mode)",
    )


def _add_output(parser: Parser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--stream", action=argparse.BooleanOptionalAction,
        help="print the answer while it is generated (default: if standard output is a terminal)",
    )  # fmt: skip
    add(
        "--json", action="store_true",
        help="one JSON object per answer: text, thinking, content, tool_calls, token_ids, forced_mask, logprobs, "
        "finish_reason, usage, timing",
    )  # fmt: skip
    add(
        "--output",
        type=local_target,
        metavar="FILE",
        help="batch mode: write the answers to this file, each as soon as it is finished",
    )
    add("--overwrite", action="store_true", help="replace the --output file if it exists")
    add(
        "--resume", action="store_true", help="keep the answers that the --output file has, and add those that it lacks"
    )
    add(
        "--batch-size", type=whole_number(1), metavar="N",
        help=f"batch mode and --plan: answers decoded together (default {DEFAULT_BATCH_SIZE})",
    )  # fmt: skip


def _check_together(parser: Parser, args: argparse.Namespace) -> None:
    """Refuse, by name, options that exclude each other or would have no effect."""
    given = {name for name, value in vars(args).items() if value not in (None, False, [], parser.get_default(name))}
    batch = _is_batch(args)

    def refuse(option: str, others: tuple[str, ...], why: str = "leave one of them out") -> None:
        for other in others:
            if option in given and other in given:
                names = [f"--{name.replace('_', '-')}" for name in (option, other)]
                parser.error(f"{names[0]} does not go with {names[1]}: {why}")

    if args.plan is not None:
        planning = {"model", "hf_overrides", "mesh", "dtype", "batch_size", "json", "quantize"}
        planning |= {"plan", "slices", "search", "context"}
        if args.search and args.mesh is not None:
            parser.error("--search does not go with --mesh: it tries all meshes")
        for option in sorted(given - planning):
            parser.error(f"--{option.replace('_', '-')} does not go with --plan, which generates nothing")
        return
    for option in ("slices", "search", "context"):
        if option in given:
            parser.error(f"--{option} is about planning: it needs --plan TOPOLOGY")
    refuse("prompt", ("messages", "chat"))
    refuse("lookup", ("draft",))
    refuse("messages", ("chat",))
    refuse("raw", ("system", "tools", "chat"), "it skips the chat template")
    refuse("no_thinking", ("thinking_budget",))
    refuse("overwrite", ("resume",))
    one = "a chat shows one answer at a time"
    refuse("chat", ("json", "n", "logprobs", "output", "overwrite", "resume", "batch_size"), one)
    if not batch:
        for option in ("output", "overwrite", "resume", "batch_size"):
            if option in given:
                parser.error(f"--{option.replace('_', '-')} is for batch mode, --messages FILE.jsonl")
    for option in ("overwrite", "resume"):
        if option in given and "output" not in given:
            parser.error(f"--{option} needs --output")
    if args.stream:
        whole = "it prints whole answers"
        for option, shown in (("json", "--json"), ("n", "--n"), ("output", "--output")):
            if option in given:
                parser.error(f"--stream does not go with {shown}: {whole}")
        if batch:
            parser.error(f"--stream does not go with batch mode: {whole}")
    if "logprobs" in given and not (args.json or batch):
        parser.error("--logprobs is shown only with --json or in batch mode")


def _token_ids(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of token ids, as 151643,151645")
    return tuple(map(int, parts))


def _is_batch(args: argparse.Namespace) -> bool:
    return args.messages is not None and args.messages.suffix == ".jsonl"


def _run(args: argparse.Namespace) -> int:
    from qwen3_jax.cli import inputs

    batch = _is_batch(args)
    if batch:
        prompts = inputs.read_jsonl(args.messages, args.system, args.raw)
        if args.output is not None:
            inputs.check_output(args.output, args.overwrite or args.resume)
    elif args.chat:
        prompts = []
    else:
        prompts = [inputs.read_one(args.prompt, args.messages, args.system, args.raw)]
    tools = None if args.tools is None else inputs.read_tools(args.tools)
    axes = None if args.mesh is None else inputs.read_mesh(args.mesh)
    with doing("loading weights"):
        loaded = background.call(lambda: _load(args, axes, batch))
    return background.leave(_answer(args, prompts, tools, loaded))


class _Loaded(NamedTuple):
    engine: "Engine"
    tokenizer: "Tokenizer"
    sampling: "Sampling"
    process: int


def _load(args: argparse.Namespace, axes: dict[str, int] | None, batch: bool) -> _Loaded:
    """Import JAX, load the model and make an engine; in the background thread, as all that follows."""
    with doing("starting JAX"):
        import jax

        from qwen3_jax.generation import Engine

        mesh = model_options.make_mesh(axes)
    sampling = _sampling(args)
    if args.chat and jax.process_count() > 1:
        raise UserError("--chat needs a single process; this run has several.")
    model, tokenizer = model_options.load_model(args, mesh)
    rows = (args.batch_size or DEFAULT_BATCH_SIZE) if batch else min(args.n, DEFAULT_BATCH_SIZE)
    speculation = model_options.speculation_of(args, model, mesh)
    engine = Engine(model, rows=rows, speculation=speculation, cache_type=args.cache_type, offline=batch)
    return _Loaded(engine, tokenizer, sampling, jax.process_index())


def _answer(args: argparse.Namespace, prompts: list[Any], tools: list[dict[str, Any]] | None, loaded: _Loaded) -> int:
    from qwen3_jax.cli.answers import answer_batch, answer_one

    options: dict[str, Any] = dict(
        sampling=loaded.sampling,
        max_new_tokens=args.max_new_tokens,
        enable_thinking=False if args.no_thinking else None,
        thinking_budget=args.thinking_budget,
        tools=tools,
    )
    engine, tokenizer, shown = loaded.engine, loaded.tokenizer, loaded.process == 0
    if args.chat:
        from qwen3_jax.cli.chat import Chat

        return Chat(engine, tokenizer, args.system, options, stream=args.stream is not False).run()
    stream = sys.stdout.isatty() and not args.json and args.n == 1 if args.stream is None else args.stream
    if _is_batch(args):
        done = answer_batch(engine, tokenizer, prompts, options, args.output, shown, resume=args.resume)
    else:
        done = answer_one(engine, tokenizer, prompts[0], options, as_json=args.json, stream=stream, shown=shown)
    return 0 if done else INTERRUPTED


def _run_plan(args: argparse.Namespace) -> int:
    with doing(f"compiling for {args.plan}"):
        text = background.call(lambda: _plan(args))
    print(text)
    return background.leave(0)


def _plan(args: argparse.Namespace) -> str:
    """Return the report on the decode step; in the background thread, as it compiles for long."""
    from qwen3_jax.cli import inputs
    from qwen3_jax.cli.plan import without_accelerators

    axes = {"tensor": -1} if args.mesh is None else inputs.read_mesh(args.mesh)
    without_accelerators()
    import sharding
    from qwen3_jax import planner
    from qwen3_jax.kernels import check_weight_type
    from qwen3_jax.planner.architecture import checkpoint_architecture

    config = checkpoint_architecture(args.model, args.hf_overrides)
    topology = planner.topology(args.plan, args.slices or 1)
    what: dict[str, Any] = dict(
        rows=args.batch_size or DEFAULT_BATCH_SIZE,
        context=args.context or min(DEFAULT_CONTEXT, config.max_position_embeddings),
        dtype="bfloat16" if args.dtype == "auto" else args.dtype,
        name=args.model,
        quantize=args.quantize,
    )
    check_weight_type(args.quantize)
    if args.search:
        from qwen3_jax.planner import decode_search

        ranking = decode_search.search_decoding(config, topology, **what)
        if not args.json:
            return decode_search.table(ranking, topology)
        for refused in ranking.failed:
            warn(f"does not compile: {refused}")
        return "\n".join(json.dumps(plan.json()) for plan in ranking.plans)
    planned = planner.plan_decoding(config, topology, sharding.MeshConfig(**axes), **what)
    return json.dumps(planned.json()) if args.json else planned.text()


def _sampling(args: argparse.Namespace) -> "Sampling":
    from qwen3_jax.generation import Sampling

    fields: dict[str, Any] = {name: getattr(args, name) for name in ("seed", "logprobs", "n")}
    fields |= model_options.sampling_fields(args)
    return Sampling(stop=tuple(args.stop), stop_token_ids=args.stop_token_ids, **fields)
