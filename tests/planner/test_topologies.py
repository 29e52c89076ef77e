"""TPU slices by name: what is described, what is refused and what is suggested; no TPU is present."""

import jax
import numpy as np
import pytest

import sharding
from qwen3_jax.planner import topology, topology_mesh
from qwen3_jax.planner.compile import compile_for
from qwen3_jax.planner.meshes import factorizations, nearest_meshes
from sharding import AXES, MeshConfig, ShardingError
from sharding.hardware import CHIPS, peak_flops
from sharding.mesh import describe

needs_libtpu = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("libtpu") is None, reason="libtpu describes TPUs; pip install libtpu"
)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "slices", "chips", "devices"),
    [
        ("v5e:1x1", 1, 1, 1), ("v5e:2x2", 1, 4, 4), ("v5e:16x16", 1, 256, 256), ("v5e:2x2", 2, 8, 8),
        ("v6e:8x8", 1, 64, 64), ("v5p:2x2x1", 1, 4, 4), ("v5p:8x8x8", 2, 1024, 1024), ("v4:4x4x4", 1, 64, 64),
        ("tpu7x:4x4x4", 1, 64, 128),
    ],
)  # fmt: skip
def test_slices_are_described_without_a_tpu(name, slices, chips, devices):
    slice = topology(name, slices)
    assert (slice.chips, len(slice.devices)) == (chips, devices)
    assert slice.chip is CHIPS[name.split(":")[0]]
    assert len(slice.devices) == slice.chips * slice.chip.devices
    assert peak_flops(slice.devices[0]) == slice.chip.flops / slice.chip.devices
    assert slice.title == (name if slices == 1 else f"{slices} x {name}")
    places = {(getattr(d, "slice_index", None), *d.coords) for d in slice.devices}
    assert len(places) == chips


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "v5q:4x4x4",
            r"no TPU generation 'v5q'.*known are v4, v5e, v5p, v6e, tpu7x, and of GPUs a100, h100, h200, b200, l4, t4: try v5",
        ),
        ("V6E:8x8", "no TPU generation 'V6E'.*try v6e"),
        ("v5p:8x8", r"'v5p:8x8' has 2 sides; a v5p slice has 3: the nearest are v5p:4x4x4 \(64 chips\)"),
        ("v5p", "'v5p' is not GENERATION:SIDES; the nearest are v5p:2x2x1"),
        ("v5e:4*4", "is not GENERATION:SIDES"),
        ("v5e:0x4", "is not GENERATION:SIDES"),
        ("v5e:3x3", r"there is no slice 'v5e:3x3': the nearest are v5e:2x4 \(8 chips\), v5e:4x4"),
    ],
)
def test_slices_that_do_not_exist_are_refused_with_the_nearest(name, words):
    with pytest.raises(ShardingError, match=words):
        topology(name)


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("v4-8", "v4:2x2x1"), ("v5p-8", "v5p:2x2x1"), ("v5p-128", "v5p:4x4x4"), ("v5p-1024", "v5p:8x8x8"),
        ("tpu7x-128", "tpu7x:4x4x4"), ("v5litepod-1", "v5e:1x1"), ("v5litepod-16", "v5e:4x4"), ("v5e-64", "v5e:8x8"),
        ("v6e-8", "v6e:2x4"), ("v6e-256", "v6e:16x16"),
    ],
)  # fmt: skip
def test_googles_names_count_cores_or_chips_by_generation(name, sides):
    assert topology(name).name == sides


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "v5p-100",
            r"no slice 'v5p-100' of 100 TensorCores, which are 50 chips: the nearest are v5p:4x4x4 \(64 chips\)",
        ),
        ("v5p-4", r"4 TensorCores, which are 2 chips: the nearest are v5p:2x2x1"),
        ("v6e-3", r"no slice 'v6e-3' of 3 chips: the nearest are v6e:2x2"),
        ("v3-8", "no TPU generation 'v3-8'"),
    ],
)
def test_a_count_that_google_does_not_offer_is_refused_with_the_nearest(name, words):
    with pytest.raises(ShardingError, match=words):
        topology(name)


def test_the_number_of_slices_is_checked():
    with pytest.raises(ShardingError, match="number of slices is 0; it must be 1 or more"):
        topology("v5e:2x2", 0)


