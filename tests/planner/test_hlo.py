"""Costs of compiled programs against counts by hand: loops, collectives by mesh axis, on CPU devices and on a described TPU."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import sharding
from qwen3_jax import planner
from qwen3_jax.planner import costs, hlo, roofline
from qwen3_jax.planner.compile import uncached
from qwen3_jax.planner.formulas import convolution_flops
from qwen3_jax.planner.networks import Torus, spanned_axes
from qwen3_jax.planner.program import Collective, Loop, Program, Wait, Work
from qwen3_jax.planner.replica_groups import replica_groups
from sharding import MeshConfig

P = PartitionSpec
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
PLATFORMS = ["cpu", pytest.param("tpu", marks=needs_libtpu)]


def mesh_of(platform: str, **axes: int) -> jax.sharding.Mesh:
    if platform == "cpu":
        return sharding.make_mesh(**axes)
    return planner.topology_mesh(planner.topology("v5e:2x2"), MeshConfig(**axes))


def abstract(mesh, shape, spec, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def counted(function, *arguments, **options) -> costs.Program:
    lowered = jax.jit(function, **options).lower(*arguments)
    with uncached():
        return costs.count(hlo.parse(lowered.compile().as_text()))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_loop_counts_as_often_as_it_runs(platform):
    """M x K times K x K, L times, in a loop in a loop: 2 M K K L; XLA's own count takes a body once."""
    m, k, outer, inner = 256, 128, 3, 5
    mesh = mesh_of(platform, data=4)

    def run(x, w):
        def body(x, _):
            return jax.lax.fori_loop(0, inner, lambda _, y: jnp.tanh(y @ w), x), None

        return jax.lax.scan(body, x, None, length=outer)[0]

    program = counted(run, abstract(mesh, (m, k), P("data")), abstract(mesh, (k, k), P()))
    assert program.flops == 2 * (m // 4) * k * k * outer * inner
    assert program.unknown_loops == []
    assert list(program.collectives) == []


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_gradient_of_a_scanned_stack(platform):
    """Forward, both halves of the backward pass, and one forward again under full remat: 4 x 2 M K K L, less the first dx."""
    m, k, layers = 256, 128, 6
    mesh = mesh_of(platform, data=4)

    def loss(w, x):
        body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None), policy=jax.checkpoint_policies.nothing_saveable)
        return jax.lax.scan(body, x, w)[0].sum()

    program = counted(jax.grad(loss), abstract(mesh, (layers, k, k), P()), abstract(mesh, (m, k), P("data")))
    assert program.flops == 4 * 2 * (m // 4) * k * k * layers
    summed = [c.bytes * times for c, times in program.collectives if c.kind in ("all-reduce", "reduce-scatter")]
    # The gradient [L, K, K] is summed over 4 devices: each sends twice three quarters of it.
    assert sum(summed) == pytest.approx(2 * 3 / 4 * layers * k * k * 4)


def test_batched_dots_and_convolutions_on_cpu():
    x = jnp.zeros((4, 32, 64))
    w = jnp.zeros((4, 64, 16))
    assert counted(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), x, w).flops == 2 * 4 * 32 * 64 * 16
    image, kernel = jnp.zeros((2, 3, 10, 12)), jnp.zeros((5, 3, 3, 3))
    program = counted(lambda i, k: jax.lax.conv(i, k, (1, 1), "VALID"), image, kernel)
    assert program.flops == 2 * 2 * 5 * 8 * 10 * 3 * 3 * 3


