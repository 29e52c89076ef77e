"""Causal grouped-query attention over a paged key/value cache (Kwon et al. 2023, arXiv 2309.06180).

| name     | runs on    | what it is                                               | quantised cache |
|----------|------------|----------------------------------------------------------|-----------------|
| `loop`   | everything | plain JAX; work grows with the slots in use              | int8, fp8       |
| `ragged` | TPU        | JAX's Pallas kernel, for prompts and decode steps alike  | no              |

Both run per device under `jax.shard_map`: shards of the batch have pools of their own, and heads are divided.

Shapes: see `rows`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.choice import Paged, target
from qwen3_jax.kernels.paged import loop, ragged
from qwen3_jax.kernels.paged.pages import CacheType, Combined, HeadMajor, Pages
from qwen3_jax.kernels.paged.rows import Rows, places, slots
from sharding import Placement

__all__ = ["CacheType", "Pages", "Rows", "new_pages", "page_size", "paged_attention"]


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
    implementation: Paged = "auto",
    placement: Placement = Placement(),  # noqa: B008 - frozen
) -> Pages:
    """Return zeroed pages [shards, pages, ...] in the layout that the implementation reads.

    Raises:
        UserError: the implementation asked for by name cannot run here, or not on a quantised cache.
    """
    platform = target(placement)
    if implementation == "ragged" and platform != "tpu":
        raise UserError(f"paged attention 'ragged' needs a TPU, and this is a {platform.upper()}; choose 'auto'.")
    heads = max(kv_heads // placement.parts("kv_heads"), 1)
    needs = f"a cache that is not {quantized}" if quantized is not None else ragged.why_not(heads, head_dim)
    if implementation == "ragged" and needs is not None:
        raise UserError(f"paged attention 'ragged' needs {needs}; choose 'loop'.")
    made: Pages
    if implementation == "ragged" or (implementation == "auto" and platform == "tpu" and needs is None):
        made = Combined.empty(shards, pages, kv_heads, slots_per_page, head_dim, dtype)
    else:
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
        placement: where the arrays live.
    """
    b, t, n, h = q_btnh.shape
    k = k_bkth.shape[1]
    d, r, _ = rows.tables_drw.shape
    uniform = rows.counts_dr is None
    f = r * t if uniform else t
    counts_dr = jnp.full((d, r), t, jnp.int32) if rows.counts_dr is None else rows.counts_dr
    q_dfnh = q_btnh.reshape(d, f, n, h)
    k_dfkh, v_dfkh = (x.swapaxes(1, 2).reshape(d, f, k, h) for x in (k_bkth, v_bkth))

    def local(q_dfnh, k_dfkh, v_dfkh, pages, tables_drw, lengths_dr, counts_dr, first_page):
        """One shard of the batch."""
        tables_rw, lengths_r, counts_r = tables_drw[0], lengths_dr[0], counts_dr[0]
        page_f, offset_f = slots(tables_rw, places(lengths_r, counts_r, f), pages.page_size)
        pages = pages.write(page_f + first_page, offset_f, k_dfkh[0], v_dfkh[0], target(placement) == "cpu")
        tables_rw = tables_rw + first_page
        if isinstance(pages, Combined):
            out_fnh = ragged.attention(q_dfnh[0], pages, tables_rw, lengths_r, counts_r)
        elif uniform:
            q_rtnh = q_dfnh.reshape(r, t, *q_dfnh.shape[2:])
            out_rtnh, pages = loop.decode(q_rtnh, pages, tables_rw, lengths_r)
            out_fnh = out_rtnh.reshape(q_dfnh.shape[1:])
        else:
            out_fnh, pages = loop.prefill(q_dfnh[0], pages, tables_rw, lengths_r, counts_r)
        return out_fnh[None], pages

    arrays = (q_dfnh, k_dfkh, v_dfkh, pages, rows.tables_drw, rows.lengths_dr, counts_dr, jnp.asarray(first_page))
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
            in_specs=(tokens, tokens, tokens, of_pages, table, table, table, PartitionSpec()),
            out_specs=(tokens, of_pages),
            check_vma=False,  # Pallas calls do not say over which axes their results vary
        )(*arrays)
    return out_dfnh.reshape(b, t, n, h), pages
