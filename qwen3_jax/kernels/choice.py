"""Which implementation of each kernel to run."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax

from qwen3_jax.errors import UserError, nearest
from sharding import Placement

Attention = Literal["auto", "reference", "chunked", "splash", "cudnn", "triton"]
Experts = Literal["auto", "dense", "grouped", "tokamax", "ragged_dot", "all_gather", "all_to_all"]


@dataclass(frozen=True)
class Kernels:
    """Which implementation runs; "auto" picks the fastest that the platform has. Hashable, so it can be part of a jit key.

    Attributes:
        attention: see `qwen3_jax.kernels.attention`.
        experts: see `qwen3_jax.kernels.experts`.
    """

    attention: Attention = "auto"
    experts: Experts = "auto"

    def __post_init__(self) -> None:
        for name, choices in (("attention", get_args(Attention)), ("experts", get_args(Experts))):
            value = getattr(self, name)
            if value not in choices:
                raise UserError(
                    f"there is no {name} kernel {value!r}; choose one of {list(choices)}.{nearest(value, choices)}"
                )


def target(placement: Placement) -> str:
    """Return the platform that the program will run on: "cpu", "gpu" or "tpu".

    A mesh may hold devices of a platform that is not here (a TPU topology that a laptop compiles for); without a mesh it is
    the default backend.
    """
    if placement.mesh is None:
        return jax.default_backend()
    platform = placement.mesh.devices.flat[0].platform
    return "gpu" if platform in ("cuda", "rocm") else platform