@pytest.mark.parametrize(
    ("lhs", "rhs", "out", "attributes", "flops"),
    [
        # Dots as a TPU writes them: a head dimension as a window that meets one real element.
        ((2, 1024, 512, 1), (512, 8, 64, 1), (2, 1024, 8, 64),
         "window={size=1x8 pad=0_0x7_7 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f", 2 * 2 * 1024 * 512 * 8 * 64),
        ((2, 1024, 512, 1), (4, 64, 2, 1024), (512, 4, 64, 1),
         "window={size=4x2 pad=3_3x0_0 rhs_reversal=1x0}, dim_labels=1fb0_0o1i->b0f1", 2 * 2 * 1024 * 512 * 4 * 64),
        ((2, 1024, 1024), (1, 1024, 512), (2, 1024, 512), "window={size=1}, dim_labels=0bf_0io->0bf",
         2 * 2 * 1024 * 1024 * 512),
        ((8, 16), (16, 32), (8, 32), "dim_labels=bf_io->bf", 2 * 8 * 16 * 32),
        # A batch dimension as holes between the elements of the left side.
        ((2, 8, 16), (2, 4, 16), (2, 8, 4), "window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0oi->0bf",
         2 * 2 * 8 * 16 * 4),
    ],
)  # fmt: skip
def test_convolutions_count_only_real_elements(lhs, rhs, out, attributes, flops):
    assert convolution_flops(lhs, rhs, out, attributes) == flops


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("axis", "size"), [("data", 2), ("tensor", 2), ("data", 4)])
def test_gathers_and_sums_by_axis(platform, axis, size):
    """[64, 256] float32 over one axis: gathered, a device sends its part n - 1 times; summed, 2 (n - 1) / n of all."""
    other = "tensor" if axis == "data" else "data"
    mesh = mesh_of(platform, **{axis: size, other: 4 // size})
    whole = NamedSharding(mesh, P())

    gathered = counted(lambda x: x * 2, abstract(mesh, (64, 256), P(axis)), out_shardings=whole)
    assert _by_axis(gathered, mesh) == {axis: pytest.approx(64 * 256 * 4 / size * (size - 1))}

    program = counted(lambda x, y: x @ y, abstract(mesh, (32, 128), P(None, axis)), abstract(mesh, (128, 64), P(axis)),
                      out_shardings=whole)  # fmt: skip
    assert program.flops == 2 * 32 * 128 // size * 64
    assert _by_axis(program, mesh) == {axis: pytest.approx(32 * 64 * 4 * 2 * (size - 1) / size)}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_exchanges_and_permutations_inside_a_loop(platform):
    """Under shard_map the collectives are written by hand: an all-to-all, a shift and a sum, seven times."""
    mesh = mesh_of(platform, data=2, context=2)
    times = 7

    def body(_, x):
        x = jax.lax.all_to_all(x, "data", 0, 0, tiled=True)
        x = jax.lax.ppermute(x, "context", [(0, 1), (1, 0)])
        return x + jax.lax.psum(x, "data")

    run = jax.shard_map(
        lambda x: jax.lax.fori_loop(0, times, body, x), mesh=mesh, in_specs=P("data", "context"),
        out_specs=P("data", "context"), check_vma=False,
    )  # fmt: skip
    program = counted(run, abstract(mesh, (32, 256), P("data", "context")))
    local = 16 * 128 * 4
    assert _by_axis(program, mesh) == {
        "data": pytest.approx(times * (local / 2 + local)),
        "context": pytest.approx(times * local),
    }


def test_a_scattered_sum_and_a_gather_of_parts_on_cpu():
    mesh = sharding.make_mesh(data=4)
    scatter = jax.shard_map(
        lambda x: jax.lax.psum_scatter(x, "data", scatter_dimension=0, tiled=True),
        mesh=mesh, in_specs=P(), out_specs=P("data"), check_vma=False,
    )  # fmt: skip
    program = counted(scatter, abstract(mesh, (64, 16), P()))
    assert [c.kind for c, _ in program.collectives] == ["reduce-scatter"]
    assert _by_axis(program, mesh) == {"data": 64 * 16 * 4 * 3 / 4}


def _by_axis(program: costs.Program, mesh: jax.sharding.Mesh) -> dict[str, float]:
    out: dict[str, float] = {}
    for c, times in program.collectives:
        if c.bytes:
            axes = spanned_axes(c.groups, mesh.devices.shape)
            out[axes] = out.get(axes, 0.0) + c.bytes * times
    return out


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("{}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("mesh['a'=2,'b'=4] {'b','a'}", [[0, 4, 1, 5, 2, 6, 3, 7]]),
        ("mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("mesh['a'=8] {'a':(1)2,'a':(4)2}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
    ],
)
def test_groups_of_devices_in_every_spelling(text, groups):
    attributes = f"channel_id=1, replica_groups={text}, use_global_device_ids=true"
    assert replica_groups(attributes, 8).tolist() == groups


LOOP = """HloModule m, num_partitions=2

%body (p: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {{
  %p = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,8]{{1,0}} get-tuple-element(%p), index=1
  %step = s32[] constant({step})
  %next = s32[] add(%i, %step)
  %d = f32[8,8]{{1,0}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %t = (s32[], f32[8,8]{{1,0}}) tuple(%next, %d)
}}

%condition (q: (s32[], f32[8,8])) -> pred[] {{
  %q = (s32[], f32[8,8]{{1,0}}) parameter(0)
  %bound = s32[] constant({bound})
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %c = pred[] compare({order}), direction={direction}
}}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {{
  %a = f32[8,8]{{1,0}} parameter(0)
  %zero = s32[] {first}
  %start = (s32[], f32[8,8]{{1,0}}) tuple(%zero, %a)
  %w = (s32[], f32[8,8]{{1,0}}) while(%start), condition=%condition, body=%body{known}
  ROOT %r = f32[8,8]{{1,0}} get-tuple-element(%w), index=1
}}
"""


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({}, 12),
        ({"step": 5}, 3),
        ({"first": "constant(2)"}, 10),
        ({"direction": "LE"}, 13),
        ({"direction": "GT", "order": "%bound, %j"}, 12),
        ({"direction": "GT", "step": -1, "bound": 0, "first": "constant(9)"}, 9),
        ({"known": ', backend_config={"known_trip_count":{"n":"77"}}'}, 77),
        ({"first": "parameter(1)"}, None),
    ],
)
def test_trip_counts_are_read_off_the_condition(changes, trips):
    values = dict(step=1, bound=12, first="constant(0)", direction="LT", order="%j, %bound", known="") | changes
    module = hlo.parse(LOOP.format(**values))
    program = costs.count(module)
    assert program.flops == 2 * 8**3 * (1 if trips is None else trips)
    assert program.unknown_loops == ([] if trips is not None else ["w"])


