"""Train a configuration twice, the second time interrupted by SIGKILL, and compare every bit of the two.

    python benchmarks/killed_run.py --config configs/pretrain/laptop.yaml --kills 2

Compared are the metrics (clock readings aside), the fingerprints of all arrays and the data position of the checkpoints that
both have kept, and the exported weights. The kills come at steps drawn with --seed; folders: RUN_DIR, RUN_DIR-killed.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import yaml

from qwen3_jax.training import metrics

ROOT = Path(__file__).parents[1]
CLOCK = ("time", "seconds", "tokens_per_second", "tflops_per_device", "mfu", "input_wait_share")


def main() -> None:
    """Run both, print one JSON object, exit with 1 if they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the run to kill")
    parser.add_argument("--kills", type=int, default=2, help="how often it is killed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text())
    whole, killed = Path(config["run_dir"]), Path(f"{config['run_dir']}-killed")
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(args.config)]
    subprocess.run(command, check=True)

    total = config.get("steps") or sum(stage["steps"] for stage in config["stages"])
    kill_steps = sorted(random.Random(args.seed).sample(range(total // 10, total), args.kills))
    for step in kill_steps:
        process = subprocess.Popen([*command, "--run_dir", str(killed)])
        while process.poll() is None and max((row["step"] for row in read(killed)), default=0) < step:
            time.sleep(0.01)
        process.kill()
        if process.wait() != -9:
            sys.exit(f"the run ended before step {step}: {process.returncode}")
    subprocess.run([*command, "--run_dir", str(killed)], check=True)

    steps = common(whole, killed)
    same = {
        "metrics": read(whole) == read(killed),
        "router load": read(whole, "router") == read(killed, "router"),
        "checkpoints": all(saved(whole, step) == saved(killed, step) for step in steps),
        "weights": (whole / "hf/model.safetensors").read_bytes() == (killed / "hf/model.safetensors").read_bytes(),
    }
    print(
        json.dumps(
            {"killed after step": kill_steps, "lines of metrics": len(read(whole)), "checkpoints": steps, "equal": same}
        )
    )
    sys.exit(not all(same.values()))


def read(run_dir: Path, name: str = "metrics") -> list[dict]:
    """Lines of a metrics file of the run, without clock readings."""
    rows = metrics.read(run_dir / f"{name}.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(CLOCK)} for row in rows]


def common(*runs: Path) -> list[int]:
    """Steps of the checkpoints that all runs have."""
    steps = [{int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()} for run in runs]
    return sorted(set.intersection(*steps))


def saved(run_dir: Path, step: int) -> dict:
    """Fingerprints and data position of a checkpoint."""
    return json.loads((run_dir / "checkpoints" / str(step) / "position" / "metadata").read_text())


if __name__ == "__main__":
    main()
