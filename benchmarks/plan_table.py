"""The tables of planned pods and GPUs in docs/scale.md: every row is a real training step, compiled on this machine.

    python -m benchmarks.plan_table                    # compiles the rows without figures, writes the table
    python -m benchmarks.plan_table --only 8b --again  # one row once more
    python -m benchmarks.plan_table --write-only       # writes the table from the figures in benchmarks/plans

Figures are kept in benchmarks/plans/ROW.json, each from a process of its own (so that compile times are independent). With two
cores a row takes two to six minutes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "benchmarks/plans"
PAGE = ROOT / "docs/scale.md"
BEGIN = "<!-- {name}: written by benchmarks/plan_table.py -->"
END = "<!-- end of {name} -->"

LONG = ["--data.sequence_length=32768"]
ATTENTION = ["--model.remat=attention"]
QKV = ["--model.remat=qkv"]
# row -> (configuration, topology, slices, overrides)
ROWS: dict[str, tuple[str, str, int, list[str]]] = {
    "0.6b": ("qwen3-0.6b", "v5e:2x2", 1, []),
    "8b": ("qwen3-8b", "v5p:2x2x1", 1, []),
    "32b": ("qwen3-32b", "v6e:8x8", 1, []),
    "30b-a3b": ("qwen3-30b-a3b", "v5p:4x4x4", 1, []),
    "235b-a22b": ("qwen3-235b-a22b", "v5p:8x8x8", 1, []),
    "235b-a22b-two-slices": ("qwen3-235b-a22b", "v5p:8x8x8", 2, [*ATTENTION, "--mesh.replica=2", "--data.batch_size=4096"]),
    "235b-a22b-tpu7x": ("qwen3-235b-a22b", "tpu7x:4x4x4", 1, [*ATTENTION, "--mesh.data=128", "--data.batch_size=512"]),
    "32b-tpu7x": ("qwen3-32b", "tpu7x:4x4x4", 1, ["--mesh.data=128", "--data.batch_size=256"]),
    "0.6b-long": ("qwen3-0.6b", "v5e:2x2", 1, [*LONG, "--data.batch_size=2", "--mesh.data=1", "--mesh.context=4"]),
    "8b-long": (
        "qwen3-8b", "v5p:2x2x1", 1,
        [*LONG, "--data.batch_size=2", "--mesh.data=2", "--mesh.context=2", "--model.remat=full"],
    ),
    "32b-long": ("qwen3-32b", "v6e:8x8", 1, [*LONG, "--data.batch_size=16", "--mesh.data=16", "--mesh.context=4"]),
    "30b-a3b-long": (
        "qwen3-30b-a3b", "v5p:4x4x4", 1, [*LONG, "--data.batch_size=64", "--mesh.data=16", "--mesh.context=4"],
    ),
    "235b-a22b-long": (
        "qwen3-235b-a22b", "v5p:8x8x8", 1,
        [*LONG, *ATTENTION, "--data.batch_size=256", "--mesh.data=128", "--mesh.context=4"],
    ),
}  # fmt: skip


# Of GPUs; the compiler is jax's CUDA plug-in.
GPU_ROWS: dict[str, tuple[str, str, int, list[str]]] = {
    "0.6b-h100": ("qwen3-0.6b", "h100:8", 1, ["--mesh.data=8"]),
    "8b-h100": ("qwen3-8b", "h100:8", 1, [*QKV, "--mesh.data=8"]),
    "8b-h200": ("qwen3-8b", "h200:8", 1, [*QKV, "--mesh.data=8"]),
    "8b-b200": ("qwen3-8b", "b200:8", 1, [*QKV, "--mesh.data=8"]),
    "32b-h100": ("qwen3-32b", "h100:8x8", 1, ["--mesh.data=64"]),
    "30b-a3b-h100": (
        "qwen3-30b-a3b",
        "h100:8x4",
        1,
        ["--mesh.data=32", "--data.batch_size=256", "--model.remat=attention"],
    ),
}


def command(row: str) -> list[str]:
    """Return the command line that plans a row."""
    config, topology, slices, overrides = (ROWS | GPU_ROWS)[row]
    several = [] if slices == 1 else ["--slices", str(slices)]
    return ["train.py", "--config", f"configs/scale/{config}.yaml", "--plan", topology, *several, *overrides]


def measure(row: str) -> None:
    """Plan one row, write its figures and print its report."""
    code = (
        "import json, sys\n"
        "from qwen3_jax.cli.plan import without_accelerators\n"
        "from qwen3_jax.cli.train_options import parse_train\n"
        "without_accelerators()\n"
        "command = parse_train(sys.argv[1:], 'plan_table')\n"
        "config, options = command.config, command.plan\n"
        "import jax\n"
        "from qwen3_jax import planner\n"
        "plan = planner.plan_training(config, planner.topology(options.topology, options.slices))\n"
        "bound = plan.compiled.roofline\n"
        "more = dict(bound_by=bound and bound.bound, waiting_s=bound and bound.waiting_s, chip_s=bound and bound.chip_s,\n"
        "    compute_s=bound and bound.compute_s, remat=config.model.remat,\n"
        "    micro_batches=config.micro_batches, sequence_length=config.data.sequence_length, jax=jax.__version__,\n"
        "    model=config.model.preset, report=plan.text().splitlines())\n"
        "print(json.dumps(plan.json() | more))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *command(row)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise SystemExit(f"{row}: {process.stderr[-2000:]}")
    FIGURES.mkdir(exist_ok=True)
    figures = json.loads(process.stdout.splitlines()[-1])
    figures["command"] = "python " + " ".join(command(row))
    (FIGURES / f"{row}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print("\n".join(figures["report"]), flush=True)


def table(rows: dict[str, tuple[str, str, int, list[str]]]) -> str:
    """Return the rows that have figures, in Markdown."""
    where = "slice" if rows is ROWS else "GPUs"
    lines = [
        f"| model | {where} | mesh, remat | sequence | tokens per step | peak HBM, GiB | compile, s | step, s | MFU | "
        "bound by |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        file = FIGURES / f"{row}.json"
        if not file.exists():
            continue
        f = json.loads(file.read_text(encoding="utf-8"))
        mesh = ", ".join(f"{axis} {size}" for axis, size in f["mesh"].items() if size > 1)
        micro = "" if f["micro_batches"] == 1 else f", {f['micro_batches']} micro-batches"
        memory = "does not fit" if f["hbm_peak_gib"] is None else peak(f)
        speed = ["-", "-", "-"]
        if f["roofline_step_s"] is not None:
            speed = [f"{f['roofline_step_s']:.2f}", f"{f['roofline_mfu']:.0%}", f["bound_by"]]
        lines.append(
            f"| {f['model']} | {f['topology']} | {mesh}; {f['remat']}{micro} | {f['sequence_length']:,} | "
            f"{f['tokens_per_step']:,} | {memory} | {f['compile_s']:.0f} | {' | '.join(speed)} |"
        )
    return "\n".join(lines)


def peak(figures: dict[str, Any]) -> str:
    """A plan's peak memory, and its share of what there is."""
    used, capacity = figures["hbm_peak_gib"], figures["hbm_capacity_gib"]
    return f"{used:.1f} ({used / capacity:.0%} of {capacity:.3g})"


def write_between(begin: str, end: str, text: str) -> None:
    """Write a table between its two marks in the page."""
    page = PAGE.read_text(encoding="utf-8")
    if begin not in page:
        raise SystemExit(f"{PAGE} has no line {begin!r} to write the table after.")
    before, rest = page.split(begin, 1)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def write() -> None:
    """Write the tables between their marks in the page."""
    for name, rows in (("plans", ROWS), ("GPU plans", GPU_ROWS)):
        write_between(BEGIN.format(name=name), END.format(name=name), table(rows))


def main() -> None:
    """Compile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS | GPU_ROWS, nargs="+", default=list(ROWS | GPU_ROWS), help="these rows")
    parser.add_argument("--again", action="store_true", help="also rows that have figures")
    parser.add_argument("--write-only", action="store_true", help="do not compile; write the table")
    parser.add_argument("--print", action="store_true", help="print the table without writing the page")
    arguments = parser.parse_args()
    if not arguments.write_only:
        for row in arguments.only:
            if arguments.again or not (FIGURES / f"{row}.json").exists():
                measure(row)
    print(table(ROWS), table(GPU_ROWS), sep="\n\n")
    if not arguments.print:
        write()


if __name__ == "__main__":
    main()
