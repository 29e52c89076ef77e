"""Weights of a data mixture by experiment: proxies on drawn mixtures, a regression, a proposal, and its verification.

    qwen3 mixture search --config configs/sweeps/mixture-laptop.yaml
    qwen3 mixture search --config FILE --mixtures 64 --verify.seeds '[1, 2, 3, 4, 5]'

Components are the sources of the training configuration, or the values of a label of them (split). The search goes on where it
was stopped; finished runs are not repeated. OUTPUT/config.yaml is made for `train.py --config BASE --config
OUTPUT/config.yaml`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_jax.cli import sweep
from qwen3_jax.cli.typed import parse_into

if TYPE_CHECKING:
    from qwen3_jax.sweeps.config import MixtureConfig


def main(argv: list[str] | None = None, prog: str = "qwen3 mixture") -> int:
    """Run `mixture search`; return the exit code."""

    def action(rest: list[str]) -> int:
        from qwen3_jax.sweeps.config import MixtureConfig

        return _search(parse_into(MixtureConfig, rest, f"{prog} search", __doc__ or ""))

    return sweep.run(argv, prog, "search", __doc__ or "", action)


def _search(config: MixtureConfig) -> int:
    from qwen3_jax.sweeps.mixture import Search
    from qwen3_jax.sweeps.mixture_plot import plot
    from qwen3_jax.sweeps.mixture_proposal import fragment, propose, regress, summary

    train = sweep.training(config.train, config.set, "train")
    verify = sweep.training(config.train, config.set | config.verify.set, "verify")
    search = Search(config, train, verify)
    found = regress(config, search.components, search.train_proxies())
    proposal = propose(config, found, search.tokens)
    result = search.train_verification(proposal, found.objective)

    output = Path(config.output).expanduser()
    values = summary(found, proposal, result) | {"config": dataclasses.asdict(config)}
    sweep.write(output / "result.json", json.dumps(values, indent=2) + "\n")
    plot(found, proposal, result, output / "mixture.png")
    made = sweep.write(output / "config.yaml", fragment(search.sources, proposal, result))

    print(f"{len(found.weights)} proxies; rank correlation of prediction and measurement {found.fidelity:.2f}")
    for name, one in found.chosen.items():
        print(f"  {name}: {one.form}, error {one.errors[one.form]:.4f} of {found.losses[name].std():.4f} nats")
    print("proposed weights:")
    for name, weight, deviation in zip(found.components, proposal.weights, proposal.deviations, strict=True):
        print(f"  {name}: {weight:.3f} ± {deviation:.3f}")
    print(f"predicted {proposal.predicted:.4f}, uniform {proposal.uniform:.4f} nats")
    print(result.sentence)
    print(output / "mixture.png")
    print(f"{made}: python train.py --config BASE --config {made}")
    return 0
