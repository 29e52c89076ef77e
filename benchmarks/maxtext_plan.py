"""Training steps of this project and of MaxText for the same TPUs, compiled here and read by one counter, row by row.

    python3.12 -m venv MAXTEXT && MAXTEXT/bin/pip install "maxtext[tpu]==0.2.5"      # needs Python 3.12; brings its own JAX
    python -m benchmarks.maxtext_plan --maxtext MAXTEXT/bin/python         # compiles what is missing, writes the table
    python -m benchmarks.maxtext_plan --maxtext MAXTEXT/bin/python --only 8b --again
    python -m benchmarks.maxtext_plan --write-only                         # the table from benchmarks/plans/maxtext.json

Both programs are compiled by MaxText's libtpu, for the same chips, with float32 parameters and moments, bfloat16 products,
the same tokens a step, parameters split over all chips, and the options of `sharding.compiler_options`. MaxText 0.2.5
publishes no recipe for these models on these chips, so its remat policies are tried one by one; a row compares with the
fastest. Nothing runs on a TPU: what is compared are the compilers' accounts of memory and the counter's of traffic,
arithmetic and time.

Programs are kept under `--programs` (some MB each), so that a change of the counter needs no new compile. With two cores a
program takes one to five minutes.
"""

import argparse
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from benchmarks.plan_table import PAGE, ROOT, write_between
from qwen3_jax import planner
from qwen3_jax.cli.plan import without_accelerators
from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.planner import compile as compiling
from qwen3_jax.planner import costs, hlo, roofline
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.kernel_costs import pricer
from qwen3_jax.planner.topologies import Topology
from sharding import compiler_options
from sharding.mesh import AXES

FIGURES = ROOT / "benchmarks/plans/maxtext.json"
BEGIN, END = "<!-- maxtext: written by benchmarks/maxtext_plan.py -->", "<!-- end of maxtext -->"
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        config: ours, in configs/scale.
        topology: in both programs.
        accelerator: MaxText's name of the topology.
        model: MaxText's name of the model.
        overrides: of our configuration.
        policies: MaxText's remat policies; a comma separates further options.
        options: MaxText's, besides those of `COMMON`.
    """

    config: str
    topology: str
    accelerator: str
    model: str
    overrides: tuple[str, ...] = ()
    policies: tuple[str, ...] = ("full",)
    options: tuple[str, ...] = ()


_SAVED = "custom,query_proj=device,key_proj=device,value_proj=device,context=device,out_proj=device"
ROWS = {
    "8b": Row(
        "qwen3-8b", "v5p:2x2x1", "v5p-8", "qwen3-8b", policies=("full", "save_dot_with_context_except_mlp"),
    ),
    "30b-a3b": Row("qwen3-30b-a3b", "v5p:4x4x4", "v5p-128", "qwen3-30b-a3b", policies=("full", _SAVED)),
    "235b-a22b": Row("qwen3-235b-a22b", "v5p:8x8x8", "v5p-1024", "qwen3-235b-a22b"),
    "0.6b": Row(
        "qwen3-0.6b", "v5e:2x2", "v5e-4", "qwen3-0.6b", ("--model.remat=mlp",),
        policies=("full", "save_dot_with_context_except_mlp"),
    ),
    "32b": Row("qwen3-32b", "v6e:8x8", "v6e-64", "qwen3-32b"),
}  # fmt: skip
COMMON = (
    "compile_topology_num_slices=1", "dataset_type=synthetic", "ici_fsdp_parallelism=-1", "attention=flash", "megablox=True",
    "sparse_matmul=True", "run_name=plan",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step: its text, the compiler's memory statistics, and the mesh over described devices."""

    text: str
    memory: dict[str, float]
    mesh: Mesh


