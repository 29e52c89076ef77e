"""What runs on which NVIDIA GPU is asked before a kernel is chosen: compute capability, shared memory, types and sizes.

The choice alone, which needs no plug-in: test_gpu_compiles.py compiles what is chosen.
"""

import ast
import functools
import re
import sys
import tomllib
import types

import jax
import jax.numpy as jnp
import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.kernels import (
    Execution,
    Kernels,
    Rows,
    attention,
    expert_mlp,
    new_pages,
    paged_attention,
    prefers_unrolled_decoding,
    takes_stacks,
)
from qwen3_jax.kernels import execution as execution_module
from qwen3_jax.kernels import platform as platform_module
from qwen3_jax.kernels.attention import cudnn, dispatch, partition
from qwen3_jax.kernels.attention import triton as attention_triton
from qwen3_jax.kernels.attention.partition import Split
from qwen3_jax.kernels.card import card_from
from qwen3_jax.kernels.experts import triton as experts_triton
from qwen3_jax.kernels.experts.grouped import choose_product
from qwen3_jax.kernels.paged import triton as paged_triton
from sharding import Placement, make_mesh
from tests.helpers.attention_cases import inputs, packed
from tests.helpers.gpu_targets import CARDS, card
from tests.helpers.repository_url import ROOT

WHOLE, PARTS = Split(), Split(length=("context",), parts=2)


def queries(dtype=jnp.bfloat16, t=256, h=128):
    return jax.ShapeDtypeStruct((2, t, 4, h), dtype)


@pytest.fixture(autouse=True)
def with_cudnn(monkeypatch):
    """As on a machine with a GPU."""
    monkeypatch.setattr(cudnn, "installed", lambda: True)


@pytest.fixture
def on(monkeypatch):
    """Make `Execution` believe that it runs on a card."""

    def believe(name):
        monkeypatch.setattr(execution_module, "platform_of", lambda placement: "gpu")
        monkeypatch.setattr(execution_module, "card_of", lambda placement: name and card(name))

    return believe


def test_a_card_is_read_from_its_device():
    class Device:
        device_kind, compute_capability, shared_memory_per_block_optin = "NVIDIA L4", "8.9", 101_376

    assert card_from(Device) == card("l4")
    del Device.shared_memory_per_block_optin  # then by capability
    for name in (*CARDS, "t4", "h200"):
        Device.device_kind, (major, minor) = card(name).name, card(name).capability
        Device.compute_capability = f"{major}.{minor}"
        assert card_from(Device) == card(name)
    Device.compute_capability = "gfx942"
    assert card_from(Device) is None
    assert card_from(jax.devices("cpu")[0]) is None


@pytest.mark.parametrize("name", CARDS)
def test_attention_by_card(name):
    """Packed rows and a split length too have a kernel that skips what they do not see; cuDNN takes rows of one document."""

    def fastest(q, packed=False, parts=WHOLE):
        return dispatch.fastest("gpu", card(name), q, packed, parts)

    assert fastest(queries()) == "cudnn"
    assert fastest(queries(), packed=True) == "triton"
    assert fastest(queries(), parts=PARTS) == "triton"
    assert fastest(queries(t=1001)) == "triton"  # cuDNN's backward pass refuses odd lengths
    assert [fastest(queries(h=h)) for h in (16, 64, 72, 100, 192, 256, 512)] == [
        "cudnn", "cudnn", "cudnn", "triton", "triton", "triton", "chunked",
    ]  # fmt: skip
    assert fastest(queries(jnp.float32)) == "chunked"
    assert fastest(queries(jnp.float16)) == "cudnn"


def test_without_cudnn_rows_of_one_document_run_the_other_kernel(monkeypatch, on):
    """A plan on a machine that compiles for GPUs without CUDA's libraries, for one."""
    monkeypatch.setattr(cudnn, "installed", lambda: False)
    assert dispatch.fastest("gpu", card("h100"), queries(), False, WHOLE) == "triton"
    on("h100")
    arrays = [x.astype(jnp.bfloat16) for x in inputs(1, 128, 2, 1, 16)[:3]]
    with pytest.raises(
        UserError, match=r"'cudnn' needs cuDNN, which is not installed: pip install 'qwen3-jax\[cuda\]'"
    ):
        attention(*arrays, execution=Execution(kernels=Kernels(attention="cudnn")))


