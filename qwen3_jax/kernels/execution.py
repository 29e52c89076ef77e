"""How a model runs, in one value: given to `Qwen3` once, read by every kernel.

>>> Execution(Placement(mesh, SERVING), Kernels(attention="chunked"))
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.kernels.card import Card, card_of
from qwen3_jax.kernels.platform import platform_of
from sharding import Placement, balanced_order

AttentionKernel = Literal["auto", "reference", "chunked", "splash", "cudnn", "triton"]
PagedKernel = Literal["auto", "loop", "ragged", "triton"]
ExpertsKernel = Literal["auto", "dense", "grouped", "triton", "ragged_dot", "all_gather", "all_to_all"]
Quantization = Literal["int8", "fp8"]


@dataclass(frozen=True)
class Kernels:
    """Which implementation runs; "auto" picks the fastest that the platform has. Hashable, so it can be part of a jit key.

    Attributes:
        attention: see `qwen3_jax.kernels.attention`.
        experts: see `qwen3_jax.kernels.experts`.
        paged: attention over a cache, see `qwen3_jax.kernels.paged`.

    Raises:
        UserError: a name is unknown.
    """

    attention: AttentionKernel = "auto"
    experts: ExpertsKernel = "auto"
    paged: PagedKernel = "auto"

    def __post_init__(self) -> None:
        for name, literal in {"attention": AttentionKernel, "experts": ExpertsKernel, "paged": PagedKernel}.items():
            value, choices = getattr(self, name), get_args(literal)
            if value not in choices:
                raise UserError(
                    f"there is no {name} kernel {value!r}; choose one of {list(choices)}.{nearest(value, choices)}"
                )


@dataclass(frozen=True)
class Execution:
    """How a model runs. Hashable, so it can be part of a jit key.

    Attributes:
        placement: mesh and rules; by default one device.
        kernels: implementations of attention, cached attention and the experts.
        quantization: 8-bit products, for training: those of the attention projections and of dense MLPs. The experts, the
            router and the output projection stay in the compute type.
        balanced: the tokens of a row come in the order of `sharding.balanced_order` over the mesh axis that splits the
            length, which evens out the work of causal attention. Rows of a cache always come in order.

    Raises:
        UserError: the quantization is unknown, or its library is missing.
    """

    placement: Placement = field(default_factory=Placement)
    kernels: Kernels = field(default_factory=Kernels)
    quantization: Quantization | None = None
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.quantization is None:
            return
        choices = get_args(Quantization)
        if self.quantization not in choices:
            raise UserError(
                f"there is no quantization {self.quantization!r}; choose one of {list(choices)}, or leave it out."
            )
        try:
            import qwix  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"quantization {self.quantization!r} needs qwix: pip install 'qwen3-jax[quantization]'."
            ) from error

    @property
    def platform(self) -> str:
        """The platform that the program will run on: "cpu", "gpu" or "tpu"."""
        return platform_of(self.placement)

    @property
    def card(self) -> Card | None:
        """The NVIDIA GPU that the program will run on, attached or only described; None on other platforms."""
        return card_of(self.placement)

    @property
    def on_one_cpu(self) -> bool:
        """Whether the program runs on a single CPU device."""
        return (self.placement.mesh is None or self.placement.mesh.size == 1) and self.platform == "cpu"

    def order(self, length: int) -> np.ndarray:
        """Return int32 [length]: the place in its sequence of each token of a row.

        Raises:
            ShardingError: rows are balanced, and the length does not divide.
        """
        return balanced_order(length, self.placement.parts("length") if self.balanced else 1)


ONE_DEVICE = Execution()
