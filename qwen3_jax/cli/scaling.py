"""Learning rate and batch size by experiment: a sweep, the optimum of each cell, power laws, a prediction with its interval.

    qwen3 scaling fit --config configs/sweeps/scaling-laptop.yaml
    qwen3 scaling fit --config FILE --target.config configs/pretrain/qwen3-0.6b.yaml
    qwen3 scaling fit --output fits/ours --runs sweep-1.jsonl sweep-2.jsonl --target.parameters 1e9 --target.tokens 1e11

The sweep goes on where it was stopped; finished runs are not repeated. With --runs nothing is trained: each line of the files
is a JSON object with parameters (active, without embeddings), tokens, batch_tokens, learning_rate and loss (null: diverged).
OUTPUT/config.yaml is made for `train.py --config BASE --config OUTPUT/config.yaml`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_jax.cli import sweep
from qwen3_jax.cli.typed import parse_into
from qwen3_jax.errors import UserError

if TYPE_CHECKING:
    from qwen3_jax.sweeps.config import ScalingConfig
    from qwen3_jax.sweeps.scaling import Prediction, Scaling


def main(argv: list[str] | None = None, prog: str = "qwen3 scaling") -> int:
    """Run `scaling fit`; return the exit code."""

    def action(rest: list[str]) -> int:
        from qwen3_jax.sweeps.config import ScalingConfig

        runs, rest = _take_runs(rest)
        return _fit(parse_into(ScalingConfig, rest, f"{prog} fit", __doc__ or ""), runs)

    return sweep.run(argv, prog, "fit", __doc__ or "", action)


def _take_runs(argv: list[str]) -> tuple[list[Path], list[str]]:
    """Take `--runs FILE ...` off the command line."""
    if "--runs" not in argv:
        return [], argv
    start = argv.index("--runs")
    stop = next((i for i in range(start + 1, len(argv)) if argv[i].startswith("--")), len(argv))
    if stop == start + 1:
        raise UserError("--runs needs a results file, or several.")
    return [Path(name).expanduser() for name in argv[start + 1 : stop]], argv[:start] + argv[stop:]


def _fit(config: ScalingConfig, runs: list[Path]) -> int:
    from qwen3_jax.sweeps import scaling
    from qwen3_jax.sweeps.scaling_runs import run_sweep

    if runs:
        found_runs = scaling.read(runs)
    else:
        if config.train is None:
            raise UserError("give train, a training configuration to sweep, or --runs, results to read.")
        models = {
            one.name: sweep.training(config.train, config.set | one.set, f"model {one.name!r}") for one in config.models
        }
        found_runs = run_sweep(config, models)
    found = scaling.fit(config, found_runs)
    aim = _target(config)
    output = Path(config.output).expanduser()
    try:
        prediction = None if aim is None else scaling.predict(config, found, aim[0], aim[1])
    except UserError:
        _write(config, found, None, output)  # what the sweep says is not lost
        raise
    _write(config, found, prediction, output)
    for line in _lines(config, found, prediction):
        print(line)
    if aim is not None and prediction is not None:
        made = sweep.write(output / "config.yaml", scaling.fragment(config, prediction, aim[2]))
        print(f"{made}: python train.py --config BASE --config {made}")
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

        run = sweep.training(target.config, {}, "target.config").resolved()[0].run
        tokens = float(run.total_steps * run.data.batch_size * run.data.sequence_length)
        return float(active_parameters(training_architecture(run))), tokens, length or run.data.sequence_length
    assert target.parameters is not None
    assert target.tokens is not None
    if length is None:
        if config.train is None:
            raise UserError("target.sequence_length says how many rows a batch is; without train it must be given.")
        length = sweep.training(config.train, config.set, "train").data.sequence_length
    return target.parameters, target.tokens, length


def _write(config: ScalingConfig, found: Scaling, prediction: Prediction | None, output: Path) -> None:
    from qwen3_jax.sweeps import scaling
    from qwen3_jax.sweeps.scaling_plot import plot

    output.mkdir(parents=True, exist_ok=True)
    values = scaling.summary(config, found, prediction) | {"config": dataclasses.asdict(config)}
    sweep.write(output / "result.json", json.dumps(values, indent=2) + "\n")
    plot(config, found, prediction, output / "laws.png")


def _lines(config: ScalingConfig, found: Scaling, prediction: Prediction | None) -> list[str]:
    from qwen3_jax.sweeps.optimum import short

    values = sum(1 for cell in found.optima.cells if cell.usable)
    out = [f"{len(found.observations)} runs, {values} usable cells, noise {found.optima.noise:.4f} nats"]
    for name, law in (("learning rate", found.rate), ("batch size", found.batch)):
        if law is None:
            out.append(f"{name}: one was run, so there is no law")
            continue
        said = ", ".join(f"{k}^({law.exponent(k)[0]:.3f} ± {law.exponent(k)[1]:.3f})" for k in law.names[1:])
        prior = f", exponents drawn to {law.prior}'s" if law.prior else ""
        alone = f"; of {' and '.join(law.undetermined)} the sweep says nothing" if law.undetermined else ""
        out.append(f"{name}: {law.law.constant:.3g} {said}{prior}{alone}")
    if prediction is not None:
        rate, batch = prediction.rate, prediction.batch
        out.append(f"for {short(prediction.parameters)} parameters and {short(prediction.tokens)} tokens:")
        said = (
            "" if batch is None else f", batch {short(batch.value)} ({short(batch.low)} to {short(batch.high)}) tokens"
        )
        level = f"{config.level:.0%}"
        out.append(f"  fit, {level}: learning rate {rate.value:.2e} ({rate.low:.2e} to {rate.high:.2e}){said}")
        for name, (value, size) in prediction.published.items():
            out.append(f"  {name}: learning rate {value:.2e}, batch {short(size)} tokens")
    out.append(f"{Path(config.output).expanduser() / 'laws.png'}")
    return out