@pytest.mark.parametrize("name", ["t4", None], ids=["t4", "no NVIDIA GPU"])
def test_cards_without_kernels_run_what_runs_anywhere(name, on):
    on(name)
    which = name and card(name)
    assert dispatch.fastest("gpu", which, queries(jnp.float16), False, Split()) == "chunked"
    assert choose_product("grouped", "gpu", which, jnp.float16) == "tiles"
    needs = "an NVIDIA GPU" if name is None else r"compute capability 8.0 or newer \(the Tesla T4 has 7.5\)"
    q, k, v, _ = inputs(1, 128, 2, 1, 16, jnp.float16)
    for kernel in ("cudnn", "triton"):
        with pytest.raises(UserError, match=f"attention '{kernel}' needs {needs}; choose another, or 'auto'"):
            attention(q, k, v, execution=Execution(kernels=Kernels(attention=kernel)))
    with pytest.raises(UserError, match=f"experts='triton' needs {needs}; choose 'grouped'"):
        choose_product("triton", "gpu", which, jnp.float16)
    with pytest.raises(UserError, match=f"paged attention 'triton' needs {needs}; choose 'loop'"):
        new_pages(1, 4, 2, 32, 128, jnp.float16, execution=Execution(kernels=Kernels(paged="triton")))
    new_pages(1, 4, 2, 32, 128, jnp.float16, execution=Execution())


def test_weights_are_read_where_they_lie(on, monkeypatch):
    """XLA:GPU copies a layer out of a stack, so layers are loaded unstacked; the experts' kernel reads a stack in place."""
    for name, expected in (("h100", True), ("a100", True), ("t4", False), (None, False)):
        on(name)
        assert takes_stacks(Execution()) == expected
        assert not takes_stacks(Execution(kernels=Kernels(experts="dense")))
    for platform, expected in (("cpu", True), ("cuda", True), ("gpu", True), ("tpu", False)):
        device = types.SimpleNamespace(platform=platform)
        monkeypatch.setattr(platform_module, "device_of", lambda placement, device=device: device)
        assert prefers_unrolled_decoding(Placement()) == expected


def test_no_choice_of_experts_is_dense_on_a_gpu(on):
    """XLA's `ragged_dot` multiplies every row with every expert there."""
    for name in CARDS:
        for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
            assert choose_product("grouped", "gpu", card(name), dtype) == "triton"
    on("h100")
    x, index = jnp.zeros((1, 4, 8)), jnp.zeros((1, 4, 2), jnp.int32)
    weights = jnp.zeros((4, 8, 8)), jnp.zeros((4, 8, 8)), jnp.zeros((4, 8, 8))
    with pytest.raises(
        UserError, match=r"'ragged_dot' needs a CPU or a TPU: .* multiplies every row with every expert"
    ):
        expert_mlp(x, index, jnp.zeros((1, 4, 2)), *weights, Execution(kernels=Kernels(experts="ragged_dot")))
    for platform in ("cpu", "tpu"):
        assert choose_product("ragged_dot", platform, None, jnp.float32) == "ragged_dot"
        with pytest.raises(UserError, match=f"'triton' needs a GPU, and this is a {platform.upper()}"):
            choose_product("triton", platform, None, jnp.float32)


@pytest.mark.parametrize("name", CARDS)
def test_blocks_fit_into_the_shared_memory_of_the_card(name):
    shared = card(name).shared_memory
    for dtype, itemsize in ((jnp.bfloat16, 2), (jnp.float32, 4)):
        for rows, groups in ((8, 128), (800, 16), (32_768, 128), (10**6, 8)):
            for products in (1, 2):
                blocks = experts_triton.choose_blocks(rows, groups, dtype, shared, products)
                tiles = blocks.rows + products * blocks.columns
                assert blocks.stages * tiles * blocks.inner * itemsize <= shared
                assert blocks.rows >= 16  # what a tensor core multiplies
    for h in (16, 64, 128, 192, 256):
        blocks = attention_triton.choose_blocks(h, shared)
        row = 2 * 2 ** (h - 1).bit_length()
        tile = blocks.forward
        assert (tile.held + 2 * tile.stages * tile.streamed) * row <= shared
        for tile in (blocks.dq, blocks.dkv):
            assert (2 * tile.held + 2 * tile.stages * tile.streamed) * row + 4 * tile.held * tile.streamed <= shared
        for dtype, itemsize in ((jnp.bfloat16, 2), (jnp.float32, 4)):  # whatever the size of a page
            for m in (1, 4, 8, 64):
                paged = paged_triton.choose_blocks(m, h, dtype, shared)
                row = itemsize * 2 ** (h - 1).bit_length()
                assert (paged.queries + 2 * paged.stages * paged.slots) * row <= shared


def kernels_outside_of_a_mesh(jaxpr, inside=False) -> list[bool]:
    """Whether each Pallas call of a program stands outside of `shard_map`."""
    found = []
    for eqn in jaxpr.eqns:
        within = inside or eqn.primitive.name == "shard_map"
        if eqn.primitive.name == "pallas_call":
            found.append(not within)
            continue
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "jaxpr"))]
        found += [one for x in inner if hasattr(x, "eqns") for one in kernels_outside_of_a_mesh(x, within)]
    return found


