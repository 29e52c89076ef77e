"""Train a Qwen3 model from a configuration file.

    python train.py --config configs/quickstart.yaml
    python train.py --config configs/quickstart.yaml --run_dir runs/wide --model.config.hidden_size=192
    python train.py --config configs/scale/qwen3-8b.yaml --plan v5p:2x2x1

Every key of the file is also a flag, by its dotted name. An unknown key is refused with the nearest valid one, in the file and
on the command line. The same command resumes a run that was interrupted. `--plan` trains nothing: it compiles the step for
TPUs or GPUs that are not present (see `qwen3 plan --help`). `--profile` also writes a trace for xprof. A file with `phases` is
a recipe, a list of such runs and of commands (configs/recipe).
"""

from __future__ import annotations

import sys

from qwen3_jax.cli import background, compile_cache, plan, recipe
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.cli.lost_process import until_lost
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.progress import doing
from qwen3_jax.training.stopping import StopSignals


def main(argv: list[str] | None = None, prog: str = "qwen3 train") -> int:
    """Train; return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if recipe.file_of(words) is not None:
        return recipe.main(words, prog)

    def work() -> int:
        with StopSignals(prog) as stop:
            return background.leave(background.call(lambda: _train(words, prog, stop)))

    return guarded(prog, work)


def _train(words: list[str], prog: str, stop: StopSignals) -> int:
    """Train, in the background thread: signals are heard in the main one."""
    with doing("starting JAX"):
        command = parse_train(words, prog, __doc__ or "")
    if command.plan is not None:
        return plan.run(command.config, command.plan)
    with doing("starting JAX"):
        import sharding
        from qwen3_jax.posttraining.reinforcement import train

        sharding.initialize(**command.process)  # one process, or what the scheduler announces
        compile_cache.enable(command.compile_cache)
    return until_lost(prog, lambda: train(command.config, stop=stop), stop)
