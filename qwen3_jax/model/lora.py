"""Low-rank adapters of a model's weights (LoRA: Hu et al. 2021, arXiv 2106.09685).

    y = x W + scaling * (x A) B        A [inputs, rank],  B [rank, outputs]

`Lora` says which weights have one; `Declare` makes them beside the weight, with its logical axes; `Adapter.on` puts them on it.
The names of the weights:

| name                                                  | weight                                                   |
|-------------------------------------------------------|----------------------------------------------------------|
| attention.q, attention.k, attention.v, attention.o    | the projections of attention                             |
| mlp.gate, mlp.up, mlp.down                            | a dense MLP                                              |
| mlp.router                                            | the router of an MoE layer                               |
| mlp.experts.gate_up, mlp.experts.down                 | its experts; gate and up share A, as in transformers 5   |
| embed, lm_head                                        | the embedding as a table; the output projection          |

Several adapters, of which each token has one or none, stand side by side along the rank, N times the largest rank of each
weight; `chosen` [B, T, N] says which. Without it such a model is its base.

Invariant: where layers of a stack differ in rank, A and B are padded with zeros, whose gradients are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from flax import nnx

from qwen3_jax.kernels import LowRank, Weight


class Scaling(nnx.Variable):
    """The factor of an adapter's product: not a parameter."""


class Adapter(nnx.Module):
    """A, B and the scaling of one weight, or of a stack of equal weights; of `several` adapters side by side."""

    def __init__(self, a: nnx.LoRAParam, b: nnx.LoRAParam, scaling: Scaling, several: bool = False):
        self.a, self.b, self.scaling, self.several = a, b, scaling, several

    def on(self, base: Weight, chosen: jax.Array | None = None, part: int | None = None) -> Weight:
        """Return the weight with its addition; `part` is gate (0) or up (1) of a B of both, [E, R, 2, F]."""
        if self.several and chosen is None:
            return base
        b = self.b[...] if part is None else self.b[...][:, :, part]
        return LowRank(base, self.a[...], b, self.scaling[...], chosen if self.several else None)


def adapted(
    base: Weight, adapters: nnx.Dict | None, name: str, chosen: jax.Array | None = None, part: int | None = None
) -> Weight:
    """Return a weight with its adapter, or the weight where it has none.

    Args:
        base: the weight.
        adapters: of its module, by name.
        name: of the weight in the module.
        chosen: float32 [B, T, N], 1 at the adapter of each token; None for none, and for a model with a single one.
        part: see `Adapter.on`.
    """
    return base if adapters is None or name not in adapters else adapters[name].on(base, chosen, part)


@dataclass(frozen=True)
class Addition:
    """The adapter of one weight.

    Attributes:
        layer: of the weight; None outside of the layers.
        weight: its name, see the table above.
        rank: of the product A B.
        scaling: alpha / rank, or alpha / sqrt(rank).
    """

    layer: int | None
    weight: str
    rank: int
    scaling: float


@dataclass(frozen=True)
class Lora:
    """Which weights of a model have an adapter. Hashable, so it can be part of a jit key.

    Attributes:
        additions: the weights.
        names: of several adapters side by side, in order; the ranks of `additions` are those of all together. Empty for one.
    """

    additions: tuple[Addition, ...]
    names: tuple[str, ...] = ()

    def of(self, weight: str, layers: Sequence[int | None]) -> tuple[list[int], list[float]] | None:
        """Return rank and scaling of a weight in each of these layers, 0 where it has no adapter; None where none has."""
        found = {one.layer: one for one in self.additions if one.weight == weight and one.layer in layers}
        if not found:
            return None
        none = Addition(None, weight, 0, 0.0)
        chosen = [found.get(layer, none) for layer in layers]
        return [one.rank for one in chosen], [one.scaling for one in chosen]


def is_adapter(path: Sequence[object]) -> bool:
    """Whether a path of `nnx.to_flat_state` is that of an adapter's variable."""
    return "adapters" in path
