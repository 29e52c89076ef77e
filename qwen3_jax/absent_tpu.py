"""Keep JAX from loading libtpu on machines without TPUs.

There the extra `tpu` serves plans alone. JAX would load libtpu in every process that uses a device, which takes seconds and
prints errors. `import qwen3_jax` calls `skip_absent_tpu`; nothing here imports JAX. Where JAX_PLATFORMS is set, it decides.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
_GOOGLE, _NO_TPUS = "0x1ae0", {"0x0042", "0x001f"}  # the PCI vendor of TPUs; its network cards and disks
_GPU_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin")


def skip_absent_tpu() -> None:
    """Let JAX use the CPU alone if libtpu is installed and this machine has neither a TPU nor a GPU that JAX could use."""
    if os.environ.get("JAX_PLATFORMS") or "JAX_FORCE_TPU_INIT" in os.environ:
        return
    if find_spec("libtpu") is None or any(map(find_spec, _GPU_PLUGINS)) or _has_tpu():
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # it has read the environment; without effect where devices are in use already
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _has_tpu() -> bool:
    for path in PCI.glob("*/vendor"):
        try:
            if path.read_text().strip() == _GOOGLE and (path.parent / "device").read_text().strip() not in _NO_TPUS:
                return True
        except OSError:  # the device is gone, or may not be read
            continue
    return False
