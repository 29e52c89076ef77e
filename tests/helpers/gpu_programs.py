"""Small programs as XLA compiles them for an H100, kept as text: tests of the HLO reader need no compiler for GPUs.

    JAX_PLATFORMS=cpu python -m tests.helpers.gpu_programs        # writes tests/planner/gpu_programs/NAME-JAX.hlo.txt

Needs what a plan for GPUs needs (`qwen3 plan --help`). Of the calls of Triton and Mosaic kernels the code is cut out.
"""

import functools
import re
import unittest.mock
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from qwen3_jax import planner
from qwen3_jax.planner import compile as planner_compile
from sharding import MeshConfig

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "tests/planner/gpu_programs"
P = PartitionSpec
# Sizes of the programs; tests count by hand with the same.
LAYERS, WIDTH, ROWS = 3, 256, 512
BATCH, LENGTH, HEADS, KV, HEAD = 2, 256, 4, 2, 64
EXPERTS, EXPERT_WIDTH, EXPERT_ROWS = 4, 128, 256
SLOTS, PAGE, PAGES = 512, 32, 40


def _mesh(**axes: int):
    count = 1
    for size in axes.values():
        count *= size
    topology = planner.topology(f"h100:{min(count, 8)}" + (f"x{count // 8}" if count > 8 else ""))
    return topology, planner.topology_mesh(topology, MeshConfig(**axes))


def _abstract(mesh, shape, *spec, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def fsdp_step():
    """The gradient of a stack of products over 8 GPUs, weights split: gathers and sums inside a loop."""
    topology, mesh = _mesh(data=8)

    def loss(w, x):
        def body(x, w):
            gathered = jax.lax.with_sharding_constraint(w.astype(jnp.bfloat16), NamedSharding(mesh, P()))
            return jnp.tanh(x @ gathered), None

        return jax.lax.scan(jax.checkpoint(body), x, w)[0].astype(jnp.float32).sum()

    arguments = (
        _abstract(mesh, (LAYERS, WIDTH, WIDTH), None, "data"),
        _abstract(mesh, (ROWS, WIDTH), "data", dtype="bfloat16"),
    )
    gradient = jax.grad(loss)
    out = NamedSharding(mesh, P(None, "data"))
    return topology, jax.jit(gradient, out_shardings=out), arguments, {}


def collectives():
    """One of each collective, by hand, over two nodes."""
    topology, mesh = _mesh(data=4, tensor=4)

    def body(x):
        x = jax.lax.all_to_all(x, "tensor", 0, 0, tiled=True)
        x = jax.lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)])
        x = x + jax.lax.psum(x, "data")
        return jax.lax.psum_scatter(x, "tensor", scatter_dimension=0, tiled=True)

    run = jax.shard_map(body, mesh=mesh, in_specs=P("data"), out_specs=P(("data", "tensor")), check_vma=False)
    return topology, jax.jit(run), (_abstract(mesh, (256, 256), "data"),), {}


