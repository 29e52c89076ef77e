"""Plan a training run for TPUs that are not here: memory, traffic and a bound on speed, from the compiled step.

    qwen3 plan --config configs/scale/qwen3-8b.yaml --topology v5p:2x2x1
    qwen3 plan --config configs/scale/qwen3-235b-a22b.yaml --topology v5p:8x8x8 --slices 2 --json
    qwen3 plan --config configs/scale/qwen3-32b.yaml --topology v6e:8x8 --search

The same as `python train.py --config FILE --plan TOPOLOGY`. The training step is compiled, unmodified, for the named slice by
XLA and libtpu (`pip install "qwen3-jax[tpu]"`; no TPU is needed). No data, tokenizer or weights are read. Every key of the
configuration is a flag, as for `train`.

options:
  --config FILE         a training configuration
  --topology NAME       a TPU slice: generation and sides in chips (v5e:2x2, v6e:8x8, v5p:4x4x4)
  --slices N            so many equal slices, joined by the data-centre network (default 1)
  --stage NAME          of a run with stages: this one
  --search              try other meshes, remat policies and micro-batches, and rank what fits
  --json                print one JSON object (with --search: one a line, best first)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from qwen3_jax.cli.common import Parser, guarded, whole_number
from qwen3_jax.errors import UserError

FLAGS = ("plan", "slices", "stage", "search", "json")


@dataclass(frozen=True)
class Options:
    """What to plan for: a topology's name, how many slices, which stage, whether to search, and how to print."""

    topology: str
    slices: int = 1
    stage: str | None = None
    search: bool = False
    json: bool = False


def main(argv: list[str] | None = None, prog: str = "qwen3 plan") -> int:
    """Plan; return the exit code."""

    def work() -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        if "--help" in arguments or "-h" in arguments:
            print(f"usage: {prog} --config FILE --topology NAME [--slices N] [--search] [--json] [--key=value ...]\n")
            print((__doc__ or "").rstrip())
            return 0
        options, rest = take(arguments, prog, "topology")
        if options is None:
            raise UserError("give --topology NAME, a TPU slice such as v5e:2x2 or v5p:8x8x8.")
        return run(options, rest, prog)

    return guarded(prog, work)


def add_flags(parser: argparse.ArgumentParser, name: str = "plan") -> None:
    """Add the planning options to a parser."""
    parser.add_argument(
        f"--{name}", metavar="TOPOLOGY", help="compile for this TPU slice (v5p:8x8x8) and report; trains nothing"
    )
    parser.add_argument("--slices", metavar="N", help=f"with --{name}: so many equal slices", type=whole_number(1))
    parser.add_argument("--stage", metavar="NAME", help=f"with --{name}: this stage of the run")
    parser.add_argument(
        "--search", action="store_true", help=f"with --{name}: try other meshes, remat and micro-batches"
    )
    parser.add_argument("--json", action="store_true", help=f"with --{name}: print JSON")


def take(argv: Sequence[str], prog: str, name: str = "plan") -> tuple[Options | None, list[str]]:
    """Take the planning options out of a command line; return them (None where nothing is planned) and the rest.

    Raises:
        UserError: an option of planning without a topology.
    """
    parser = Parser(prog=prog, add_help=False)
    add_flags(parser, name)
    found, rest = parser.parse_known_args(list(argv))
    topology = getattr(found, name)
    if topology is None:
        for flag in ("slices", "stage", "search", "json"):
            if getattr(found, flag):
                raise UserError(f"--{flag} is about planning: it needs --{name} TOPOLOGY.")
        return None, rest
    return Options(topology, found.slices or 1, found.stage, found.search, found.json), rest


def without_accelerators() -> None:
    """Keep JAX off real devices, before it is imported: planning needs none."""
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"


def run(options: Options, argv: Sequence[str], prog: str) -> int:
    """Plan the training run that the rest of a command line configures."""
    without_accelerators()
    from qwen3_jax.cli.train import parse

    config = parse(argv, prog).stage(options.stage)
    from qwen3_jax import planner

    topology = planner.topology(options.topology, options.slices)
    if options.search:
        from qwen3_jax.planner import search

        found = search.search(config, topology)
        print(
            "\n".join(json.dumps(entry.plan.json()) for entry in found)
            if options.json
            else search.table(found, topology)
        )
        return 0
    planned = planner.plan_training(config, topology)
    print(json.dumps(planned.json()) if options.json else planned.text())
    return 0
