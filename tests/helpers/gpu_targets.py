"""Compile for NVIDIA GPUs that are not here: JAX's CUDA plug-in and ptxas need neither a card nor a driver.

    pip install -e ".[gpu-compile]"
    compiled(jax.jit(f).lower(*abstract arguments with shardings on gpu_mesh("h100")))

Nothing runs. What this finds is what lowering and compiling refuse: shared memory, compute capability, block shapes, sizes that
a kernel does not divide, and programs that hold more than they should.
"""

import functools
import importlib.util
import re
from importlib.resources import files

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

from qwen3_jax.kernels.card import Card
from sharding import make_mesh

CARDS = ("a100", "l4", "h100", "b200")
# Without a device nothing can be asked of CUB; the tests' flags switch the optimiser off, for XLA:CPU's sake.
OPTIONS = {"xla_gpu_deviceless_cub_mode": "DEVICELESS_CUB_DISABLED", "xla_backend_optimization_level": 3}


def target(card: str) -> str:
    """Return the facts of a card in XLA's text proto."""
    return files("qwen3_jax.planner").joinpath(f"gpu_targets/{card}.txtpb").read_text(encoding="utf-8")


@functools.cache
def gpu_devices(card: str, gpus: int = 8, nodes: int = 1) -> tuple:
    """Return the devices of nodes with this many cards each. Skips the test where the plug-in is not installed."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("jax-cuda13-plugin compiles for GPUs; pip install -e '.[gpu-compile]'")
    shape = f"{nodes}x1x{gpus}"
    return tuple(topologies.get_topology_desc(platform="cuda", topology=shape, target_config=target(card)).devices)


def gpu_mesh(card: str, **axes: int) -> Mesh:
    """Return a mesh over GPUs that are not here; axes as for `sharding.make_mesh`, whose product is at most 8."""
    return make_mesh(devices=gpu_devices(card), **axes)


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Return the program that XLA, Triton and ptxas make for the card."""
    return lowered.compile(compiler_options=OPTIONS)


def card(name: str) -> Card:
    """Return what the kernels know of a card: "t4", "l4", "a100", "h100", "h200" or "b200". Needs no plug-in."""
    text = target(name)
    capability = re.search(r"cuda_compute_capability \{(.*)\}", text)[1]
    major, minor = (re.search(rf"{part}: (\d+)", capability) for part in ("major", "minor"))
    shared = re.search(r"shared_memory_per_block_optin: (\d+)", text)
    kind = re.search(r'device_description_str: "(.*)"', text)
    return Card(kind[1], (int(major[1]), int(minor[1]) if minor else 0), int(shared[1]))
