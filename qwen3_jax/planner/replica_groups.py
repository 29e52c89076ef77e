"""The device groups of a collective, in every form in which XLA prints them (xla/hlo/ir/replica_group.cc)."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from qwen3_jax.planner.hlo import UnreadableProgram


@functools.lru_cache(maxsize=4096)
def replica_groups(attributes: str, partitions: int) -> np.ndarray:
    """Return the device groups of a collective, int [groups, devices], as numbers of partitions.

    Four spellings: `{{0,1},{2,3}}`; `{}`, all in one; `[4,2]<=[2,4]T(1,0)`, an iota reshaped and transposed; and
    `mesh['a'=2,'b'=4], device_ids=([8]T(0)) {'b','a':(1)2}`, axes (or parts of axes, `:(before)size`) of a mesh.

    Raises:
        UnreadableProgram: the attributes hold none of these.
    """
    match = re.search(
        r"replica_groups=(\{[\d,{} ]*\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|mesh\[[^\]]*\][^{]*\{[^}]*\})",
        attributes,
    )
    if match is None:
        raise UnreadableProgram(f"there are no replica groups in {attributes[:120]!r}")
    text = match[1]
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        shape = text[1 : text.index("]")]
        return _iota(text[text.index("<=") + 2 :]).reshape([int(n) for n in shape.split(",")])
    groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    return np.asarray(groups) if groups else np.arange(partitions)[None]


def _iota(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: 0..7 as [2, 4], transposed and flattened."""
    dims = [int(n) for n in text[1 : text.index("]")].split(",")]
    order = re.search(r"T\(([\d,]+)\)", text)
    array = np.arange(math.prod(dims)).reshape(dims)
    return (array.transpose([int(n) for n in order[1].split(",")]) if order else array).reshape(-1)


def _mesh_groups(text: str) -> np.ndarray:
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", text[: text.index("]")])]
    ids = np.arange(math.prod(size for _, size in axes))
    given = re.search(r"device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?|[\d,]+)\)", text)
    if given:
        ids = _iota(given[1]) if given[1].startswith("[") else np.asarray([int(n) for n in given[1].split(",")])
    grouped_axes = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", text[text.rindex("{") :])
    # Cut every axis into the parts that are named, so that each part is a dimension of its own.
    dims: list[int] = []
    place: dict[tuple[str, int], int] = {}
    for name, size in axes:
        parts = sorted((int(before or 1), int(part or size)) for n, before, part in grouped_axes if n == name)
        reached = 1
        for before, part in parts:
            if before > reached:
                dims.append(before // reached)
            place[name, before] = len(dims)
            dims.append(part)
            reached = before * part
        if reached < size:
            dims.append(size // reached)
    grouped = [place[name, int(before or 1)] for name, before, _ in grouped_axes]
    rest = [d for d in range(len(dims)) if d not in grouped]
    members = math.prod(dims[d] for d in grouped)
    return ids.reshape(dims).transpose(rest + grouped).reshape(-1, members)
