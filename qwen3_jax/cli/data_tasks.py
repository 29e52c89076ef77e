"""`qwen3 data tasks`: prompts of general reinforcement learning (section 4.4 of the report), each with its verifier.

qwen3 data tasks --list
qwen3 data tasks --output general.jsonl --count 4000 --seed 1
qwen3 data tasks --output tools.jsonl --count 500 --task tool_one tool_several tool_ask
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter

from qwen3_jax.cli.arguments import Parser, local_target, whole_number
from qwen3_jax.errors import UserError

HELP = "make prompts of general reinforcement learning, whose answers verifiers judge"
_SHOWN = 300  # characters of an example


def add_tasks(parser: Parser) -> None:
    """Add the options of `data tasks`."""
    add = parser.add_argument
    add("--output", type=local_target, metavar="FILE.jsonl", help="the file to write")
    add(
        "--count", type=whole_number(1), default=1000, metavar="N", help="prompts, of all tasks in turn (default: 1000)"
    )
    add("--seed", type=whole_number(0), default=0, metavar="S", help="of all that is drawn (default: 0)")
    add("--task", nargs="+", default=[], metavar="NAME", help="these tasks alone (default: all)")
    add(
        "--list",
        action="store_true",
        help="print the tasks, each with one problem and a right answer, and write nothing",
    )
    parser.set_defaults(run=_tasks)


def _tasks(args: argparse.Namespace) -> int:
    from qwen3_jax.paths import replace_file
    from qwen3_jax.posttraining import general_tasks

    if args.list:
        if args.output is not None:
            raise UserError("--list writes no file; leave --output out, or --list.")
        for name in args.task or general_tasks.names():
            print(_example(name, args.seed), flush=True)
        return 0
    if args.output is None:
        raise UserError("give --output, the file to write, or --list.")
    counts: Counter[str] = Counter()
    lines = []
    for record in general_tasks.records(args.count, args.seed, args.task):
        counts[record["task"]] += 1
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    replace_file(args.output, "".join(lines))
    print(f"{len(lines):,} prompts of {len(counts)} tasks in {args.output}", file=sys.stderr)
    return 0


def _example(name: str, seed: int) -> str:
    """A task and its first problem, as text."""
    from qwen3_jax.posttraining import general_tasks

    task = general_tasks.find(name)
    lines = [f"{name}: {task.about}"]
    if task.missing:
        return f"{lines[0]}\n  ({task.missing})\n"
    problem = next(task.problems(seed))
    lines += [f"  {message['role']}: {_short(message.get('content', ''))}" for message in problem.messages]
    return "\n".join([*lines, f"  right: {_short(problem.right)}", ""])


def _short(text: str) -> str:
    text = text.replace("\n", "\n    ")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} [...] {text[-_SHOWN // 2 :]}"
