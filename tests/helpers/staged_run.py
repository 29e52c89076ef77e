"""A run of three tiny stages, started many times: its configuration, the command, and what it must come to."""

import json
import multiprocessing
import os
import sys
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.killed_run import read as lines
from benchmarks.killed_run import saved
from tests.helpers import quick_xla

__all__ = ["STEPS", "lines", "output_of", "run", "saved", "start", "weights", "write_config"]

_server = multiprocessing.get_context("forkserver")
# Imports only: nothing here may start JAX's backend, whose threads would not survive a fork.
_server.set_forkserver_preload(["qwen3_jax.training.loop", "qwen3_jax.cli.train", "tensorboardX", "matplotlib.figure"])
STEPS = (14, 10, 12)


def write_config(folder: Path, moe: bool = True, **changes: Any) -> Path:
    """Text of 20 to 400 words in two languages of nonsense, and problems; a model of two layers. JSON is YAML too."""
    rng = np.random.default_rng(0)
    for name, ending in (("north", "ur"), ("south", "io")):
        words = [f"{stem}{ending}" for stem in ("ka", "lo", "mi", "ne", "po", "ra", "su", "ti", "vo", "ze")]
        texts = [" ".join(rng.choice(words, rng.integers(20, 400))) for _ in range(60)]
        lines = [json.dumps({"text": text, "topic": name + str(i % 2)}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if moe else {}
    labels = {"labels": {"domain_key": "topic"}}
    config = {
        "stages": [
            {"name": "general", "steps": STEPS[0], "weights": {"north": 1.0}},
            {
                "name": "reasoning", "steps": STEPS[1], "weights": {"north": 0.3, "south": 0.3, "problems": 0.4},
                "optimizer": {"learning_rate": 2e-3, "schedule": "linear", "final_learning_rate": 0.1},
            },
            {
                "name": "long", "steps": STEPS[2], "sequence_length": 128, "batch_size": 4, "rope_theta": 1e6,
                "weights": {"north": 0.5, "south": 0.5},
                "lengths": [{"above": 64, "up_to": 128, "weight": 0.75}, {"above": 16, "up_to": 64, "weight": 0.25}],
                "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "final_learning_rate": 0.0},
            },
        ],
        "checkpoint_every": 2,
        "checkpoint_keep": 2,
        "log_every": 1,
        "eval_every": 5,
        "eval_batches": 1,
        "model": {
            "scan_layers": False,
            "config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "rope_theta": 1e4, **experts,
            },
        },
        "tokenizer": {"vocab_size": 300, "train_records": 40},
        "data": {
            "cache": str(folder / "prepared"),
            "batch_size": 8,
            "sequence_length": 32,
            "packing_rows": 16,
            "sources": [
                {"name": "north", "path": str(folder / "north.jsonl"), "eval_fraction": 0.2, **labels},
                {"name": "south", "path": str(folder / "south.jsonl"), "eval_fraction": 0.2, **labels},
                {
                    "name": "problems", "path": "synthetic:running_sum", "eval_fraction": 0.1,
                    "running_sum": {"problems": 200, "eval_problems": 20, "max_digits": 4},
                },
            ],
        },
        "optimizer": {"warmup_steps": 4, "learning_rate": 4e-3, "schedule": "wsd", "decay_share": 0.5},
        "mesh": {"data": 1},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(json.dumps(config | changes), encoding="utf-8")
    return path


def start(config: Path, run_dir: Path, *options: str, devices: int = 1) -> Process:
    """Start `qwen3 train` in a process of its own, its output in a file beside the run.

    A server that has everything imported forks it, so that hundreds of starts take minutes; all that it compiles is cached.
    """
    argv = [f"--config={config}", f"--run_dir={run_dir}", *options]
    process = _server.Process(target=_train, args=(argv, log_of(run_dir), devices))
    process.start()
    return process


def _train(argv: list[str], log: Path, devices: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} {quick_xla.FLAGS}"
    import jax

    from qwen3_jax.cli.train import main

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    code = main(argv)
    sys.stdout.flush()
    os._exit(code)


def run(config: Path, run_dir: Path, *options: str, devices: int = 1, code: int = 0) -> None:
    """Start and wait for the end."""
    process = start(config, run_dir, *options, devices=devices)
    process.join(400)
    assert process.exitcode == code, output_of(run_dir)


def log_of(run_dir: Path) -> Path:
    return run_dir.with_suffix(".log")


def output_of(run_dir: Path) -> str:
    """Return all output of the run's processes."""
    return log_of(run_dir).read_text()


def weights(run_dir: Path) -> bytes:
    """Of the export."""
    return (run_dir / "hf" / "model.safetensors").read_bytes()
