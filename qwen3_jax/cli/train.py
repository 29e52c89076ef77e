"""Train a Qwen3 model from a configuration file.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/quickstart.yaml --run_dir runs/wide --model.config.hidden_size=192
    python train.py --config configs/scale/qwen3-8b.yaml --plan v5p:2x2x1

Every key of the file is also a flag, by its dotted name. An unknown key is refused with the nearest valid one, wherever it
stands. The same command resumes a run that was interrupted. `--plan` trains nothing: it compiles the step for TPUs that are
not here (see `qwen3 plan --help`). `--profile` also writes a trace for xprof.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from qwen3_jax.cli import plan, processes
from qwen3_jax.cli.common import guarded
from qwen3_jax.cli.typed import HelpFormatter, TypedParser, check_file, check_name
from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from qwen3_jax.training.config import TrainConfig


def main(argv: list[str] | None = None, prog: str = "qwen3 train") -> int:
    """Train; return the exit code."""

    def work() -> int:
        options, rest = plan.take(sys.argv[1:] if argv is None else argv, prog)
        if options is not None:
            return plan.run(options, rest, prog)
        which, rest = processes.take(rest, prog)
        config = parse(rest, prog)
        import sharding
        from qwen3_jax.training.loop import train

        sharding.initialize(**which)  # one process, or what the scheduler announces
        return processes.until_lost(prog, lambda: train(config))

    return guarded(prog, work)


def _parser(prog: str) -> jsonargparse.ArgumentParser:
    """The command line: `--config`, and every key of `TrainConfig`."""
    from qwen3_jax.training.config import TrainConfig

    made = TypedParser(prog=prog, description=__doc__, formatter_class=HelpFormatter)
    made.add_argument("--config", action="config", help="a YAML file with any of the keys below; flags come after it")
    plan.add_flags(made)  # for --help; `main` has taken these and the next off the command line
    processes.add_flags(made)
    made.add_class_arguments(TrainConfig)
    return made


def parse(argv: Sequence[str], prog: str = "train.py") -> TrainConfig:
    """Return the configuration of a command line.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, or a value of the wrong type.
    """
    from qwen3_jax.training.config import TrainConfig

    argv = ["--profile=true" if word == "--profile" else word for word in argv]
    for place, word in enumerate(argv):
        if word == "--config" or word.startswith("--config="):
            path = word.partition("=")[2] or (argv[place + 1] if place + 1 < len(argv) else "")
            check_file(TrainConfig, Path(path).expanduser(), path)
    made = _parser(prog)
    if not argv:
        raise UserError("give --config FILE (configs/quickstart.yaml needs no download), or --help.")
    for word in argv:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and name not in ("config", "help", "print_config", *plan.FLAGS, *processes.FLAGS):
            check_name(TrainConfig, name.split("."), "--")
    values = vars(made.instantiate(made.parse_args(argv)))
    return TrainConfig(**{f.name: values[f.name] for f in dataclasses.fields(TrainConfig)})
