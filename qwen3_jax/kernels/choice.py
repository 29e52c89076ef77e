"""Which implementation of each kernel to run."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax

from qwen3_jax.errors import UserError, nearest
from sharding import Placement

Attention = Literal["auto", "reference", "chunked", "splash", "cudnn", "triton"]
Paged = Literal["auto", "loop", "ragged", "triton"]
Experts = Literal["auto", "dense", "grouped", "tokamax", "ragged_dot", "all_gather", "all_to_all"]


@dataclass(frozen=True)
class Kernels:
    """Which implementation runs; "auto" picks the fastest that the platform has. Hashable, so it can be part of a jit key.

    Attributes:
        attention: see `qwen3_jax.kernels.attention`.
        experts: see `qwen3_jax.kernels.experts`.
        paged: attention over a cache, see `qwen3_jax.kernels.paged`.
    """

    attention: Attention = "auto"
    experts: Experts = "auto"
    paged: Paged = "auto"

    def __post_init__(self) -> None:
        for name, kind in {"attention": Attention, "experts": Experts, "paged": Paged}.items():
            value, choices = getattr(self, name), get_args(kind)
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
