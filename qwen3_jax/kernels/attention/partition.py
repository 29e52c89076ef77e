"""How attention is divided over a mesh: by batch and heads without communication, by length with an all-gather of the keys.

Kernels and loops over blocks run per device under `jax.shard_map`, since the compiler cannot partition the former and would
reshard the latter. Where the length is split (context parallelism), each device keeps its queries and gathers the keys and
values of the whole row, which is cheap for the few key/value heads of grouped-query attention; the gradient is the transpose,
a reduce-scatter (Llama 3 report, arXiv 2407.21783, section 3.3.2).

Shapes: b batch, t this device's queries, s all keys, n query heads, k key/value heads, h head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from qwen3_jax.kernels.platform import platform_of
from sharding import Placement, ShardingError, balanced_order

# The name of attention's output, and of its log-sum-exp where it is available, for policies of jax.checkpoint.
SAVE_NAME = "attention_out"


@dataclass(frozen=True)
class Split:
    """The mesh axes over which one call is divided; an empty tuple means "not divided".

    Attributes:
        batch, heads, length: mesh axes per dimension; key/value heads go with the query heads.
        parts: the number of parts of the length.
    """

    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    length: tuple[str, ...] = ()
    parts: int = 1

    @property
    def queries(self) -> PartitionSpec:
        return PartitionSpec(self.batch or None, self.length or None, self.heads or None, None)

    @property
    def keys(self) -> PartitionSpec:
        return PartitionSpec(self.batch or None, self.heads or None, self.length or None, None)

    @property
    def tokens(self) -> PartitionSpec:
        return PartitionSpec(self.batch or None, self.length or None)


def split(placement: Placement, q_shape: tuple[int, ...], kv_heads: int, strict: str | None = None) -> Split:
    """Return how a call with queries of shape [B, T, N, H] is divided.

    Args:
        placement: mesh and rules.
        q_shape: of the whole array.
        kv_heads: of the whole array.
        strict: the name of the implementation that the user asked for: a dimension that does not divide is then an error.
            With None it is not divided, and the devices of that axis do the same work.

    Raises:
        ShardingError: see `strict`.
    """
    if placement.mesh is None:
        return Split()
    b, t, n, _ = q_shape

    def axes(name: str, dimensions: dict[str, int]) -> tuple[str, ...]:
        names, parts = placement.axes(name), placement.parts(name)
        for description, size in dimensions.items():
            if size % parts:
                if strict is None:
                    return ()
                raise ShardingError(
                    f"attention {strict!r} cannot divide {size} {description} by {parts}, the size of mesh axis "
                    f"{' x '.join(map(repr, names))}; choose a size that divides, or attention 'auto'."
                )
        return names

    heads = axes("heads", {"query heads": n, "key/value heads": kv_heads})
    if placement.spec(("kv_heads",))[0] != placement.spec(("heads",))[0]:
        heads = ()  # A group's queries and its keys would lie on different devices.
    length = axes("length", {"tokens": t})
    return Split(axes("batch", {"rows": b}), heads, length, placement.parts("length") if length else 1)


def per_device(
    local: Callable, placement: Placement, split: Split, q_btnh, k_bkth, v_bkth, segment_ids_bt, *extra: Any
):
    """Return `local(q, k, v, segment ids, *extra values)` of each device's part, joined: [B, T, N, H].

    Args:
        local: gets this device's part of each array; segment ids may be None.
        extra: pairs (array or pytree, its PartitionSpec or pytree of them).
    """
    values = [value for value, _ in extra]
    # On GPU over one device too: a Pallas kernel learns from the mesh for which card it is compiled.
    if placement.mesh is None or (placement.mesh.size == 1 and platform_of(placement) != "gpu"):
        return local(q_btnh, k_bkth, v_bkth, segment_ids_bt, *values)
    arrays = q_btnh, k_bkth, v_bkth, segment_ids_bt, *values
    specs = split.queries, split.keys, split.keys, split.tokens, *(spec for _, spec in extra)
    if segment_ids_bt is None:  # shard_map has no spec for None
        arrays, specs = arrays[:3] + arrays[4:], specs[:3] + specs[4:]

    def body(q_btnh, k_bkth, v_bkth, *rest):
        segments = (None,) if segment_ids_bt is None else ()
        return local(q_btnh, k_bkth, v_bkth, *segments, *rest)

    # Unchecked: Pallas calls do not declare over which axes their results vary.
    return jax.shard_map(body, mesh=placement.mesh, in_specs=specs, out_specs=split.queries, check_vma=False)(*arrays)


def local_places(t: int, split: Split, balanced: bool) -> jax.Array:
    """Return the places in the row of this device's T queries, int32 [T]. Inside `per_device`."""
    if split.parts == 1:
        return jnp.arange(t, dtype=jnp.int32)
    whole = t * split.parts
    places = balanced_order(whole, split.parts) if balanced else np.arange(whole, dtype=np.int32)
    return jnp.asarray(places.reshape(split.parts, t))[jax.lax.axis_index(split.length)]


def local_keys(k_bkth, v_bkth, segment_ids_bt, split: Split, balanced: bool):
    """Return the keys, values and segment ids of whole rows, in the order of the row. Inside `per_device`."""
    if split.parts == 1:
        return k_bkth, v_bkth, segment_ids_bt

    def whole(x, axis):
        x = jax.lax.all_gather(x, split.length, axis=axis, tiled=True)
        if not balanced:
            return x
        # Part i holds chunks i and 2 C - 1 - i: the first chunks ascend, the second ones descend.
        pairs = x.reshape(*x.shape[:axis], split.parts, 2, -1, *x.shape[axis + 1 :])
        ascending, descending = (jax.lax.index_in_dim(pairs, half, axis + 1, keepdims=False) for half in (0, 1))
        return jnp.concatenate([ascending, jnp.flip(descending, axis)], axis=axis).reshape(x.shape)

    return whole(k_bkth, 2), whole(v_bkth, 2), None if segment_ids_bt is None else whole(segment_ids_bt, 1)
