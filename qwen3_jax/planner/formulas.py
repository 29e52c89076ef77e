"""Costs of single instructions: FLOPs of convolutions and kernels, bytes of collectives."""

from __future__ import annotations

import functools
import json
import re

import numpy as np

from qwen3_jax.planner.hlo import Instruction


def ring_bytes(kind: str, size: float, members: int) -> float:
    """Return the bytes that each of `members` devices sends, with `size` bytes of operands each (ring algorithm)."""
    share = (members - 1) / members
    return {
        "all-gather": size * (members - 1),
        "all-reduce": 2 * size * share,
        "reduce-scatter": size * share,
        "all-to-all": size * share,
        "ragged-all-to-all": size * share,  # at most: the operand's rows, not the padded result's
        "collective-broadcast": size,
    }[kind]


def estimate(i: Instruction) -> dict[str, float] | None:
    """Return a Pallas kernel's cost estimate, {"flops": ..., "bytes_accessed": ...}, or None."""
    fields = re.search(r'"cost_estimate":(\{[^{}]*\})', i.attributes)
    return {name: float(value) for name, value in json.loads(fields[1]).items()} if fields else None


@functools.lru_cache(maxsize=65536)
def convolution_flops(lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...], attributes: str) -> float:
    """Return the FLOPs of a convolution; positions that meet only padding or dilation holes are not counted.

    Args:
        lhs, rhs, out: dimensions of the operands and of the result.
        attributes: the instruction's, with `dim_labels=`, `window=` and group counts.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels is not None, attributes
    spatial = sorted(c for c in labels[1] if c.isdigit())  # the window's fields are in this order
    sides = [dict(zip(text, dims, strict=True)) for text, dims in zip(labels.groups(), (lhs, rhs, out), strict=True)]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window and window[1] else {}

    def per_dimension(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * len(spatial)

    batch_groups = re.search(r"batch_group_count=(\d+)", attributes)
    positions = 1.0
    for d, stride, pad, lhs_dilate, rhs_dilate in zip(
        spatial, per_dimension("stride", "1"), per_dimension("pad", "0_0"), per_dimension("lhs_dilate", "1"),
        per_dimension("rhs_dilate", "1"), strict=True,
    ):  # fmt: skip
        o = np.arange(sides[2][d])[:, None] * int(stride)
        k = np.arange(sides[1][d])[None] * int(rhs_dilate)
        at = o + k - int(pad.split("_")[0])
        hole = int(lhs_dilate)
        positions *= int(((at >= 0) & (at % hole == 0) & (at // hole < sides[0][d])).sum())
    # The kernel's input features are those of one feature group already.
    multiply_adds = sides[1]["i"] * sides[2]["f"] * sides[0]["b"] * positions
    return 2.0 * multiply_adds / (int(batch_groups[1]) if batch_groups else 1)
