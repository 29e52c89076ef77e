"""A training step of a mixture of experts against a dense model of equal active parameters.

python benchmarks/moe_step.py                    # goal: at most 1.3x the dense step's time
"""

import argparse

from benchmarks.common import add_shape, interleaved, show
from benchmarks.models import DENSE, MOE, stepper
from qwen3_jax.model import parameter_count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    options = parser.parse_args()
    table = []
    for dtype in ("float32", "bfloat16"):
        seconds = interleaved(
            {name: stepper(c, dtype, options.rows, options.length)[1] for name, c in (("dense", DENSE), ("moe", MOE))},
            options.rounds, dtype,
        )  # fmt: skip
        table.append([
            dtype, f"{seconds['dense'] * 1e3:,.0f} ms", f"{seconds['moe'] * 1e3:,.0f} ms",
            f"{seconds['moe'] / seconds['dense']:.2f}x",
        ])  # fmt: skip
    active = [parameter_count(config, active=True) / 1e6 for config in (DENSE, MOE)]
    show(
        f"train step, {options.rows} x {options.length} tokens: dense {active[0]:.1f}M, mixture of experts "
        f"{active[1]:.1f}M active of {parameter_count(MOE) / 1e6:.1f}M",
        ["compute", "dense", "8 of 32 experts", "ratio"], table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
