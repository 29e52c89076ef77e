"""`paged_attention` and `new_pages`: the implementation asked for, or the platform's fastest.

Shapes: see `rows`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.execution import ONE_DEVICE, Execution
from qwen3_jax.kernels.paged import loop, ragged, triton
from qwen3_jax.kernels.paged.pages import CacheType, Combined, HeadMajor, Pages, cache_dtype
from qwen3_jax.kernels.paged.rows import Rows, places, slots
from qwen3_jax.kernels.platform import platform_of
from sharding import Placement


class Chunks(NamedTuple):
    """Dual Chunk Attention (An et al. 2024, arXiv 2402.17463): queries rotated for keys of earlier chunks.

    Attributes:
        size: tokens of a chunk, a multiple of the page size.
        before_btnh: queries against keys of the chunk before their own.
        earlier_btnh: queries against keys of all chunks before that.
    """

    size: int
    before_btnh: jax.Array
    earlier_btnh: jax.Array


def page_size(placement: Placement) -> int:
    """Slots per page that suit the platform: smaller pages share more prompts; a TPU's kernel copies page by page."""
    return 128 if platform_of(placement) == "tpu" else 32


def new_pages(
    shards: int,
    pages: int,
    kv_heads: int,
    slots_per_page: int,
    head_dim: int,
    dtype: Any,
    *,
    quantized: CacheType | None = None,
    chunked: bool = False,
    execution: Execution = ONE_DEVICE,
) -> Pages:
    """Return zeroed pages [shards, pages, ...] in the layout that the implementation reads.

    Args:
        shards: parts of the batch, each with a pool of `pages` pages.
        quantized: 8-bit storage type, or None for `dtype`.
        chunked: whether the model uses Dual Chunk Attention.
        execution: placement, and `kernels.paged`.

    Raises:
        UserError: the implementation asked for by name cannot run here, or not on a quantised cache.
    """
    placement, platform, name = execution.placement, execution.platform, execution.kernels.paged
    needed = {"ragged": "tpu", "triton": "gpu"}.get(name, platform)
    if platform != needed:
        raise UserError(
            f"paged attention {name!r} needs a {needed.upper()}, and this is a {platform.upper()}; choose 'auto'."
        )
    local_heads = max(kv_heads // placement.parts("kv_heads"), 1)
    stored = cache_dtype(dtype, quantized)
    slots = pages * local_heads * slots_per_page
    triton_needs = triton.why_not(execution.card, head_dim, dtype, stored, slots)
    ragged_needs = ragged.why_not(local_heads, head_dim)
    if quantized is not None:
        ragged_needs = f"a cache that is not {quantized}"
    if chunked:
        triton_needs = ragged_needs = "a model without Dual Chunk Attention"
    needs = {"ragged": ragged_needs, "triton": triton_needs}.get(name)
    if needs is not None:
        raise UserError(f"paged attention {name!r} needs {needs}; choose 'loop'.")
    pool: Pages
    if name == "ragged" or (name == "auto" and platform == "tpu" and ragged_needs is None):
        pool = Combined.empty(shards, pages, kv_heads, slots_per_page, head_dim, dtype)
    else:
        if platform == "cpu" and quantized is None and dtype == jnp.bfloat16:
            dtype = jnp.uint16  # XLA:CPU would convert the whole pool to float32 and back to write one token
        pool = HeadMajor.empty(shards, pages, kv_heads, slots_per_page, head_dim, dtype, quantized)
    return jax.tree.map(lambda x: placement.constrain(x, pool.axes[: x.ndim]), pool)


def paged_attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    pages: Pages,
    rows: Rows,
    first_page: jax.Array | int = 0,
    chunks: Chunks | None = None,
    execution: Execution = ONE_DEVICE,
) -> tuple[jax.Array, Pages]:
    """Write new keys and values to their rows' pages; return the attention of the new queries, [B, T, N, H], and the pages.

    Products accumulate and softmax runs in float32. The outputs of padding tokens are undefined.

    Args:
        q_btnh: queries of B rows with T new tokens each; if `rows` has counts, of B shards with T tokens each.
        k_bkth, v_bkth: keys and values; K divides N.
        pages: the pool.
        rows: the pages of each row.
        first_page: added to the page numbers in the tables; layers that share an array are stored one after another.
        chunks: the queries against keys of earlier chunks, or None.
        execution: what `new_pages` was given.
    """
    b, t, n, h = q_btnh.shape
    k = k_bkth.shape[1]
    d, r, _ = rows.tables_drw.shape
    uniform = rows.counts_dr is None
    f = r * t if uniform else t
    counts_dr = jnp.full((d, r), t, jnp.int32) if rows.counts_dr is None else rows.counts_dr
    queries = (q_btnh,) if chunks is None else (q_btnh, chunks.before_btnh, chunks.earlier_btnh)
    q_cdfnh = jnp.stack([q.reshape(d, f, n, h) for q in queries])
    k_dfkh, v_dfkh = (x.swapaxes(1, 2).reshape(d, f, k, h) for x in (k_bkth, v_bkth))
    arrays = (q_cdfnh, k_dfkh, v_dfkh, pages, rows.tables_drw, rows.lengths_dr, counts_dr, jnp.asarray(first_page))
    local: Callable = functools.partial(
        _one_shard, tokens=t if uniform else None, chunk=None if chunks is None else chunks.size, execution=execution
    )
    # On a mesh of one device too: a Pallas kernel learns from the mesh for which chip it is compiled.
    if execution.placement.mesh is not None:
        local = _per_device(local, pages, d, n, k, execution.placement)
    out_dfnh, pages = local(*arrays)
    return out_dfnh.reshape(b, t, n, h), pages