def test_kernels_count_as_their_estimate_or_as_told():
    line = (
        '  %k = f32[8,8]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/splash"}'
    )
    estimate = ', backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","bytes_accessed":"512"}}}'
    text = "HloModule m\n\nENTRY %main (a: f32[8,8]) -> f32[8,8] {\n  %a = f32[8,8]{1,0} parameter(0)\n"
    bare = costs.count(hlo.parse(f"{text}{line}\n}}\n"))
    assert (bare.flops, bare.hbm_bytes, bare.unpriced) == (0, 2 * 8 * 8 * 4, {"splash": 1})
    priced = costs.count(hlo.parse(f"{text}{line}{estimate}\n}}\n"))
    assert (priced.flops, priced.hbm_bytes, priced.unpriced) == (1000, 512, {})
    custom = costs.count(
        hlo.parse(f"{text}{line}\n}}\n"), lambda call, operands: costs.Cost(2.0 * operands[0].elements)
    )
    assert (custom.flops, custom.hbm_bytes, custom.unpriced) == (2 * 8 * 8, 2 * 8 * 8 * 4, {})
    custom = costs.count(hlo.parse(f"{text}{line}{estimate}\n}}\n"), lambda call, operands: costs.Cost(5, 7))
    assert (custom.flops, custom.hbm_bytes) == (5, 7)


def test_a_scatter_counts_as_its_updates():
    """In place: what a decode step writes into a cache of any size are the new tokens."""

    def fill(fused: bool) -> float:
        def f(pages, index, new):
            return pages.at[index].set(new + 1 if fused else new)

        shapes = (jnp.zeros((4096, 64)), jnp.zeros(8, jnp.int32), jnp.zeros((8, 64)))
        text = jax.jit(f, donate_argnums=0).lower(*shapes).compile().as_text()
        return costs.count(hlo.parse(text)).hbm_bytes

    assert fill(False) < 20 * 8 * 64 * 4


def test_an_instruction_over_several_lines_is_one():
    """Pallas kernels carry metadata with line breaks, one of which may begin with a brace."""
    text = (
        "HloModule m\n\nENTRY %main (a: f32[8]) -> f32[8] {\n  %a = f32[8]{0} parameter(0)\n"
        '  %k = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={\n'
        '"x": "{}"\n}}, metadata={op_name="f/kernel"}\n  ROOT %n = f32[8]{0} negate(%k)\n}\n'
    )
    module = hlo.parse(text)
    assert [i.name for i in module.entry] == ["a", "k", "n"]
    assert module.entry.instructions["k"].source == "f/kernel"


def test_slices_count_as_slices_and_vmem_not_at_all():
    text = """HloModule m

%fused (p0: f32[10,8,8], p1: s32[]) -> f32[1,8,8] {
  %p0 = f32[10,8,8]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %z = s32[] constant(0)
  %s = f32[1,8,8]{2,1,0} dynamic-slice(%p0, %p1, %z, %z), dynamic_slice_sizes={1,8,8}
  ROOT %e = f32[1,8,8]{2,1,0:T(8,128)S(1)} exponential(%s)
}

ENTRY %main (a: f32[10,8,8], i: s32[]) -> f32[1,8,8] {
  %a = f32[10,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[1,8,8]{2,1,0:T(8,128)S(1)} fusion(%a, %i), kind=kLoop, calls=%fused
}
"""
    assert costs.count(hlo.parse(text)).hbm_bytes == 8 * 8 * 4 + 4  # one slice and the index are read; VMEM is written


