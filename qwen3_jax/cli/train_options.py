"""The command lines of `train` and `plan`: `--config`, every key of `TrainConfig`, and options of their own."""

from __future__ import annotations

import functools
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen3_jax.cli import compile_cache
from qwen3_jax.cli.configuration import ConfigurationParser, configuration_parser
from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig

_PLANNING = ("slices", "stage", "search", "json")
_PROCESSES = ("coordinator", "process_count", "process_index")


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Attributes:
        topology: a TPU slice ("v5p:8x8x8") or nodes of GPUs ("h100:8x4") by name.
        slices: number of equal slices.
        stage: of a run with stages, the one to plan.
        search: try other meshes, remat policies and micro-batches.
        json: print JSON.
    """

    topology: str
    slices: int = 1
    stage: str | None = None
    search: bool = False
    json: bool = False


@dataclass(frozen=True)
class TrainCommand:
    """A parsed command line of `train`.

    Attributes:
        config: the run.
        plan: where nothing is trained.
        process: arguments of `sharding.initialize`.
        compile_cache: see `cli.compile_cache`.
    """

    config: TrainConfig
    plan: PlanOptions | None
    process: dict[str, Any]
    compile_cache: str | None


def parse_train(argv: Sequence[str], prog: str, about: str = "") -> TrainCommand:
    """Parse the command line of `train`.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, a value of the wrong type, or an option of
            planning without --plan.
    """
    parser = _parser(prog, about)
    _add_planning(parser, "plan", "with --plan: ")
    add = functools.partial(parser.add_argument_group("one of several processes").add_argument, default=SUPPRESS)
    add("--coordinator", metavar="HOST:PORT", help="of process 0; schedulers announce all three")
    add("--process-count", metavar="N", type=int, help="processes in the run")
    add("--process-index", metavar="I", type=int, help="this process, from 0")
    group = parser.add_argument_group("compiled programs")
    compile_cache.add_option(functools.partial(group.add_argument, default=SUPPRESS))
    values = parser.parse_args(_not_empty(argv))
    planning = [name for name in _PLANNING if name in values]
    if planning and "plan" not in values:
        raise UserError(f"--{planning[0]} is about planning: it needs --plan TOPOLOGY.")
    if "plan" in values and "compile_cache" in values:
        raise UserError(
            "--compile-cache does not go with --plan: programs for absent devices are compiled anew each time."
        )
    plan = _plan_options(values.plan, values) if "plan" in values else None
    process = {name: values.get(name) for name in _PROCESSES}
    return TrainCommand(parser.instance(values), plan, process, values.get("compile_cache"))


def parse_plan(argv: Sequence[str], prog: str, about: str = "") -> tuple[TrainConfig, PlanOptions]:
    """Parse the command line of `plan`.

    Raises:
        UserError: as `parse_train`, or there is no topology.
    """
    parser = _parser(prog, about)
    _add_planning(parser, "topology", "")
    values = parser.parse_args(_not_empty(argv))
    if "topology" not in values:
        raise UserError("give --topology NAME, a TPU slice such as v5e:2x2 or v5p:8x8x8, or GPUs such as h100:8.")
    return parser.instance(values), _plan_options(values.topology, values)


def parse_config(argv: Sequence[str], prog: str = "train.py") -> TrainConfig:
    """Return the configuration of a command line of `train`, whatever its other options.

    Raises:
        UserError: as `parse_train`.
    """
    return parse_train(argv, prog).config


def _parser(prog: str, about: str) -> ConfigurationParser:
    from qwen3_jax.training.config import TrainConfig  # imports JAX

    return configuration_parser(TrainConfig, prog, about)


def _add_planning(parser: ConfigurationParser, topology: str, condition: str) -> None:
    # Options that are not given are absent from the result, and from what --print-config writes.
    add = functools.partial(parser.add_argument_group("planning").add_argument, default=SUPPRESS)
    add(
        f"--{topology}", metavar="TOPOLOGY",
        help="compile the step for this TPU slice, generation and sides in chips (v5e:2x2, v6e:8x8, v5p:8x8x8), or these GPUs "
        "(h100:8, one node; h100:8x4, four nodes of 8; h200, b200, a100, l4), and report; nothing is trained",
    )  # fmt: skip
    add("--slices", metavar="N", type=int, help=f"{condition}equal TPU slices, joined by the data-centre network")
    add("--stage", metavar="NAME", help=f"{condition}this stage of a run with stages")
    add("--search", action="store_true", help=f"{condition}try other meshes, remat and micro-batches; rank what fits")
    add("--json", action="store_true", help=f"{condition}print one JSON object; with --search one a line, best first")


def _plan_options(topology: str, values: Any) -> PlanOptions:
    return PlanOptions(topology, **{name: values[name] for name in _PLANNING if name in values})


def _not_empty(argv: Sequence[str]) -> list[str]:
    if not argv:
        raise UserError("give --config FILE (configs/quickstart.yaml needs no download), or --help.")
    return list(argv)
