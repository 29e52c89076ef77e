"""A training step that is planned through the command line: the plan itself and what is printed of it."""

import contextlib
import io
import json
import unittest.mock
from pathlib import Path
from typing import Any

from qwen3_jax import planner
from qwen3_jax.cli import train

KEYS = [
    "topology", "chips", "mesh", "hbm_capacity_gib", "hbm_peak_gib", "fits", "compile_s", "flops_per_chip",
    "hbm_bytes_per_chip", "ici_bytes_per_chip", "dcn_bytes_per_chip", "roofline_step_s", "roofline_mfu", "tokens_per_step",
]  # fmt: skip


def plan_by_command(file: Path, topology: str, *flags: str) -> tuple[planner.Plan, dict[str, Any]]:
    """Run `train.py --plan --json` on a configuration; return the plan that it makes and the object that it prints."""
    plans = []

    def recording(*arguments):
        plans.append(plan_training(*arguments))
        return plans[-1]

    plan_training = planner.plan_training
    printed = io.StringIO()
    with unittest.mock.patch.object(planner, "plan_training", recording), contextlib.redirect_stdout(printed):
        assert train.main(["--config", str(file), "--plan", topology, *flags, "--json"], "train.py") == 0
    return plans[0], json.loads(printed.getvalue())
