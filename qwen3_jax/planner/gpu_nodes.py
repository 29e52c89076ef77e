"""Nodes of NVIDIA GPUs by name, without a GPU: a file describes each card, and XLA compiles for it.

    >>> gpu_nodes.parse("h100:8x4")                   # four nodes of eight
    (GPUS["h100"], 4, 8)
    >>> devices = gpu_nodes.devices("h100", 4, 8)     # described devices, node by node

`gpu_targets/CARD.txtpb` holds what XLA would ask a driver for (limits of a block, memory, clock, compute capability), in the
text form of its GpuTargetConfigProto (xla/stream_executor/device_description.proto). Compiling needs jax's CUDA plug-in and
NVIDIA's assembler, but no driver and no CUDA toolkit.
"""

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.resources
import os
import re
import shutil
from collections.abc import Iterator

import jax

from qwen3_jax.errors import UserError
from sharding import ShardingError
from sharding.hardware import GPUS, Gpu

# For `jax.stages.Lowered.compile`. Without the option sorts ask a device how they should run, and there is none.
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_gpu_deviceless_cub_mode": "DEVICELESS_CUB_DISABLED"}

# What only a device can tell; the report lists it beside the figures.
NOT_COUNTED = (
    "memory outside the allocator's share (CUDA contexts, NCCL's buffers) and the workspaces of cuDNN and cuBLAS",
    "autotuning: a run times several kernels and tiles for each product on the card, a plan takes the compiler's default",
    "NCCL's choice of algorithm: collectives are rings here; trees and sums inside the switches send less",
)

# What does not work on a card, for its report.
CARD_NOTES = {
    "t4": "this card's tensor cores take no bfloat16: XLA multiplies it in float32, at an eighth of the peak above or less",
}

_FRACTION, _OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
_DEFAULT_FRACTION = 0.75


def is_gpu(name: str) -> bool:
    """Whether the name of a topology begins with that of a card."""
    return re.split("[^a-z0-9]", name, maxsplit=1)[0] in GPUS


def parse(name: str) -> tuple[Gpu, int, int]:
    """Return the card, the number of nodes and the cards per node of "h100:8" (one node) or "h100:8x4" (four).

    Raises:
        ShardingError: it is no such name, or a node has fewer cards; names the nearest.
    """
    card, colon, rest = name.partition(":")
    gpu = GPUS[re.split("[^a-z0-9]", card, maxsplit=1)[0]]
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", rest)
    if card not in GPUS or not colon or match is None:
        raise ShardingError(
            f"the topology {name!r} is not CARD:GPUS or CARD:GPUSxNODES; for example {gpu.name}:{gpu.node}, one node, or "
            f"{gpu.name}:{gpu.node}x4, four nodes of {gpu.node}."
        )
    per_node, nodes = int(match[1]), int(match[2] or 1)
    if per_node > gpu.node:
        near = f"{gpu.name}:{gpu.node}x{max(round(per_node * nodes / gpu.node), 1)}"
        raise ShardingError(
            f"there is no node of {per_node} GPUs in {name!r}: one has at most {gpu.node}; the nearest is {near}."
        )
    return gpu, nodes, per_node


@functools.cache
def devices(card: str, nodes: int, per_node: int) -> tuple[jax.Device, ...]:
    """Return described devices, node by node.

    Raises:
        ShardingError: the compiler for GPUs is not installed; names what to install.
    """
    check_installed(f"{card}:{per_node}" + (f"x{nodes}" if nodes > 1 else ""))
    from jax.experimental import topologies

    target = importlib.resources.files("qwen3_jax.planner") / "gpu_targets" / f"{card}.txtpb"
    with _quiet_plugin():
        described = topologies.get_topology_desc(
            platform="cuda", topology=f"{nodes}x1x{per_node}", target_config=target.read_text(encoding="utf-8")
        )
    return tuple(described.devices)


@contextlib.contextmanager
def _quiet_plugin() -> Iterator[None]:
    """Set what the plug-in reads when it is loaded: no warnings that a GPU is missing or compiling is slow."""
    name = "TF_CPP_MIN_LOG_LEVEL"
    given = os.environ.get(name)
    if given in (None, "1"):  # 1 is what jax sets
        os.environ[name] = "3"
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ.update({} if given is None else {name: given})


def check_installed(name: str) -> None:
    """Check that what compiles for GPUs is installed, in the version of jax.

    Raises:
        ShardingError: it is not; has the command that installs it.
    """
    wanted = jax.__version__
    missing = [
        f"{package} {wanted}" + (f" ({version} is installed)" if version else "")
        for package in ("jax-cuda13-plugin", "jax-cuda13-pjrt")
        if (version := _version(package)) != wanted
    ]
    on_path = shutil.which("ptxas") is not None  # a CUDA toolkit has the assembler and NVVM too
    missing += [package for package in ("nvidia-cuda-nvcc", "nvidia-nvvm") if not (on_path or _version(package))]
    if missing:
        command = (
            f"pip install --no-deps jax-cuda13-plugin=={wanted} jax-cuda13-pjrt=={wanted} nvidia-cuda-nvcc nvidia-nvvm"
        )
        raise ShardingError(
            f"planning for {name} needs {', '.join(missing)}: {command} (no GPU and no CUDA toolkit are needed)."
        )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def allocator_share() -> float:
    """Return the share of a card's memory that JAX's allocator gives to programs, from the environment as a run reads it.

    Raises:
        UserError: a value that a run would refuse, or that is no share.
    """
    given = {name: os.environ[name] for name in (_FRACTION, _OLD_FRACTION) if os.environ.get(name)}
    if os.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        return 1.0  # every array is allocated from the driver
    if len(given) == 2:
        raise UserError(f"{_FRACTION} and {_OLD_FRACTION} are both set; remove the second, which is deprecated.")
    for name, text in given.items():
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0.0 < share <= 1.0:
            raise UserError(f"{name} is {text!r}; it must be a share of the card's memory, above 0 and at most 1.")
        return share
    return _DEFAULT_FRACTION


def nearest_card(name: str) -> str | None:
    """Return the card whose name is nearest, or None where none is near."""
    near = difflib.get_close_matches(re.split("[:-]", name.lower())[0], GPUS, n=1, cutoff=0.6)
    return near[0] if near else None
