"""Keep JAX from loading libtpu on machines without TPUs, and its CUDA plug-in on machines without GPUs.

There the extras `tpu` and `gpu-compile` serve plans alone. JAX would load them in every process that uses a device, which takes
seconds and prints errors. `import qwen3_jax` calls `skip_absent_tpu`; nothing here imports JAX. Where JAX_PLATFORMS is set, it
decides.
"""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
DEV = Path("/dev")
_GOOGLE, _NO_TPUS = "0x1ae0", {"0x0042", "0x001f"}  # the PCI vendor of TPUs; its network cards and disks
_GPU_VENDORS = {"0x10de", "0x1002"}  # NVIDIA, AMD
_GPU_FILES = ("nvidiactl", "nvgpu", "nvmap", "dxg", "kfd")  # NVIDIA's cards, its boards (Jetson), WSL, AMD
_GPU_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")


def skip_absent_tpu() -> None:
    """Let JAX use the CPU alone if libtpu or a plug-in for GPUs is installed and this machine has nothing for them."""
    if os.environ.get("JAX_PLATFORMS") or "JAX_FORCE_TPU_INIT" in os.environ:
        return
    tpus, gpus = find_spec("libtpu") is not None, any(map(find_spec, _GPU_PLUGINS))
    if not (tpus or gpus) or (tpus and _has_tpu()) or (gpus and _has_gpu()):
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the environment; without effect where devices are in use already
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _has_tpu() -> bool:
    return any(vendor == _GOOGLE and device not in _NO_TPUS for vendor, device in _devices())


def _has_gpu() -> bool:
    return any((DEV / name).exists() for name in _GPU_FILES) or any(vendor in _GPU_VENDORS for vendor, _ in _devices())


def _devices() -> Iterator[tuple[str, str]]:
    """Yield vendor and device of what is on the PCI bus."""
    for path in PCI.glob("*/vendor"):
        try:
            yield path.read_text().strip(), (path.parent / "device").read_text().strip()
        except OSError:  # the device is gone, or may not be read
            continue
