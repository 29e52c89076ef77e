"""Peak arithmetic of accelerators, for model FLOPs utilisation.

Dense bf16 FLOP/s of one JAX device, from the vendors' data sheets: Google Cloud's TPU pages (v4, v5e, v5p, v6e, tpu7x; a
v4/v5p/v6e chip is one device) and NVIDIA's H100, H200, A100, L4 and T4 pages (SXM where there are several, without sparsity).
"""

import time

import jax
import jax.numpy as jnp

_PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "Tesla T4": 65e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Return the peak FLOP/s of a device; a CPU is measured with one matrix product, an unknown accelerator gives None."""
    if device.platform == "cpu":
        return _measure(device)
    matches = [name for name in _PEAK_BF16 if device.device_kind.startswith(name)]
    return _PEAK_BF16[max(matches, key=len)] if matches else None


def _measure(device: jax.Device, size: int = 1536) -> float:
    """Best of three fp32 matrix products: what all cores of this machine reach, shared by its fake devices."""
    x = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best / jax.local_device_count()