OFFLOADED = """HloModule m, num_partitions=4

%inner (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%p), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

%wrapped (q: f32[8]) -> f32[32] {
  %q = f32[8]{0} parameter(0)
  ROOT %c = f32[32]{0} custom-call(%q), custom_call_target="any", called_computations={%inner}
}, execution_thread="sparsecore"

ENTRY %main (a: f32[8], b: f32[64,64]) -> f32[32] {
  %a = f32[8]{0} parameter(0)
  %b = f32[64,64]{1,0} parameter(1)
  %s = ((f32[8]{0}), f32[32]{0}, u32[]) async-start(), async_execution_thread="sparsecore", calls=%wrapped
  %u = ((f32[8]{0}), f32[32]{0}, u32[]) async-update(%s, %a)
  %d = f32[64,64]{1,0} dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %e = f32[32]{0} async-done(%u)
}
"""


def test_collectives_of_the_sparse_cores_run_beside_what_is_between_start_and_done():
    kinds = [type(event).__name__ for event in costs.count(hlo.parse(OFFLOADED)).events]
    assert kinds == ["Collective", "Work", "Work", "Wait"]
    (gather, _), *_ = costs.count(hlo.parse(OFFLOADED)).collectives
    assert (gather.kind, gather.bytes, gather.key) == ("all-gather", 8 * 4 * 3, "s")


@needs_libtpu
def test_the_clock_hides_what_the_order_hides():
    """One gather of 1 ms on the wire: alone, beside 3 ms of work, beside 0.4 ms, and in a loop that begins it a round early."""
    slices = planner.topology("v5e:2x2")
    mesh = planner.topology_mesh(slices, MeshConfig(data=4))
    groups = np.arange(4)[None]
    seconds = 1e-3
    sent = seconds * 2 * slices.chip.ici_link

    def time(*events) -> float:
        return roofline.bound(Program(list(events)), slices, mesh).step_s

    def work(milliseconds: float) -> Work:
        return Work("w", milliseconds * 1e-3 * slices.chip.flops, 0.0)

    alone = Collective("all-gather", sent, groups, "")
    beside = Collective("all-gather", sent, groups, "", "k")
    assert time(work(3), alone) == pytest.approx(4e-3)
    assert time(beside, work(3), Wait("k")) == pytest.approx(3e-3)
    assert time(beside, work(0.4), Wait("k")) == pytest.approx(1e-3)
    assert time(beside, work(0.4)) == pytest.approx(1e-3)  # a program ends when its networks do
    other = Collective("all-gather", sent, groups, "", "l")
    assert time(beside, other, work(0.4), Wait("k"), Wait("l")) == pytest.approx(2e-3)  # one at a time
    assert time(Loop([beside, Wait("k"), work(3)], 5)) == pytest.approx(5 * 4e-3)
    assert time(Loop([Wait("k"), beside, work(3)], 5)) == pytest.approx(5 * 3e-3)
    memory = Work("w", 0.0, 2e-3 * slices.chip.hbm_bandwidth)
    bound = roofline.bound(Program([work(1), memory, alone]), slices, mesh)
    assert (bound.step_s, bound.chip_s, bound.waiting_s) == pytest.approx((4e-3, 3e-3, 1e-3))
    assert bound.bound == "HBM"
    assert roofline.bound(Program([work(1), alone, alone]), slices, mesh).bound == "ICI"


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule m\n")


@needs_libtpu
def test_times_on_the_torus():
    """A gather over the 8 chips of one open side of v6e:8x8 leaves by one link; over v5p:4x4x4's ring by two."""
    sent, link = 1e9, 9e10
    groups = np.arange(8)[None]
    for name, axes, seconds in (
        ("v6e:8x8", dict(data=8, tensor=8), sent / link),
        ("v5p:4x4x8", dict(data=16, tensor=8), sent / (2 * link)),
    ):
        slices = planner.topology(name)
        network = Torus(slices, planner.topology_mesh(slices, MeshConfig(**axes)))
        one = Collective("all-gather", sent, groups, "")
        assert network.axes(one) == "tensor"
        assert network.traffic(one)[0].seconds == pytest.approx(seconds)
        exchange = Collective("all-to-all", sent, groups, "")
        rate = sent / seconds
        assert network.traffic(exchange)[0].seconds == pytest.approx(sent * 8 / 7 * 8 / 4 / rate)