def jax_attention():
    """Value and gradient of JAX's own Triton attention, each query head with keys of its own."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    topology, mesh = _mesh(data=1)
    sizes = BlockSizes(128, 64, block_q_dkv=64, block_kv_dkv=64, block_q_dq=64, block_kv_dq=64)

    def loss(q, k, v):
        return mha(q, k, v, None, causal=True, block_sizes=sizes).astype(jnp.float32).sum()

    q = _abstract(mesh, (BATCH, LENGTH, HEADS, HEAD), dtype="bfloat16")
    return topology, jax.jit(jax.value_and_grad(loss, (0, 1, 2))), (q, q, q), {}


def jax_paged_decode():
    """JAX's own Triton kernel over pages: a row for each head of keys and values, a table with room for more slots."""
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    topology, mesh = _mesh(data=1)
    rows = BATCH * KV
    pool = _abstract(mesh, (1, PAGES * KV, PAGE, HEAD), dtype="bfloat16")
    arguments = (
        _abstract(mesh, (rows, HEADS // KV, HEAD), dtype="bfloat16"), pool, pool,
        _abstract(mesh, (rows, 64), dtype="int32"), _abstract(mesh, (rows,), dtype="int32"),
    )  # fmt: skip
    return topology, jax.jit(functools.partial(paged_attention, pages_per_compute_block=4)), arguments, {}


def triton_attention():
    """Value and gradient of attention of packed rows by the project's Triton kernel."""
    from qwen3_jax.kernels import Execution, Kernels, attention
    from sharding import Placement

    topology, mesh = _mesh(data=1)
    execution = Execution(Placement(mesh), Kernels(attention="triton"))

    def loss(q, k, v, segments):
        return attention(q, k, v, segments, execution).astype(jnp.float32).sum()

    q = _abstract(mesh, (BATCH, LENGTH, HEADS, HEAD), dtype="bfloat16")
    k = _abstract(mesh, (BATCH, KV, LENGTH, HEAD), dtype="bfloat16")
    segments = _abstract(mesh, (BATCH, LENGTH), dtype="int32")
    return topology, jax.jit(jax.value_and_grad(loss, (0, 1, 2))), (q, k, k, segments), {}


def cudnn_attention():
    """Value and gradient of cuDNN's attention, two query heads to a head of keys."""
    topology, mesh = _mesh(data=1)

    def loss(q, k, v):
        out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
        return out.astype(jnp.float32).sum()

    q = _abstract(mesh, (BATCH, LENGTH, HEADS, HEAD), dtype="bfloat16")
    k = _abstract(mesh, (BATCH, LENGTH, KV, HEAD), dtype="bfloat16")
    return topology, jax.jit(jax.value_and_grad(loss, (0, 1, 2))), (q, k, k), {}


def paged_decode():
    """The project's Triton kernel over pages, in a loop over layers that share a pool."""
    from qwen3_jax.kernels.paged import triton
    from qwen3_jax.kernels.paged.pages import HeadMajor

    topology, mesh = _mesh(data=1)

    def run(q, k, v, tables, lengths):
        def layer(q, first):
            return triton.decode(q, HeadMajor(k, v, None, None), tables + first, lengths), None

        return jax.lax.scan(layer, q, jnp.arange(LAYERS, dtype=jnp.int32) * PAGES)[0]

    pool = _abstract(mesh, (1, LAYERS * PAGES, KV, PAGE, HEAD), dtype="bfloat16")
    q = _abstract(mesh, (BATCH, 1, HEADS, HEAD), dtype="bfloat16")
    tables = _abstract(mesh, (BATCH, SLOTS // PAGE), dtype="int32")
    return topology, jax.jit(run), (q, pool, pool, tables, _abstract(mesh, (BATCH,), dtype="int32")), {}


def experts():
    """Value and gradient of experts by the project's Triton kernels in bfloat16."""
    from qwen3_jax.kernels import Execution, expert_mlp
    from sharding import Placement

    topology, mesh = _mesh(data=1)
    execution = Execution(Placement(mesh))

    def loss(x, gate, up, down, index, weight):
        return expert_mlp(x, index, weight, gate, up, down, execution).astype(jnp.float32).sum()

    tokens, chosen = (1, EXPERT_ROWS // 2), (1, EXPERT_ROWS // 2, 2)
    wide = _abstract(mesh, (EXPERTS, WIDTH, EXPERT_WIDTH), dtype="bfloat16")
    down = _abstract(mesh, (EXPERTS, EXPERT_WIDTH, WIDTH), dtype="bfloat16")
    x = _abstract(mesh, (*tokens, WIDTH), dtype="bfloat16")
    arguments = (x, wide, wide, down, _abstract(mesh, chosen, dtype="int32"), _abstract(mesh, chosen, dtype="bfloat16"))
    return topology, jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3))), arguments, {}


def cublas():
    """A product of a batch and a plain one, by cuBLAS instead of Triton."""
    topology, mesh = _mesh(data=1)

    def run(x, w, bias):
        return jax.nn.relu(x @ w + bias), jnp.einsum("bij,bjk->bik", x.reshape(2, -1, WIDTH), jnp.stack([w, w]))

    x = _abstract(mesh, (ROWS, WIDTH), dtype="bfloat16")
    w = _abstract(mesh, (WIDTH, 2 * WIDTH), dtype="bfloat16")
    options = {"xla_gpu_enable_triton_gemm": False}
    return topology, jax.jit(run), (x, w, _abstract(mesh, (2 * WIDTH,), dtype="bfloat16")), options


_EACH = (
    fsdp_step,
    collectives,
    jax_attention,
    jax_paged_decode,
    triton_attention,
    cudnn_attention,
    paged_decode,
    experts,
    cublas,
)
PROGRAMS: dict[str, Callable] = {f.__name__: f for f in _EACH}


def text_of(name: str) -> str:
    """Compile a program and return its text, shortened."""
    topology, function, arguments, options = PROGRAMS[name]()
    # cuDNN is asked for its version while lowering; H100's description says 9.10.
    with (
        planner_compile.lowering_for(topology),
        unittest.mock.patch("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", return_value=91000),
    ):
        lowered = function.lower(*arguments)
    with planner_compile.uncached():
        text = lowered.compile(compiler_options={**planner_compile.gpu_nodes.COMPILER_OPTIONS, **options}).as_text()
    # The kernels' code, and where they stand in the source.
    text = re.sub(r'\b(ir|module|kernel_hash|opaque) = "(?:[^"\\]|\\.)*"', r'\1 = "..."', text)
    return re.sub(r'"/[^"]*/site-packages/', '"', text.replace(f"{ROOT}/", ""))


def main() -> None:
    """Write the texts."""
    FOLDER.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (FOLDER / f"{name}-{jax.__version__}.hlo.txt").write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main()