def ours(row: Row, folder: Path, libtpu: Path, again: bool) -> Program:
    """Compile our step in a process of its own, which loads MaxText's libtpu; or read it where it is kept."""
    if again or not (folder / "program.pickle").exists():
        folder.mkdir(parents=True, exist_ok=True)
        code = "from benchmarks.maxtext_plan import compile_ours; import sys; compile_ours(*sys.argv[1:])"
        _run([sys.executable, "-c", code, str(folder), *_arguments(row)], {"TPU_LIBRARY_PATH": str(libtpu)})
    kept = pickle.loads((folder / "program.pickle").read_bytes())
    slices = planner.topology(row.topology)
    return Program(kept["text"], kept["memory"], planner.topology_mesh(slices, parse(row).mesh))


def _arguments(row: Row) -> list[str]:
    return ["--config", f"configs/scale/{row.config}.yaml", "--plan", row.topology, *row.overrides]


def parse(row: Row) -> Any:
    """Our configuration of a row."""
    return parse_train(_arguments(row), "maxtext_plan").config


def compile_ours(folder: str, *arguments: str) -> None:
    """Compile a step of ours and keep its text and memory."""
    without_accelerators()
    command = parse_train(list(arguments), "maxtext_plan")
    assert command.plan is not None
    plan = planner.plan_training(command.config, planner.topology(command.plan.topology))
    memory = plan.compiled.memory
    if memory is None:
        raise SystemExit(f"the program does not fit: {plan.compiled.refused}")
    kept = {"text": plan.compiled.text, "memory": dataclasses.asdict(memory), "seconds": plan.compiled.seconds}
    Path(folder, "program.pickle").write_bytes(pickle.dumps(kept))


def theirs(row: Row, policy: str, folder: Path, python: Path | None, again: bool) -> Program:
    """Compile MaxText's step in its environment; or read it where it is kept."""
    config, slices = parse(row), planner.topology(row.topology)
    if again or not (folder / "facts.json").exists():
        if python is None:
            raise SystemExit(f"{folder} holds no program of MaxText: name its Python with --maxtext.")
        first, *more = policy.split(",")
        flags = compiler_options(planner.topology_mesh(slices, config.mesh)) or {}
        arguments = [
            *COMMON,
            *row.options,
            f"model_name={row.model}",
            f"compile_topology={row.accelerator}",
            f"per_device_batch_size={config.data.batch_size // len(slices.devices)}",
            f"max_target_length={config.data.sequence_length}",
            f"remat_policy={first}",
            f"base_output_directory={folder}",
            *more,
        ]
        if flags:  # an empty value is refused
            arguments.append("compile_xla_flags=" + " ".join(f"--{name}={value}" for name, value in flags.items()))
        _run([str(python), "benchmarks/maxtext_step.py", str(folder), *arguments], {})
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    text = (folder / "program.txt").read_text(encoding="utf-8")
    stats = compiling.memory_of(SimpleNamespace(**facts["memory"]), slices.chip.devices)
    return Program(text, dataclasses.asdict(stats), _mesh(slices, facts["devices"]))


def _mesh(slices: Topology, places: list[list[int]]) -> Mesh:
    """A mesh whose partitions have MaxText's order; all of its devices along `data`."""
    by_place = {(*device.coords, device.core_on_chip): device for device in slices.devices}
    devices = np.asarray([by_place[tuple(place)] for place in places])
    return Mesh(devices.reshape(1, -1, 1, 1, 1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _run(command: list[str], environment: dict[str, str]) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TPU_LIBRARY_PATH")}
    ours = {"PYTHONPATH": str(ROOT)} if "TPU_LIBRARY_PATH" in environment else {}
    process = subprocess.run(
        command, cwd=ROOT, env=kept | ours | environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:2])} failed: {process.stderr[-3000:]}")


