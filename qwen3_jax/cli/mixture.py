"""Weights of a data mixture by experiment: proxies on drawn mixtures, a regression, a proposal, and its verification.

    qwen3 mixture search --config configs/sweeps/mixture-laptop.yaml
    qwen3 mixture search --config FILE --mixtures 64 --verify.seeds '[1, 2, 3, 4, 5]'

Components are the sources of the training configuration, or the values of a label of them (split). An interrupted search
resumes; finished runs are not repeated. OUTPUT/config.yaml is made for `train.py --config BASE --config
OUTPUT/config.yaml`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from qwen3_jax.cli import compile_cache
from qwen3_jax.cli.configuration import parse_configuration
from qwen3_jax.cli.dispatch import dispatch
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.cli.sweep_commands import training_config, write
from qwen3_jax.paths import local_path
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.sweeps.config import MixtureConfig


def main(argv: list[str] | None = None, prog: str = "qwen3 mixture") -> int:
    """Run `mixture search`; return the exit code."""
    commands = {"search": (_search_command, "train proxies, fit and verify; search --help lists every key")}
    return dispatch(prog, __doc__ or "", commands, argv)


def _search_command(argv: list[str], prog: str) -> int:
    def work() -> int:
        with doing("starting JAX"):
            from qwen3_jax.sweeps.config import MixtureConfig

            config = parse_configuration(MixtureConfig, argv, prog, __doc__ or "")
        return _search(config)

    return guarded(prog, work)


def _search(config: MixtureConfig) -> int:
    from qwen3_jax.sweeps.mixture import Search
    from qwen3_jax.sweeps.mixture_plot import plot
    from qwen3_jax.sweeps.mixture_proposal import fragment, propose, regress, summary

    train = training_config(config.train, config.set, "train")
    verify = training_config(config.train, config.set | config.verify.set, "verify")
    compile_cache.enable()
    search = Search(config, train, verify)
    regression = regress(config, search.components, search.train_proxies())
    proposal = propose(config, regression, search.tokens)
    result = search.train_verification(proposal, regression.objective)

    output = local_path(config.output, "output")
    values = summary(regression, proposal, result) | {"config": dataclasses.asdict(config)}
    write(output / "result.json", json.dumps(values, indent=2) + "\n")
    plot(regression, proposal, result, output / "mixture.png")
    file = write(output / "config.yaml", fragment(search.sources, proposal, result))

    print(
        f"{len(regression.weights)} proxies; rank correlation of prediction and measurement {regression.fidelity:.2f}"
    )
    for name, model in regression.chosen.items():
        deviation = regression.losses[name].std()
        print(f"  {name}: {model.form}, error {model.errors[model.form]:.4f} of {deviation:.4f} nats")
    print("proposed weights:")
    for name, weight, deviation in zip(regression.components, proposal.weights, proposal.deviations, strict=True):
        print(f"  {name}: {weight:.3f} ± {deviation:.3f}")
    print(f"predicted {proposal.predicted:.4f}, uniform {proposal.uniform:.4f} nats")
    print(result.sentence)
    print(output / "mixture.png")
    print(f"{file}: qwen3 train --config BASE --config {file}")
    return 0