@needs_libtpu
def test_a_mesh_follows_the_torus():
    mesh = topology_mesh(topology("v5p:4x4x4"), MeshConfig(data=16, tensor=4))
    assert mesh.axis_names == AXES
    assert tuple(mesh.shape.values()) == (1, 16, 1, 1, 4)
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    for row in mesh.devices.reshape(16, 4):  # each tensor group is one line of the torus
        coords = np.asarray([device.coords for device in row])
        assert (np.ptp(coords, axis=0) > 0).sum() == 1


@needs_libtpu
def test_slices_are_joined_along_replica():
    slice = topology("v5e:2x2", 2)
    for mesh in (
        topology_mesh(slice, MeshConfig(replica=2, data=-1)),
        sharding.make_mesh(replica=2, data=2, tensor=2, devices=slice.devices),
    ):
        assert [{d.slice_index for d in part.flat} for part in mesh.devices] == [{0}, {1}]
    inner = topology_mesh(slice, MeshConfig(replica=4, data=2))
    assert [{d.slice_index for d in part.flat} for part in inner.devices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(
        ShardingError, match=r"replica axis may cross: it is 1 .* multiple of 2\. Nearest.*: replica=2, "
    ):
        topology_mesh(slice, MeshConfig(data=8))
    with pytest.raises(ShardingError, match="must be a multiple of 2"):
        sharding.make_mesh(data=8, devices=slice.devices)


@needs_libtpu
@pytest.mark.parametrize(
    ("axes", "words"),
    [
        (
            dict(data=3),
            r"the mesh data=3 has 3 places; v5e:4x4 has 16 .* Nearest that work: data=16; data=8, tensor=2;",
        ),
        (dict(data=32), r"data=32 needs 32 devices; there are 16 \(v5e:4x4\)\. Nearest that work: data=16;"),
        (dict(data=-1, tensor=3), r"do not divide by 3.* Nearest that work: data=4, tensor=4;"),
    ],
)
def test_meshes_that_do_not_fit_are_refused_with_the_nearest(axes, words):
    with pytest.raises(ShardingError, match=words):
        topology_mesh(topology("v5e:4x4"), MeshConfig(**axes))


def test_every_way_to_lay_out_devices_is_known():
    assert set(factorizations(4, 2)) == {(1, 4), (2, 2), (4, 1)}
    assert len(factorizations(512, 5)) == 715  # 9 doublings over 5 axes: C(13, 4)
    assert all(np.prod(sizes) == 12 for sizes in factorizations(12, 5))
    assert nearest_meshes(MeshConfig(data=4), 8, lambda sizes: sizes[4] == 3) == "No mesh of 8 devices works."
    assert nearest_meshes(MeshConfig(data=8), 8, limit=1) == "Nearest that work: data=8."
    assert describe((1, 1, 1, 1, 1)) == "of one device"


@pytest.mark.parametrize(
    ("name", "shape", "wraps"),
    [
        ("v5e", (16, 8), (True, False)),
        ("v6e", (8, 8), (False, False)),
        ("v5p", (4, 4, 8), (True, True, True)),
        ("v5p", (2, 4, 4), (False, False, False)),
    ],
)
def test_which_dimensions_close_to_rings(name, shape, wraps):
    assert CHIPS[name].wraps(shape) == wraps


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "given"), [("v5e:2x2", False), ("v5p:2x2x1", True), ("v6e:2x2", True), ("v4:2x2x1", False)]
)
def test_chips_with_sparse_cores_are_told_to_use_them(name, given):
    mesh = topology_mesh(topology(name), MeshConfig(data=-1))
    assert (sharding.compiler_options(mesh) is not None) == given
    assert sharding.compiler_options(sharding.make_mesh(data=2)) is None
    assert sharding.compiler_options(None) is None


@needs_libtpu
def test_the_compiler_knows_the_options_and_hides_a_gather_with_them():
    """A gathered weight used after other work: on v5p the gather runs beside that work, with these options only."""
    slice = topology("v5p:2x2x1")
    mesh = topology_mesh(slice, MeshConfig(data=4))

    def placed(shape, *axes):
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.ShapeDtypeStruct(shape, "bfloat16", sharding=jax.sharding.NamedSharding(mesh, spec))

    def step(x, w):
        return jax.lax.scan(lambda x, w: (jax.numpy.tanh(x @ w), None), x, w)[0]

    lowered = jax.jit(step, compiler_options=sharding.compiler_options(mesh)).lower(
        placed((4096, 2048), "data"), placed((8, 2048, 2048), None, "data")
    )
    compiled = compile_for(lowered, slice, mesh)
    gathers = [one for one, _ in compiled.program.collectives if one.kind == "all-gather"]
    assert gathers
    assert all(one.key is not None for one in gathers)