def measure(row: Row, program: Program) -> dict[str, float]:
    """The counter's figures of one chip."""
    config, slices = parse(row), planner.topology(row.topology)
    model = training_architecture(config)
    tokens = config.data.batch_size * config.data.sequence_length
    rows = tokens / len(slices.devices) * model.num_experts_per_tok if model.num_experts else None
    counted = costs.count(hlo.parse(program.text), pricer(rows))
    for what in (counted.unpriced, counted.unread, counted.unknown_loops):
        if what:
            raise SystemExit(f"not counted, so not comparable: {what}")
    bound = roofline.bound(counted, slices, program.mesh)
    return {
        "peak_gib": sum(program.memory.values()) / GIB,
        "flops": bound.flops,
        "hbm_gb": bound.hbm_bytes / 1e9,
        "ici_gb": sum(bound.ici_bytes.values()) / 1e9,
        "waiting_s": bound.waiting_s,
        "step_s": bound.step_s,
    }


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure both programs of a row and print them."""
    row, folder = ROWS[name], arguments.programs / name
    python = None if arguments.maxtext is None else arguments.maxtext.absolute()
    runs = {}
    for policy in row.policies:
        label = policy.split(",")[0]
        program = theirs(row, policy, folder / label, python, arguments.again and not arguments.ours_only)
        runs[f"MaxText {label}"] = measure(row, program)
    config = parse(row)
    libtpu = Path() if python is None else _libtpu(python)
    runs[f"ours, {config.model.remat}"] = measure(row, ours(row, folder / "ours", libtpu, arguments.again))
    for label, figures in runs.items():
        print(f"{name:10} {label:45} " + "  ".join(f"{key} {value:.5g}" for key, value in figures.items()), flush=True)
    return {"model": config.model.preset, "topology": row.topology, "runs": runs}


def _libtpu(python: Path) -> Path:
    """The library of an environment, known by the path of its Python."""
    found = sorted((python.parent.parent / "lib").glob("python*/site-packages/libtpu/libtpu.so"))
    if not found:
        raise SystemExit(f"{python} has no libtpu beside it; install maxtext[tpu].")
    return found[0]


def table(figures: dict[str, Any]) -> str:
    """The comparison in Markdown; ratios are ours over the fastest of MaxText's."""
    lines = [
        "| model | slice | program | peak, GiB | FLOPs | HBM, GB | sent, GB | waits, s | step, s | of its time | "
        "of its memory |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in figures.values():
        best = min((f for label, f in row["runs"].items() if "MaxText" in label), key=lambda f: f["step_s"])
        for label, f in row["runs"].items():
            ratios = "| | |"
            if "MaxText" not in label:
                ratios = f"| {f['step_s'] / best['step_s']:.3f} | {f['peak_gib'] / best['peak_gib']:.2f} |"
            lines.append(
                f"| {row['model']} | {row['topology']} | {label} | {f['peak_gib']:.1f} | {f['flops']:.3e} | "
                f"{f['hbm_gb']:,.0f} | {f['ici_gb']:,.1f} | {f['waiting_s']:.2f} | {f['step_s']:.3f} {ratios}"
            )
    return "\n".join(lines)


def main() -> None:
    """Compile, count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maxtext", type=Path, help="the Python of MaxText's environment")
    parser.add_argument("--only", choices=ROWS, nargs="+", default=list(ROWS), help="these rows")
    parser.add_argument("--again", action="store_true", help="compile also what is kept")
    parser.add_argument("--ours-only", action="store_true", help="with --again: MaxText's programs as they are kept")
    parser.add_argument("--programs", type=Path, default=ROOT / "runs/maxtext_plan", help="where programs are kept")
    parser.add_argument("--write-only", action="store_true", help="write the table from the kept figures")
    arguments = parser.parse_args()
    figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    if not arguments.write_only:
        for name in arguments.only:
            measured = figures | {name: compare(name, arguments)}
            figures = {row: measured[row] for row in ROWS if row in measured}
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))
    assert PAGE.exists()
    write_between(BEGIN, END, table(figures))


if __name__ == "__main__":
    main()
