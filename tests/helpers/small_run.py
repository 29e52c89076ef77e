"""A training run small enough to start many times: its configuration file and the command that runs it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path, PurePath

from tests.helpers import quick_xla

ROOT = Path(__file__).parents[2]


def write_config(folder: Path, **changes) -> Path:
    """Write a configuration of a MoE model and its text files; JSON is YAML too."""
    (folder / "text").mkdir(exist_ok=True)
    for index in range(4):
        words = " ".join(f"word{(index * 7 + i * i) % 23} means {i % 5}." for i in range(400))
        (folder / "text" / f"{index}.txt").write_text(words, encoding="utf-8")
    config = {
        "steps": 12,
        "checkpoint_every": 4,
        "log_every": 1,
        "model": {
            "config": {
                "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                "max_position_embeddings": 128,
            },
        },
        "tokenizer": {"vocab_size": 290, "train_records": 8},
        "data": {
            "batch_size": 16,
            "sequence_length": 64,
            "sources": [{"name": "text", "path": str(folder / "text" / "*.txt"), "eval_fraction": 0.25}],
        },
        "optimizer": {"warmup_steps": 2, "learning_rate": 0.003},
        "micro_batches": 2,
        "mesh": {"data": 2, "expert": 2, "context": 2},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(config | changes), encoding="utf-8")
    return path


def start(config: Path, run_dir: Path | str, devices: int, *options: str, log: Path) -> subprocess.Popen:
    """Start train.py on fake devices, its output in a file."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {quick_xla.FLAGS}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run_dir", str(run_dir), *options]
    with open(log, "wb") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=config.parent)


def ended(processes: list[subprocess.Popen], seconds: float = 200) -> list[int]:
    """Wait at most `seconds` for each process and return the exit codes; none is left running."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def start_pair(
    config: Path, run_dir: Path | str, logs: Path, *options: str, devices: int = 4
) -> list[subprocess.Popen]:
    """Start two processes of one run, `devices` devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ("--coordinator", coordinator, "--process-count", "2")
    return [
        start(
            config,
            run_dir,
            devices,
            *flags,
            "--process-index",
            str(i),
            *options,
            log=logs / f"{PurePath(run_dir).name}-{i}.log",
        )
        for i in range(2)
    ]
