"""Two real processes, four devices each: one model over all eight equals the model of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import qwen3_jax
from tests.helpers import quick_xla, small_checkpoints

ROOT = Path(__file__).parent.parent.parent
SECONDS = 300


@pytest.mark.slow
def test_two_processes_load_run_and_save_as_one(tmp_path):
    folder = small_checkpoints.write("moe", tmp_path / "model")
    model, _ = qwen3_jax.load(folder)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {quick_xla.FLAGS}",
        "PYTHONPATH": str(ROOT),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, small_checkpoints.__file__, str(index), coordinator, str(folder), str(tmp_path)],
            env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]

    logits, greedy = np.asarray(model(small_checkpoints.tokens())), small_checkpoints.greedy(model)
    for index in range(2):
        with np.load(tmp_path / f"process-{index}.npz") as found:
            assert np.abs(found["logits"] - logits).max() <= 2e-5 * np.abs(logits).max()
            assert found["greedy"].tolist() == greedy
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert (tmp_path / "saved/config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # nothing half-written is left
