"""Peak host memory of `qwen3_jax.load`: at most 1.15 x the loaded bytes + 1 GiB on one device."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen3_jax import Qwen3Config
from qwen3_jax.checkpoint.keys import slots
from qwen3_jax.model import Qwen3, abstract

ROOT = Path(__file__).parents[2]
GIB = 1 << 30
# The high-water mark of a fresh process, mapped files included, less what it held before loading (imports, the backend).
# Not ru_maxrss: Linux starts that at the peak of the process that called fork.
CHILD = """
import json, re, sys
import jax, jax.numpy as jnp
from flax import nnx
import qwen3_jax
from qwen3_jax.checkpoint import load
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))
jax.block_until_ready(jnp.ones(8) + 1)
before = peak()
model, _ = load(sys.argv[1], dtype=sys.argv[2], scan_layers=sys.argv[3] == "True", quantize=sys.argv[4] or None)
jax.block_until_ready(nnx.state(model))
size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
print(json.dumps({"used": peak() - before, "size": size}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Qwen3-0.6B's shapes with random bf16 weights in one 1.2 GB file, as on the hub (the tied head stored twice)."""
    from flax import nnx

    folder = tmp_path_factory.mktemp("memory")
    config = Qwen3Config.preset("Qwen3-0.6B")
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    _, state = abstract(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    tensors = {}
    pool = np.random.default_rng(0).normal(size=1 << 22).astype(ml_dtypes.bfloat16)
    for slot in slots(state, config, True):
        for layer in range(len(slot.prefixes)):
            for name in slot.names(layer):
                tensors[name] = np.resize(np.roll(pool, layer), slot.hf_shape())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    del tensors
    yield folder
    (folder / "model.safetensors").unlink()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("dtype", "scan_layers"),
    [pytest.param("float32", False, marks=pytest.mark.slow)]
    + [
        pytest.param(*case, marks=pytest.mark.soak)
        for case in (("bfloat16", True), ("bfloat16", False), ("float32", True))
    ],
)
def test_peak_host_memory_of_load(checkpoint, dtype, scan_layers):
    measured = measure(checkpoint, dtype, scan_layers)
    assert measured["size"] == 596_049_920 * {"bfloat16": 2, "float32": 4}[dtype]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize(
    ("quantize", "scan_layers"),
    [pytest.param("int8", True, marks=pytest.mark.slow)]
    + [pytest.param(*case, marks=pytest.mark.soak) for case in (("int4", False), ("int8", False))],
)
def test_peak_host_memory_of_load_follows_the_quantised_size(checkpoint, quantize, scan_layers):
    measured = measure(checkpoint, "float32", scan_layers, quantize)
    # One byte for each number of the matrices (the tied embedding too) and a float32 scale per channel; JAX counts a byte for
    # each int4 as well.
    assert 596_049_920 < measured["size"] < 1.05 * 596_049_920


def measure(checkpoint, dtype: str, scan_layers: bool, quantize: str = "") -> dict[str, int]:
    """Load in a fresh process and hold its peak against the bound."""
    command = [sys.executable, "-c", CHILD, checkpoint, dtype, str(scan_layers), quantize]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    how = f"{dtype}, scan_layers={scan_layers}, quantize={quantize or None}"
    print(f"{how}: {measured['used'] / GIB:.2f} of {measured['size'] / GIB:.2f} GiB")
    assert quantize == "int4" or measured["used"] >= 0.95 * measured["size"], "the measurement is at fault"
    assert measured["used"] <= 1.15 * measured["size"] + GIB
    return measured
