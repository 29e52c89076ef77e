"""Causal grouped-query attention over a paged key/value cache (Kwon et al. 2023, arXiv 2309.06180).

| name     | runs on    | what it is                                               | quantised cache | dual chunks |
|----------|------------|----------------------------------------------------------|-----------------|-------------|
| `loop`   | everything | plain JAX; work grows with the slots in use              | int8, fp8       | yes         |
| `ragged` | TPU        | JAX's Pallas kernel, for prompts and decode steps alike  | no              | no          |
| `triton` | GPU        | JAX's Pallas kernel for decode steps; prompts by `loop`  | int8, fp8       | no          |

Both run per device under `jax.shard_map`: shards of the batch have pools of their own, and heads are divided.

Shapes: see `rows`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.choice import Paged, target
from qwen3_jax.kernels.paged import loop, ragged, triton
from qwen3_jax.kernels.paged.pages import CacheType, Combined, HeadMajor, Pages
from qwen3_jax.kernels.paged.rows import Rows, places, slots
from sharding import Placement

__all__ = ["CacheType", "Chunks", "Pages", "Rows", "new_pages", "page_size", "paged_attention"]


class Chunks(NamedTuple):
    """Dual Chunk Attention (An et al. 2024, arXiv 2402.17463): queries depend on how many chunks a key lies before them.

    Attributes:
        size: tokens of a chunk; pages divide it.
        before_btnh: queries against keys of the chunk before their own.
        earlier_btnh: queries against keys of all chunks before that.
    """

    size: int
    before_btnh: jax.Array
    earlier_btnh: jax.Array


def page_size(placement: Placement) -> int:
    """Slots per page that suit the platform: the smaller, the more prompts share; a TPU's kernel copies page by page."""
    return 128 if target(placement) == "tpu" else 32


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
    implementation: Paged = "auto",
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> Pages:
    """Return zeroed pages [shards, pages, ...] in the layout that the implementation reads.

    Raises:
        UserError: the implementation asked for by name cannot run here, or not on a quantised cache.
    """
    platform = target(placement)
    for name, needed in (("ragged", "tpu"), ("triton", "gpu")):
        if implementation == name and platform != needed:
            raise UserError(
                f"paged attention {name!r} needs a {needed.upper()}, and this is a {platform.upper()}; choose 'auto'."
            )
    no_triton = "a model without Dual Chunk Attention" if chunked else triton.why_not(head_dim, slots_per_page)
    if implementation == "triton" and no_triton is not None:
        raise UserError(f"paged attention 'triton' needs {no_triton}; choose 'loop'.")
    heads = max(kv_heads // placement.parts("kv_heads"), 1)
    needs = ragged.why_not(heads, head_dim)
    if quantized is not None:
        needs = f"a cache that is not {quantized}"
    if chunked:
        needs = "a model without Dual Chunk Attention"
    if implementation == "ragged" and needs is not None:
        raise UserError(f"paged attention 'ragged' needs {needs}; choose 'loop'.")
    made: Pages
    if implementation == "ragged" or (implementation == "auto" and platform == "tpu" and needs is None):
        made = Combined.empty(shards, pages, kv_heads, slots_per_page, head_dim, dtype)
    else:
        if platform == "cpu" and quantized is None and dtype == jnp.bfloat16:
            dtype = jnp.uint16  # XLA:CPU would convert the whole pool to float32 and back to write one token
        made = HeadMajor.empty(shards, pages, kv_heads, slots_per_page, head_dim, dtype, quantized)
    return jax.tree.map(lambda x: placement.constrain(x, made.axes[: x.ndim]), made)


def paged_attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    pages: Pages,
    rows: Rows,
    first_page: jax.Array | int = 0,
    *,
    chunks: Chunks | None = None,
    implementation: Paged = "auto",
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> tuple[jax.Array, Pages]:
    """Put new keys and values into their rows' pages and return the attention of the new queries, [B, T, N, H], and the pages.

    Products accumulate and softmax runs in float32. Tokens that fill up a shard get numbers without meaning.

    Args:
        q_btnh: queries: of B rows with T new tokens each, or where `rows` has counts of B shards with T tokens each.
        k_bkth, v_bkth: keys and values; K divides N.
        pages: the pool.
        rows: where the rows' pages are.
        first_page: added to the numbers in the tables: layers that share an array lie one after another.
        chunks: what queries are against keys of other chunks than their own, or None.
        implementation: what `new_pages` was told.
        placement: where the arrays live.
    """
    b, t, n, h = q_btnh.shape
    k = k_bkth.shape[1]
    d, r, _ = rows.tables_drw.shape
    uniform = rows.counts_dr is None
    f = r * t if uniform else t
    counts_dr = jnp.full((d, r), t, jnp.int32) if rows.counts_dr is None else rows.counts_dr
    queries = (q_btnh,) if chunks is None else (q_btnh, chunks.before_btnh, chunks.earlier_btnh)
    q_cdfnh = jnp.stack([q.reshape(d, f, n, h) for q in queries])
    chunk = None if chunks is None else chunks.size
    by_triton = target(placement) == "gpu" and implementation != "loop" and chunk is None
    by_triton = by_triton and triton.why_not(h, pages.page_size) is None
    k_dfkh, v_dfkh = (x.swapaxes(1, 2).reshape(d, f, k, h) for x in (k_bkth, v_bkth))

    def local(q_cdfnh, k_dfkh, v_dfkh, pages, tables_drw, lengths_dr, counts_dr, first_page):
        """One shard of the batch."""
        tables_rw, lengths_r, counts_r = tables_drw[0], lengths_dr[0], counts_dr[0]
        page_f, offset_f = slots(tables_rw, places(lengths_r, counts_r, f), pages.page_size)
        pages = pages.write(page_f + first_page, offset_f, k_dfkh[0], v_dfkh[0], target(placement) == "cpu")
        tables_rw = tables_rw + first_page
        if isinstance(pages, Combined):
            out_fnh = ragged.attention(q_cdfnh[0, 0], pages, tables_rw, lengths_r, counts_r)
        elif uniform and by_triton:
            out_fnh = triton.decode(q_cdfnh[0].reshape(r, t, *q_cdfnh.shape[3:]), pages, tables_rw, lengths_r)
            out_fnh = out_fnh.reshape(q_cdfnh.shape[2:])
        elif uniform:
            q_crtnh = q_cdfnh.reshape(-1, r, t, *q_cdfnh.shape[3:])
            out_rtnh, pages = loop.decode(q_crtnh, pages, tables_rw, lengths_r, chunk)
            out_fnh = out_rtnh.reshape(q_cdfnh.shape[2:])
        else:
            out_fnh, pages = loop.prefill(q_cdfnh[:, 0], pages, tables_rw, lengths_r, counts_r, chunk)
        return out_fnh[None], pages

    arrays = (q_cdfnh, k_dfkh, v_dfkh, pages, rows.tables_drw, rows.lengths_dr, counts_dr, jnp.asarray(first_page))
    if placement.mesh is None:
        out_dfnh, pages = local(*arrays)
    # On a mesh of one device too: only the mesh tells a Pallas kernel for which chip it is compiled.
    else:
        divides = k % placement.parts("kv_heads") == 0 and n % placement.parts("kv_heads") == 0
        axes = {"batch": (placement.axes("batch") or None) if d > 1 else None, None: None}
        axes["kv_heads"] = (placement.axes("kv_heads") or None) if divides else None
        tokens, table = PartitionSpec(axes["batch"], None, axes["kv_heads"], None), PartitionSpec(axes["batch"])
        of_pages = jax.tree.map(lambda x: PartitionSpec(*(axes[name] for name in pages.axes[: x.ndim])), pages)
        out_dfnh, pages = jax.shard_map(
            local,
            mesh=placement.mesh,
            in_specs=(PartitionSpec(None, *tokens), tokens, tokens, of_pages, table, table, table, PartitionSpec()),
            out_specs=(tokens, of_pages),
            check_vma=False,  # Pallas calls do not say over which axes their results vary
        )(*arrays)
    return out_dfnh.reshape(b, t, n, h), pages
