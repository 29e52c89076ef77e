"""What an NVIDIA GPU can do, as far as the choice of a kernel depends on it: asked before a kernel is chosen.

The facts are those of the device, attached or only described (a topology to compile for).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from qwen3_jax.kernels.platform import device_of
from sharding import Placement

TRITON = (8, 0)  # the compute capability that Triton's compiler in XLA and cuDNN's flash attention ask for
FP8 = (8, 9)  # the first that converts float8_e4m3fn

# Bytes of shared memory that a block may have, by compute capability (CUDA programming guide, table of technical
# specifications), for devices that do not report them. Of the largest entry that is not above the device's.
_SHARED_MEMORY = {
    (7, 0): 98_304,
    (7, 5): 65_536,
    (8, 0): 166_912,
    (8, 6): 101_376,
    (8, 7): 166_912,
    (8, 9): 101_376,
    (9, 0): 232_448,
    (12, 0): 101_376,
}


@dataclass(frozen=True)
class Card:
    """An NVIDIA GPU.

    Attributes:
        name: what the device calls itself, "NVIDIA L4".
        capability: compute capability, (8, 9).
        shared_memory: bytes that one block of threads can have.
    """

    name: str
    capability: tuple[int, int]
    shared_memory: int


def card_of(placement: Placement) -> Card | None:
    """Return the GPU that a program for this placement runs on; None on other platforms, and for GPUs of other makers."""
    return card_from(device_of(placement))


def card_from(device: Any) -> Card | None:
    """Return what a JAX device says about itself, or None if it is no NVIDIA GPU."""
    match = re.match(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    if match is None:
        return None
    capability = int(match[1]), int(match[2])
    known = max((entry for entry in _SHARED_MEMORY if entry <= capability), default=(7, 5))
    shared = getattr(device, "shared_memory_per_block_optin", None) or _SHARED_MEMORY[known]
    return Card(device.device_kind, capability, int(shared))


def why_no_triton(card: Card | None, *dtypes: Any) -> str | None:
    """Return what Triton's compiler would need for arrays of these types, or None where it can compile for the card."""
    if card is None:
        return "an NVIDIA GPU"
    if card.capability < TRITON:
        return _newer(card, TRITON)
    if any(jnp.dtype(dtype) == jnp.float8_e4m3fn for dtype in dtypes) and card.capability < FP8:
        return f"{_newer(card, FP8)} for float8_e4m3fn"
    return None


def _newer(card: Card, capability: tuple[int, int]) -> str:
    major, minor = capability
    return (
        f"compute capability {major}.{minor} or newer (the {card.name} has {card.capability[0]}.{card.capability[1]})"
    )