def test_on_a_mesh_of_one_device_every_kernel_is_compiled_for_the_card_of_the_mesh(on, monkeypatch):
    """Pallas learns the card from the mesh of the `shard_map` around it; without one it asks a device, which may be a CPU."""
    on("h100")
    monkeypatch.setattr(partition, "platform_of", lambda placement: "gpu")
    execution = Execution(Placement(make_mesh(devices=jax.devices()[:1])), Kernels(attention="triton", paged="triton"))
    q, k, v, _ = inputs(1, 128, 2, 1, 64, jnp.bfloat16)

    def of_attention(q, k, v):
        return attention(q, k, v, packed(1, 128), execution).astype(jnp.float32).sum()

    x, index = jnp.zeros((1, 64, 32), jnp.bfloat16), jnp.zeros((1, 64, 2), jnp.int32)
    gate, down = jnp.zeros((4, 32, 16), jnp.bfloat16), jnp.zeros((4, 16, 32), jnp.bfloat16)

    def of_experts(x, gate, up, down):
        return expert_mlp(x, index, jnp.ones((1, 64, 2), x.dtype), gate, up, down, execution).astype(jnp.float32).sum()

    pages = new_pages(1, 8, 1, 32, 64, jnp.bfloat16, execution=execution)
    rows = Rows(jnp.zeros((1, 1, 4), jnp.int32), jnp.full((1, 1), 5))
    of_pages = functools.partial(paged_attention, execution=execution)
    for run, arguments, calls in (
        (jax.grad(of_attention, (0, 1, 2)), (q, k, v), 3),
        (jax.grad(of_experts, (0, 1, 2, 3)), (x, gate, gate, down), 6),
        (of_pages, (q[:, :1], k[:, :, :1], v[:, :, :1], pages, rows), 1),
    ):
        found = kernels_outside_of_a_mesh(jax.make_jaxpr(run)(*arguments).jaxpr)
        assert len(found) >= calls
        assert not any(found)


def test_a_paged_cache_in_8_bits(on):
    """float8_e4m3fn needs a card that converts it; numbers past the 2^31st need more than 32 bits."""
    fp8 = jnp.float8_e4m3fn
    assert paged_triton.why_not(card("a100"), 128, jnp.bfloat16, jnp.int8) is None
    needs = paged_triton.why_not(card("a100"), 128, jnp.bfloat16, fp8)
    assert needs == "compute capability 8.9 or newer (the NVIDIA A100-SXM4-80GB has 8.0) for float8_e4m3fn"
    for name in ("l4", "h100", "b200"):
        assert paged_triton.why_not(card(name), 128, jnp.bfloat16, fp8) is None
    on("a100")
    new_pages(1, 4, 2, 32, 128, jnp.bfloat16, quantized="fp8")  # "auto" takes the loop
    with pytest.raises(UserError, match=r"'triton' needs compute capability 8.9 .* choose 'loop'"):
        new_pages(1, 4, 2, 32, 128, jnp.bfloat16, quantized="fp8", execution=Execution(kernels=Kernels(paged="triton")))

    slots = 2**31 // 128
    for stored, count, refused in (
        (jnp.int8, slots, False),
        (jnp.int8, slots + 32, True),
        (jnp.int8, 2 * slots, True),
        (jnp.int8, 2 * slots + 32, False),
        (jnp.bfloat16, 2 * slots, False),
    ):
        needs = paged_triton.why_not(card("h100"), 128, jnp.bfloat16, stored, count)
        assert (needs is not None) == refused, (stored, count)


def test_a_gpu_kernel_asked_for_by_name_says_what_it_needs(on):
    on("h100")
    q, k, v, _ = inputs(1, 127, 2, 1, 16)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]

    def refused(kernel, arrays, segments=None):
        with pytest.raises(UserError) as error:
            attention(*arrays, segments, Execution(kernels=Kernels(attention=kernel)))
        return str(error.value)

    assert "'cudnn' needs rows of one document each; choose 'triton'" in refused("cudnn", half, packed(1, 127))
    assert "'cudnn' needs an even length, for the gradient; it is 127" in refused("cudnn", half)
    for kernel in ("cudnn", "triton"):
        assert "needs a compute type of bfloat16 or float16; it is float32" in refused(kernel, (q, k, v))


def test_kernels_import_what_the_package_installs():
    """No kernel needs a package that the extras do not bring, for any Python, or one that reads the command line (absl)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["cuda"] + ["qwix", "numpy"]
    installed = {re.match(r"[\w-]+", name)[0] for name in needed} | {"qwen3_jax", "sharding", *sys.stdlib_module_names}
    for file in (ROOT / "qwen3_jax" / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= installed, file
