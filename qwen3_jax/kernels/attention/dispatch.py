"""`attention`: the implementation asked for, or the platform's fastest.

Shapes: b batch, t queries, s keys, n query heads, k key/value heads, g queries per key/value head (n = k g), h head size.
"""

import jax

from qwen3_jax.errors import UserError
from qwen3_jax.kernels.attention import chunked, cudnn, reference, splash, triton
from qwen3_jax.kernels.attention.partition import Split, split
from qwen3_jax.kernels.card import Card
from qwen3_jax.kernels.execution import ONE_DEVICE, AttentionKernel, Execution

_PLATFORMS = {
    "splash": "tpu",
    "cudnn": "gpu",
    "triton": "gpu",
}  # of a platform, the fastest first; the rest run anywhere


def attention(
    q_btnh: jax.Array,
    k_bkth: jax.Array,
    v_bkth: jax.Array,
    segment_ids_bt: jax.Array | None = None,
    execution: Execution = ONE_DEVICE,
) -> jax.Array:
    """Return the causal self-attention of whole sequences, [B, T, N, H] in q's dtype.

    Products accumulate and softmax runs in float32. The output, and the log-sum-exp where the implementation has one, carry
    the name `partition.SAVE_NAME` ("attention_out") for policies of `jax.checkpoint`.

    Args:
        q_btnh: queries.
        k_bkth, v_bkth: keys and values; K divides N.
        segment_ids_bt: int32, a token sees only tokens of its own segment.
        execution: placement, the order of the tokens (`balanced`), and `kernels.attention`: "auto" takes the platform's own
            kernel where it can run, else `chunked`.

    Raises:
        UserError: the implementation asked for by name cannot run on this platform or on these arrays.
        ShardingError: a dimension does not divide by the mesh axes it is split over. With "auto" only the length of a
            balanced row must divide.
    """
    name, parts = _choose(q_btnh, k_bkth.shape[1], segment_ids_bt is not None, execution)
    if name == "reference":
        return reference.attention(q_btnh, k_bkth, v_bkth, segment_ids_bt, execution)
    if name == "splash":
        return splash.attention(q_btnh, k_bkth, v_bkth, segment_ids_bt, execution, parts)
    if name == "cudnn":
        return cudnn.attention(q_btnh, k_bkth, v_bkth, execution, parts)
    if name == "triton":
        return triton.attention(q_btnh, k_bkth, v_bkth, segment_ids_bt, execution, parts)
    return chunked.attention(q_btnh, k_bkth, v_bkth, segment_ids_bt, execution, parts)


def _choose(q: jax.Array, kv_heads: int, packed: bool, execution: Execution) -> tuple[AttentionKernel, Split]:
    """Return the implementation to run and how it is divided over the mesh."""
    placement, name = execution.placement, execution.kernels.attention
    execution.order(q.shape[1])  # raises where a balanced row does not divide
    if name == "auto":
        parts = split(placement, q.shape, kv_heads)
        return fastest(execution.platform, execution.card, q, packed, parts), parts
    parts = Split() if name == "reference" else split(placement, q.shape, kv_heads, strict=name)
    needs = _missing(name, execution.platform, execution.card, q, packed, parts)
    if needs is not None:
        raise UserError(f"attention {name!r} needs {needs}; choose another, or 'auto'.")
    return name, parts


def fastest(
    platform: str, card: Card | None, q: jax.Array | jax.ShapeDtypeStruct, packed: bool, parts: Split
) -> AttentionKernel:
    """Return the fastest implementation that can run on queries [B, T, N, H] of this shape and dtype."""
    kernels: tuple[AttentionKernel, ...] = ("splash", "cudnn", "triton")
    for name in kernels:
        if _missing(name, platform, card, q, packed, parts) is None:
            return name
    # On CPU at every length: on 2 cores, value and gradient of 16 rows of 32 tokens take 0.7 ms (reference: 1.4), of 128
    # tokens 9 (22), of 1 row of 1,024 tokens 76 (602), of 2,048 tokens 176 (1,254).
    return "chunked"


def _missing(name: str, platform: str, card: Card | None, q, packed: bool, parts: Split) -> str | None:
    """Return what an implementation would need to run, or None where it can."""
    needed = _PLATFORMS.get(name, platform)
    if platform != needed:
        return f"a {needed.upper()}, and this is a {platform.upper()}"
    if name == "splash":
        return splash.why_not(q.shape, parts)
    if name == "cudnn":
        return cudnn.why_not(card, q, packed, parts)
    if name == "triton":
        return triton.why_not(card, q)
    return None
