"""Every form of a kernel that the code can choose on a GPU, as programs to lower for any card.

`FORMS[name](card)` returns the lowered program, or raises the `UserError` with which the code refuses the form on that card.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from qwen3_jax.kernels import Execution, Kernels, Rows, attention, expert_mlp, linear, new_pages, paged_attention
from qwen3_jax.kernels.experts.stack import Stacked
from qwen3_jax.kernels.quantized import quantize_weight
from sharding import SERVING, TRAINING, Placement
from tests.helpers.gpu_targets import gpu_mesh

FORMS: dict[str, Callable[[str], jax.stages.Lowered]] = {}


def form(name: str, function: Callable, *args, **options) -> None:
    FORMS[name] = functools.partial(function, *args, **options)


def array(placement: Placement, shape, axes, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=placement.sharding(axes, shape))


def of_attention(
    kernel, card, *, t=1024, n=8, k=2, h=128, packed=False, gradient=True, dtype=jnp.bfloat16, balanced=False, **axes
):
    placement = Placement(gpu_mesh(card, **axes), TRAINING)
    execution = Execution(placement, Kernels(attention=kernel), balanced=balanced)
    q = array(placement, (2, t, n, h), ("batch", "length", "heads", None), dtype)
    kv = array(placement, (2, k, t, h), ("batch", "kv_heads", "length", None), dtype)
    segments = array(placement, (2, t), ("batch", "length"), jnp.int32) if packed else None

    def loss(q, k, v, segments):
        return attention(q, k, v, segments, execution).astype(jnp.float32).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)) if gradient else loss).lower(q, kv, kv, segments)


for kernel in ("cudnn", "triton", "chunked"):
    form(f"attention {kernel}, forward", of_attention, kernel, gradient=False)
    form(f"attention {kernel}, gradient", of_attention, kernel)
    form(f"attention {kernel}, gradient, packed", of_attention, kernel, packed=True)
    form(f"attention {kernel}, gradient, packed, split length", of_attention, kernel, packed=True, context=4)
    form(f"attention {kernel}, gradient, 1,001 tokens", of_attention, kernel, t=1001)
    form(f"attention {kernel}, gradient, packed, float16", of_attention, kernel, packed=True, dtype=jnp.float16)
    form(f"attention {kernel}, gradient, float32", of_attention, kernel, dtype=jnp.float32)
    for h in (16, 64, 96, 256):
        form(f"attention {kernel}, gradient, packed, heads of {h}", of_attention, kernel, packed=True, h=h)
    form(f"attention {kernel}, gradient, heads of 64", of_attention, kernel, h=64)
form("attention triton, balanced over 4", of_attention, "triton", packed=True, balanced=True, context=4)
form("attention auto, packed, tensor 2 and data 2", of_attention, "auto", packed=True, tensor=2, data=2)
form("attention auto, float32", of_attention, "auto", dtype=jnp.float32)


def of_experts(
    kernel,
    card,
    *,
    n=1024,
    d=2048,
    f=768,
    e=16,
    k=8,
    gradient=True,
    dtype=jnp.bfloat16,
    layers=0,
    quantize=None,
    **axes,
):
    placement = Placement(gpu_mesh(card, **axes), SERVING if layers or quantize else TRAINING)
    execution = Execution(placement, Kernels(experts=kernel))
    spec = {"x": ("batch", "length", "hidden"), "r": ("batch", "length", None)}
    x = array(placement, (4, n // 4, d), spec["x"], dtype) if n > 4 else array(placement, (1, n, d), spec["x"], dtype)
    index = array(placement, (*x.shape[:2], k), spec["r"], jnp.int32)
    weight = array(placement, (*x.shape[:2], k), spec["r"], dtype)
    lead = (layers,) if layers else ()
    names = [("expert", "embed", "mlp")] * 2 + [("expert", "mlp", "embed")]
    weights = [
        array(placement, (*lead, *shape), (*[None] * len(lead), *axes), dtype)
        for shape, axes in zip([(e, d, f), (e, d, f), (e, f, d)], names, strict=True)
    ]
    if quantize:
        of = functools.partial(quantize_weight, weight_type=quantize, summed=[1])
        weights = [jax.eval_shape(of, jax.ShapeDtypeStruct(w.shape, w.dtype)) for w in weights]
    layer = jax.ShapeDtypeStruct((), jnp.int32)

    def run(x, weight, gate, up, down, index, layer):
        if layers:
            gate, up, down = (Stacked(w, layer) for w in (gate, up, down))
        return expert_mlp(x, index, weight, gate, up, down, execution).astype(jnp.float32).sum()

    function = jax.grad(run, (0, 1, 2, 3, 4)) if gradient else run
    return jax.jit(function).lower(x, weight, *weights, index, layer)


form("experts grouped, gradient", of_experts, "grouped")
form("experts grouped, gradient, float32", of_experts, "grouped", dtype=jnp.float32)
form("experts grouped, gradient, float16", of_experts, "grouped", dtype=jnp.float16)
form("experts grouped, gradient, widths 200 and 72", of_experts, "grouped", d=200, f=72)
form("experts grouped, gradient, 100 tokens", of_experts, "grouped", n=100)
form("experts grouped, gradient, 4,096 tokens of 128 experts", of_experts, "grouped", n=4096, e=128)
form("experts grouped, one token", of_experts, "grouped", n=1, e=128, gradient=False)
form("experts grouped, one token, in a stack", of_experts, "grouped", n=1, e=128, gradient=False, layers=4)
form("experts grouped, one token, float32", of_experts, "grouped", n=1, gradient=False, dtype=jnp.float32)
form("experts triton, gradient", of_experts, "triton")
form("experts ragged_dot, gradient", of_experts, "ragged_dot")
form("experts auto, gradient, over 4 devices", of_experts, "auto", expert=4)
form("experts all_gather, gradient, over 4 devices", of_experts, "all_gather", expert=4)
form("experts auto, gradient, data 2 and tensor 2", of_experts, "auto", data=2, tensor=2)
form("experts auto, a decode step in a stack over 4 devices", of_experts, "auto", expert=4, gradient=False, layers=4)
for weight_type in ("int8", "fp8", "int4"):
    form(f"experts grouped, one token, {weight_type}", of_experts, "grouped", n=1, gradient=False, quantize=weight_type)


def of_pages(kernel, card, *, dtype=jnp.bfloat16, quantized=None, size=32, h=128, t=1, n=16, k=4, pages=512, **axes):
    placement = Placement(gpu_mesh(card, **axes), SERVING)
    execution = Execution(placement, Kernels(paged=kernel))
    pool = jax.eval_shape(
        lambda: new_pages(1, pages, k, size, h, dtype, quantized=quantized, execution=Execution(Placement(), Kernels()))
    )
    # Asked for the refusal: the pool above is described without devices.
    jax.eval_shape(lambda: new_pages(1, pages, k, size, h, dtype, quantized=quantized, execution=execution))
    pool = jax.tree.map(lambda x: array(placement, x.shape, pool.axes[: x.ndim], _stored(x.dtype, dtype)), pool)
    q = array(placement, (4, t, n, h), (None, None, "heads", None), dtype)
    kv = array(placement, (4, k, t, h), (None, "kv_heads", None, None), dtype)
    rows = Rows(jax.ShapeDtypeStruct((1, 4, 40), jnp.int32), jax.ShapeDtypeStruct((1, 4), jnp.int32))
    return jax.jit(functools.partial(paged_attention, execution=execution), donate_argnums=3).lower(
        q, kv, kv, pool, rows
    )


def _stored(found, dtype):
    return dtype if found == jnp.uint16 else found  # the CPU's form of bfloat16


for name, options in {
    "bfloat16": {},
    "float32": {"dtype": jnp.float32},
    "float16": {"dtype": jnp.float16},
    "int8": {"quantized": "int8"},
    "fp8": {"quantized": "fp8"},
}.items():
    for size in (16, 32, 64, 128):
        form(f"paged triton, {name}, pages of {size}", of_pages, "triton", size=size, **options)
    form(f"paged loop, {name}", of_pages, "loop", **options)
    form(f"paged auto, {name}", of_pages, "auto", **options)
for h in (64, 96, 256):
    form(f"paged auto, bfloat16, heads of {h}", of_pages, "auto", h=h)
form("paged auto, bfloat16, 4 tokens of a row", of_pages, "auto", t=4)
form("paged auto, bfloat16, tensor 4", of_pages, "auto", tensor=4)


def of_linear(card, *, weight_type=None, quantization=None, gradient=False, rows=4):
    placement = Placement(gpu_mesh(card), SERVING)
    execution = Execution(placement, quantization=quantization)
    x = array(placement, (1, rows, 1024), (None, None, None), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((1024, 512), jnp.bfloat16)
    if weight_type:
        w = jax.eval_shape(functools.partial(quantize_weight, weight_type=weight_type, summed=[0]), w)
    w = jax.tree.map(lambda a: array(placement, a.shape, (None,) * a.ndim, a.dtype), w)

    def run(x, w):
        return linear("btd,df->btf", x, w, execution).astype(jnp.float32).sum()

    return jax.jit(jax.grad(run, (0, 1)) if gradient else run).lower(x, w)


for weight_type in ("int8", "fp8", "int4"):
    form(f"product with {weight_type} weights", of_linear, weight_type=weight_type)
for quantization in ("int8", "fp8"):
    form(f"training in {quantization}", of_linear, quantization=quantization, gradient=True, rows=512)
