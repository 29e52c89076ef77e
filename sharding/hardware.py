"""Figures of chips: peak arithmetic, memory, and the networks between them.

Figures are for one chip, from Google Cloud's TPU pages (v4, v5e, v5p, v6e, tpu7x), except the interconnect: Google states the
sum over a chip's links, both ways (v5e 400, v4 300, v6e 800, v5p and tpu7x 1,200 GB/s), which is 50 or 100 GB/s for one link
one way; the table has 90% of that, as the first edition of "How to Scale Your Model" (jax-ml.github.io/scaling-book, part 2)
does. The data-centre network is egress: 50 Gb/s a chip for v5p, 100 Gb/s for v6e and tpu7x (TPU pages), 6.4 Tb/s a pod of 256
for v5e; v4 has 25 GB/s a host of four chips (the same book). NVIDIA cards: the table `GPUS` below.
"""

import re
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
        name: as in the name of a topology ("v5p").
        kinds: prefixes of JAX's `device_kind`.
        flops: peak bf16 FLOP/s.
        hbm_gib: memory, GiB.
        hbm_bandwidth: bytes/s between memory and the cores.
        ici_link: bytes/s of one link to a neighbouring chip, one way; two links along each dimension of the torus.
        dimensions: of the torus.
        dcn: bytes/s to chips of other slices.
        devices: number of JAX devices per chip.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    ici_link: float
    dimensions: int
    dcn: float
    devices: int = 1

    def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Which dimensions of a slice of this shape close to a ring.

        Two-dimensional pods have links around a whole side of 16 only; three-dimensional ones are joined from cubes of
        4 x 4 x 4 by optical switches, which close every dimension of a slice of whole cubes (scaling book, part 2; TPU v4
        paper, arXiv 2304.01433).
        """
        if self.dimensions == 2:
            return tuple(side == 16 for side in shape)
        return (all(side % 4 == 0 for side in shape),) * len(shape)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, 32, 1228e9, 4.5e10, 3, 6.25e9),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16, 819e9, 4.5e10, 2, 3.125e9),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95, 2765e9, 9e10, 3, 6.25e9),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32, 1638e9, 9e10, 2, 12.5e9),
        Chip("tpu7x", ("TPU7x",), 2307e12, 192, 7380e9, 9e10, 3, 12.5e9, devices=2),
    )
}


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA card, and its share of the networks of its node.

    Attributes:
        name: as in the name of a topology ("h100").
        kinds: prefixes of JAX's `device_kind`.
        flops: peak FLOP/s of bfloat16 without sparsity (T4: float16; it multiplies no bfloat16).
        hbm_gib: memory that CUDA reports, GiB.
        hbm_bandwidth: bytes/s between memory and the cores.
        link: bytes/s of one card to the others of its node, one way, over all of its links together.
        nic: bytes/s of one card to other nodes, one way: its share of the node's network cards.
        node: cards of one node.
        link_name: "NVLink", or "PCIe" where there is none.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm_gib: float
    hbm_bandwidth: float
    link: float
    nic: float
    node: int = 8
    link_name: str = "NVLink"

    devices = 1  # JAX devices per card


# card   source of FLOP/s, bandwidth and links         source of the network card's share
# A100   data sheet of A100 80 GB SXM: 312 TFLOP/s,     DGX A100: 8 ConnectX-6 of 200 Gb/s
#        2,039 GB/s, NVLink 600 GB/s both ways
# H100   data sheet of H100 SXM: 989 TFLOP/s,           DGX H100: 8 ConnectX-7 of 400 Gb/s
#        3.35 TB/s, NVLink 900 GB/s both ways
# H200   data sheet of H200 SXM: 989 TFLOP/s,           DGX H200: 8 ConnectX-7 of 400 Gb/s
#        4.8 TB/s, NVLink 900 GB/s both ways
# B200   data sheet of HGX B200 (of 8): 2.25 PFLOP/s,   DGX B200: 8 ConnectX-7 of 400 Gb/s
#        7.7 TB/s, NVLink 1.8 TB/s both ways
# L4     data sheet: 121 TFLOP/s, 300 GB/s,             Google Cloud's g2-standard-96: 8 cards, 100 Gb/s
#        PCIe 4.0 x16, 64 GB/s both ways
# T4     data sheet: 65 TFLOP/s (float16), 320 GB/s,    AWS's g4dn.metal: 8 cards, 100 Gb/s
#        PCIe 3.0 x16, 32 GB/s both ways
# Memory is what CUDA reports, `device_memory_size` in qwen3_jax/planner/gpu_targets.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", ("NVIDIA A100",), 312e12, 79.185, 2039e9, 3e11, 2.5e10),
        Gpu("h100", ("NVIDIA H100",), 989e12, 79.109, 3350e9, 4.5e11, 5e10),
        Gpu("h200", ("NVIDIA H200",), 989e12, 141.0, 4800e9, 4.5e11, 5e10),
        Gpu("b200", ("NVIDIA B200",), 2250e12, 178.361, 7700e9, 9e11, 5e10),
        Gpu("l4", ("NVIDIA L4",), 121e12, 21.961, 300e9, 3.2e10, 1.5625e9, link_name="PCIe"),
        Gpu("t4", ("Tesla T4",), 65e12, 14.581, 320e9, 1.6e10, 1.5625e9, link_name="PCIe"),
    )
}

# Of one JAX device.
_HARDWARE: tuple[Chip | Gpu, ...] = (*CHIPS.values(), *GPUS.values())
_PEAK_BF16 = {kind: chip.flops / chip.devices for chip in _HARDWARE for kind in chip.kinds}
_BANDWIDTH = {kind: chip.hbm_bandwidth / chip.devices for chip in _HARDWARE for kind in chip.kinds}


def peak_flops(device: jax.Device) -> float | None:
    """Return the peak FLOP/s of a device; a CPU is measured with one matrix product, an unknown accelerator gives None."""
    return _measure(device) if device.platform == "cpu" else _of_kind(_PEAK_BF16, device)


def memory_bandwidth(device: jax.Device) -> float | None:
    """Return the bytes/s between an accelerator and its memory; None for a CPU or an unknown accelerator."""
    return _of_kind(_BANDWIDTH, device)


def _of_kind(table: dict[str, float], device: jax.Device) -> float | None:
    # A whole word: an "NVIDIA L40S" is no "NVIDIA L4".
    matches = [name for name in table if re.match(rf"{re.escape(name)}(?![A-Za-z0-9])", device.device_kind)]
    return table[max(matches, key=len)] if matches else None


def _measure(device: jax.Device, size: int = 1536) -> float:
    """Best FLOP/s of three fp32 matrix products on all cores of this machine, divided by its number of (fake) devices."""
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / jax.local_device_count()