def _one_shard(
    q_cdfnh,
    k_dfkh,
    v_dfkh,
    pages: Pages,
    tables_drw,
    lengths_dr,
    counts_dr,
    first_page,
    *,
    tokens: int | None,
    chunk: int | None,
    execution: Execution,
):
    """Write and attend, for one shard of the batch (D = 1): `tokens` new tokens in every row, or None for `counts_dr`."""
    tables_rw, lengths_r, counts_r = tables_drw[0], lengths_dr[0], counts_dr[0]
    f, n, h = q_cdfnh.shape[2:]
    page_f, offset_f = slots(tables_rw, places(lengths_r, counts_r, f), pages.page_size)
    pages = pages.write(page_f + first_page, offset_f, k_dfkh[0], v_dfkh[0], execution.platform == "cpu")
    tables_rw = tables_rw + first_page
    if isinstance(pages, Combined):
        return ragged.attention(q_cdfnh[0, 0], pages, tables_rw, lengths_r, counts_r)[None], pages
    if tokens is None:
        serial = execution.platform == "cpu"
        out_fnh, pages = loop.prefill(q_cdfnh[:, 0], pages, tables_rw, lengths_r, counts_r, chunk, serial=serial)
        return out_fnh[None], pages
    rows = f // tokens
    if _by_triton(q_cdfnh, pages, chunk, execution):
        out_rtnh = triton.decode(q_cdfnh[0].reshape(rows, tokens, n, h), pages, tables_rw, lengths_r, execution.card)
    else:
        q_crtnh = q_cdfnh.reshape(-1, rows, tokens, n, h)
        out_rtnh, pages = loop.decode(q_crtnh, pages, tables_rw, lengths_r, chunk)
    return out_rtnh.reshape(f, n, h)[None], pages


def _by_triton(q_cdfnh: jax.Array, pages: HeadMajor, chunk: int | None, execution: Execution) -> bool:
    if execution.platform != "gpu" or execution.kernels.paged == "loop" or chunk is not None:
        return False
    card, h, slots = execution.card, q_cdfnh.shape[-1], pages.k.size // q_cdfnh.shape[-1]
    return triton.why_not(card, h, q_cdfnh.dtype, pages.k.dtype, slots) is None


def _per_device(
    local: Callable, pages: Pages, shards: int, heads: int, kv_heads: int, placement: Placement
) -> Callable:
    """Return `local` under `jax.shard_map`, divided by shards of the batch and, where they divide, by heads."""
    parts = placement.parts("kv_heads")
    batch = (placement.axes("batch") or None) if shards > 1 else None
    head = (placement.axes("kv_heads") or None) if kv_heads % parts == 0 and heads % parts == 0 else None
    mesh_axes = {"batch": batch, "kv_heads": head, None: None}
    tokens, table = PartitionSpec(batch, None, head, None), PartitionSpec(batch)
    of_pages = jax.tree.map(lambda x: PartitionSpec(*(mesh_axes[name] for name in pages.axes[: x.ndim])), pages)
    return jax.shard_map(
        local,
        mesh=placement.mesh,
        in_specs=(PartitionSpec(None, *tokens), tokens, tokens, of_pages, table, table, table, PartitionSpec()),
        out_specs=(tokens, of_pages),
        check_vma=False,  # Pallas calls do not declare over which axes their results vary
    )
