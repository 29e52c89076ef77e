"""The table of planned decode steps on GPUs in docs/scale.md: every row is a real decode step, compiled on this machine.

    python -m benchmarks.decode_table                      # compiles the rows without figures, writes the table
    python -m benchmarks.decode_table --only 8b-16 --again # one row once more
    python -m benchmarks.decode_table --write-only         # writes the table from the figures in benchmarks/plans/decode.json

Beside the traffic of a step stands what it has to read: every weight once (of a mixture of experts those that the rows choose,
if no two rows choose the same), and the keys and values of the used slots. One process for each row.
"""

import argparse
import json
import resource
import subprocess
import sys

from benchmarks.plan_table import ROOT, peak, write_between
from qwen3_jax.config import Qwen3Config

FIGURES = ROOT / "benchmarks/plans/decode.json"
BEGIN, END = (
    "<!-- decode steps on GPUs: written by benchmarks/decode_table.py -->",
    "<!-- end of decode steps on GPUs -->",
)
CONTEXT = 4096
# row -> (model, GPUs, mesh, rows, weights)
ROWS: dict[str, tuple[str, str, dict[str, int], int, str | None]] = {
    "0.6b-l4-16": ("Qwen3-0.6B", "l4:1", {}, 16, None),
    **{f"0.6b-{rows}": ("Qwen3-0.6B", "h100:1", {}, rows, None) for rows in (1, 16, 64)},
    **{f"8b-{rows}": ("Qwen3-8B", "h100:1", {}, rows, None) for rows in (1, 16, 64)},
    "8b-int8-1": ("Qwen3-8B", "h100:1", {}, 1, "int8"),
    "8b-int8-16": ("Qwen3-8B", "h100:1", {}, 16, "int8"),
    **{f"32b-{rows}": ("Qwen3-32B", "h100:8", {"tensor": 8}, rows, None) for rows in (1, 16, 64)},
    **{f"30b-a3b-{rows}": ("Qwen3-30B-A3B", "h200:1", {}, rows, None) for rows in (1, 16, 64)},
    "30b-a3b-int8-16": ("Qwen3-30B-A3B", "h100:1", {}, 16, "int8"),
    "30b-a3b-tensor-1": ("Qwen3-30B-A3B", "h100:4", {"tensor": 4}, 1, None),
    "30b-a3b-expert-64": ("Qwen3-30B-A3B", "h100:8", {"expert": 8}, 64, None),
}


def bytes_to_read(config: Qwen3Config, mesh: dict[str, int], rows: int, weights: str | None) -> float:
    """Return what a device has to read in a step: weights in use, and keys and values of `CONTEXT` slots of its rows."""
    tensor, expert = mesh.get("tensor", 1), mesh.get("expert", 1)
    d, h, heads, kv = config.hidden_size, config.head_dim, config.num_attention_heads, config.num_key_value_heads
    of_device = rows / (mesh.get("data", 1) * expert)
    matrices = d * h * (2 * heads + 2 * kv) / tensor
    if config.num_experts:
        used = min(config.num_experts / expert, of_device * config.num_experts_per_tok)
        matrices += 3 * d * config.moe_intermediate_size / tensor * used
    else:
        matrices += 3 * d * config.intermediate_size / tensor
    numbers = config.num_hidden_layers * matrices + d * config.vocab_size / tensor
    cache = of_device * CONTEXT * config.num_hidden_layers * 2 * kv / tensor * h * 2
    return numbers * (2 if weights is None else 1) + cache


def command(row: str) -> list[str]:
    """Return the command line that plans a row."""
    model, topology, mesh, rows, weights = ROWS[row]
    axes = ",".join(f"{axis}={size}" for axis, size in mesh.items()) or "tensor=1"
    words = ["infer.py", "--model", f"Qwen/{model}", "--plan", topology, "--mesh", axes, "--batch-size", str(rows)]
    return [*words, "--context", str(CONTEXT), *(["--quantize", weights] if weights else []), "--json"]


def measure(row: str) -> None:
    """Plan one row and write its figures."""
    before = cpu_seconds()
    done = subprocess.run([sys.executable, *command(row)], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{row}: {done.stderr[-2000:]}")
    figures = known()
    figures[row] = json.loads(done.stdout.splitlines()[-1]) | {"cpu_s": cpu_seconds() - before}
    figures[row]["command"] = "python " + " ".join(command(row))
    FIGURES.write_text(json.dumps({name: figures[name] for name in ROWS if name in figures}, indent=1) + "\n", "utf-8")
    print(row, json.dumps(figures[row]), flush=True)


def cpu_seconds() -> float:
    """CPU seconds of this process's children so far; other work on the machine does not change them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def known() -> dict[str, dict]:
    """Return the figures by row."""
    return json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}


def table() -> str:
    """Return the rows that have figures, in Markdown."""
    lines = [
        "| model | weights | GPUs | mesh | rows | peak HBM, GiB | CPU s | HBM traffic per GPU, GB | of what it "
        "must read | step, ms | tokens/s at most |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row, f in known().items():
        model, topology, mesh, rows, weights = ROWS[row]
        axes = ", ".join(f"{axis} {size}" for axis, size in mesh.items()) or "one GPU"
        read = bytes_to_read(Qwen3Config.preset(model), mesh, rows, weights)
        cpu = f"{f['cpu_s']:.0f}" if "cpu_s" in f else "-"
        traffic, step = f["hbm_bytes_per_chip"], f["roofline_step_s"]
        lines.append(
            f"| {model} | {weights or 'bfloat16'} | {topology} | {axes} | {rows} | {peak(f)} | {cpu} | "
            f"{traffic / 1e9:.1f} | {traffic / read:.2f}x | {1e3 * step:.1f} | {rows / step:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compile, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ROWS, nargs="+", default=list(ROWS), help="these rows")
    parser.add_argument("--again", action="store_true", help="also rows that have figures")
    parser.add_argument("--write-only", action="store_true", help="do not compile; write the table")
    arguments = parser.parse_args()
    if not arguments.write_only:
        for row in arguments.only:
            if arguments.again or row not in known():
                measure(row)
    write_between(BEGIN, END, table())


if __name__ == "__main__":
    main()
