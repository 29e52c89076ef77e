"""Learning rate and batch size by experiment: a sweep, the optimum of each cell, power laws, a prediction with its interval.

    qwen3 scaling fit --config configs/sweeps/scaling-laptop.yaml
    qwen3 scaling fit --config FILE --target.config configs/pretrain/0.6b.yaml
    qwen3 scaling fit --output fits/ours --runs sweep-1.jsonl sweep-2.jsonl --target.parameters 1e9 --target.tokens 1e11

An interrupted sweep resumes; finished runs are not repeated. With --runs nothing is trained: each line of the files is a JSON
object with parameters (active, without embeddings), tokens, batch_tokens, learning_rate and loss (null: diverged).
OUTPUT/config.yaml is made for `train.py --config BASE --config OUTPUT/config.yaml`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_jax.cli import compile_cache
from qwen3_jax.cli.configuration import configuration_parser
from qwen3_jax.cli.dispatch import dispatch
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.cli.sweep_commands import training_config, write
from qwen3_jax.errors import UserError
from qwen3_jax.paths import local_path
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.sweeps.config import ScalingConfig
    from qwen3_jax.sweeps.scaling import Prediction, Scaling


def main(argv: list[str] | None = None, prog: str = "qwen3 scaling") -> int:
    """Run `scaling fit`; return the exit code."""
    commands = {"fit": (_fit_command, "sweep, or read results, and fit; fit --help lists every key")}
    return dispatch(prog, __doc__ or "", commands, argv)


def _fit_command(argv: list[str], prog: str) -> int:
    def work() -> int:
        with doing("starting JAX"):
            parsed = parse_fit(argv, prog)
        return _fit(*parsed)

    return guarded(prog, work)


def parse_fit(argv: list[str], prog: str = "qwen3 scaling fit") -> tuple[ScalingConfig, list[Path]]:
    """Return the configuration of a command line, and the files of --runs.

    Raises:
        UserError: an unknown key (with the nearest valid one), a missing file, or a value of the wrong type.
    """
    from qwen3_jax.sweeps.config import ScalingConfig

    parser = configuration_parser(ScalingConfig, prog, __doc__ or "")
    parser.add_argument("--runs", nargs="+", default=[], metavar="FILE", help="results to read instead of training")
    values = parser.parse_args(argv)
    return parser.instance(values), [Path(name).expanduser() for name in values.runs]


def _fit(config: ScalingConfig, runs: list[Path]) -> int:
    from qwen3_jax.sweeps import scaling
    from qwen3_jax.sweeps.scaling_runs import run_sweep

    if runs:
        observations = scaling.read(runs)
    else:
        if config.train is None:
            raise UserError("give train, a training configuration to sweep, or --runs, results to read.")
        models = {
            model.name: training_config(config.train, config.set | model.set, f"model {model.name!r}")
            for model in config.models
        }
        compile_cache.enable()
        observations = run_sweep(config, models)
    fit = scaling.fit(config, observations)
    target = _target(config)
    output = local_path(config.output, "output")
    try:
        prediction = None if target is None else scaling.predict(config, fit, target[0], target[1])
    except UserError:
        _write(config, fit, None, output)  # the fit is kept where only the prediction fails
        raise
    _write(config, fit, prediction, output)
    for line in _lines(config, fit, prediction):
        print(line)
    if target is not None and prediction is not None:
        file = write(output / "config.yaml", scaling.fragment(config, prediction, target[2]))
        print(f"{file}: qwen3 train --config BASE --config {file}")
    return 0


def _target(config: ScalingConfig) -> tuple[float, float, int] | None:
    """(parameters, tokens, sequence length), or None."""
    target = config.target
    if target is None or (target.config is None and target.parameters is None):
        return None
    length = target.sequence_length
    if target.config is not None:
        from qwen3_jax.planner.architecture import training_architecture
        from qwen3_jax.sweeps.sweep import active_parameters

        run = training_config(target.config, {}, "target.config").resolved()[0].run
        tokens = float(run.total_steps * run.data.batch_size * run.data.sequence_length)
        return float(active_parameters(training_architecture(run))), tokens, length or run.data.sequence_length
    assert target.parameters is not None
    assert target.tokens is not None
    if length is None:
        if config.train is None:
            raise UserError("target.sequence_length says how many rows a batch is; without train it must be given.")
        length = training_config(config.train, config.set, "train").data.sequence_length
    return target.parameters, target.tokens, length


def _write(config: ScalingConfig, fit: Scaling, prediction: Prediction | None, output: Path) -> None:
    from qwen3_jax.sweeps import scaling
    from qwen3_jax.sweeps.scaling_plot import plot

    output.mkdir(parents=True, exist_ok=True)
    values = scaling.summary(config, fit, prediction) | {"config": dataclasses.asdict(config)}
    write(output / "result.json", json.dumps(values, indent=2) + "\n")
    plot(config, fit, prediction, output / "laws.png")


def _lines(config: ScalingConfig, fit: Scaling, prediction: Prediction | None) -> list[str]:
    from qwen3_jax.sweeps.optimum import short

    usable = sum(1 for cell in fit.optima.cells if cell.usable)
    lines = [f"{len(fit.observations)} runs, {usable} usable cells, noise {fit.optima.noise:.4f} nats"]
    for name, law in (("learning rate", fit.rate), ("batch size", fit.batch)):
        if law is None:
            lines.append(f"{name}: one was run, so there is no law")
            continue
        terms = ", ".join(f"{k}^({law.exponent(k)[0]:.3f} ± {law.exponent(k)[1]:.3f})" for k in law.names[1:])
        prior = f", exponents drawn to {law.prior}'s" if law.prior else ""
        undetermined = f"; of {' and '.join(law.undetermined)} the sweep says nothing" if law.undetermined else ""
        lines.append(f"{name}: {law.law.constant:.3g} {terms}{prior}{undetermined}")
    if prediction is not None:
        rate, batch = prediction.rate, prediction.batch
        lines.append(f"for {short(prediction.parameters)} parameters and {short(prediction.tokens)} tokens:")
        batch_text = (
            "" if batch is None else f", batch {short(batch.value)} ({short(batch.low)} to {short(batch.high)}) tokens"
        )
        level = f"{config.level:.0%}"
        lines.append(f"  fit, {level}: learning rate {rate.value:.2e} ({rate.low:.2e} to {rate.high:.2e}){batch_text}")
        for name, (value, size) in prediction.published.items():
            lines.append(f"  {name}: learning rate {value:.2e}, batch {short(size)} tokens")
    lines.append(f"{local_path(config.output, 'output') / 'laws.png'}")
    return lines
