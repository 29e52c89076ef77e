"""Meshes, rules and start-up: what they give, and the named error for each thing they cannot."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec, SingleDeviceSharding

import sharding
from sharding import AXES, SERVING, TRAINING, MeshConfig, Placement, Rules, ShardingError


def test_a_mesh_has_all_five_axes_in_order():
    mesh = sharding.make_mesh(data=2, tensor=2, expert=2)
    assert mesh.axis_names == AXES == ("replica", "data", "expert", "context", "tensor")
    assert tuple(mesh.shape.values()) == (1, 2, 2, 1, 2)
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)
    assert sharding.make_mesh().size == 1
    assert sharding.make_mesh(tensor=4).devices.size == 4  # fewer than there are
    assert sharding.make_mesh(data=2, devices=jax.devices()[4:6]).devices.ravel().tolist() == jax.devices()[4:6]


@given(st.lists(st.integers(1, 9), min_size=5, max_size=5), st.integers(0, 4), st.integers(1, 64))
def test_minus_1_is_all_devices_that_are_left(sizes, place, devices):
    sizes[place] = -1
    given = int(np.prod([size for size in sizes if size > 0]))
    config = MeshConfig(*sizes)
    if devices % given:
        with pytest.raises(ShardingError, match=f"{AXES[place]!r} cannot be filled in: {devices} devices .* {given},"):
            config.sizes(devices)
    else:
        filled = config.sizes(devices)
        assert filled[place] * given == np.prod(filled) == devices
        assert [f for i, f in enumerate(filled) if i != place] == [s for i, s in enumerate(sizes) if i != place]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (dict(data=0), "'data' must be a positive integer.* got 0"),
        (dict(tensor=-2), "'tensor' must be a positive integer.* got -2"),
        (dict(expert=2.0), r"'expert' must be .* got 2\.0"),
        (dict(context=True), "'context' must be .* got True"),
        (dict(replica="2"), "'replica' must be .* got '2'"),
        (dict(data=-1, tensor=-1), "only one mesh axis may be -1"),
        (dict(data=-1, tensor=3), "'data' cannot be filled in: 8 devices do not divide by 3"),
        (dict(data=-1, tensor=16), "'data' cannot be filled in: 8 devices do not divide by 16"),
        (dict(data=4, tensor=4), r"the mesh data=4, tensor=4 needs 16 devices; there are 8 \(cpu\)"),
        (dict(data=9), "needs 9 devices; there are 8"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, words):
    with pytest.raises(ShardingError, match=words):
        sharding.make_mesh(**sizes)


def test_rules_turn_logical_axes_into_mesh_axes():
    assert TRAINING.spec(("vocab", "embed")) == PartitionSpec("tensor", ("data", "context"))
    assert SERVING.spec(("vocab", "embed")) == PartitionSpec("tensor", None)
    assert TRAINING.spec(("layers", "expert", "embed", "mlp")) == PartitionSpec(
        None, "expert", ("data", "context"), "tensor"
    )
    assert TRAINING.spec(("batch", None, "hidden")) == PartitionSpec(("replica", "data", "expert"), None, None)
    assert TRAINING.replace(mlp=None).spec(("mlp",)) == PartitionSpec(None)
    assert hash(Rules.of({"a": "data", "b": None})) == hash(Rules.of({"a": ["data"], "b": ()}))


def test_rules_that_cannot_hold_are_named():
    with pytest.raises(ShardingError, match=r"no sharding rule for the logical axis 'width'; known: .*'embed'"):
        TRAINING.spec(("embed", "width"))
    with pytest.raises(ShardingError, match=r"'heads' and 'mlp' of one array .* the mesh axis 'tensor'"):
        TRAINING.spec(("heads", "mlp"))
    with pytest.raises(ShardingError, match=r"'batch' and 'embed' of one array .* the mesh axis 'data'"):
        TRAINING.spec(("batch", "embed"))
    with pytest.raises(ShardingError, match=r"'embed' names the mesh axis 'dtaa'; the mesh has .*'data'"):
        Placement(sharding.make_mesh(data=2), TRAINING.replace(embed="dtaa"))
    with pytest.raises(ShardingError, match="names the mesh axis"):
        Placement(Mesh(np.array(jax.devices()), ("x",)), TRAINING)


def test_placement_is_strict_for_parameters_and_a_hint_for_activations():
    place = Placement(sharding.make_mesh(data=2, tensor=4), TRAINING)
    assert place.sharding(("embed", "mlp"), (6, 8)).shard_shape((6, 8)) == (3, 2)
    with pytest.raises(ShardingError, match=r"layer\.gate: dimension 1 \('mlp', 6\) does not divide by 4.* 'tensor'"):
        place.sharding(("embed", "mlp"), (6, 6), "layer.gate")
    with pytest.raises(ShardingError, match=r"dimension 0 \('embed', 5\) does not divide by 2"):
        place.sharding(("embed", "mlp"), (5, 8))
    x = np.arange(48.0).reshape(4, 12)
    constrained = jax.jit(lambda x: place.constrain(x, ("batch", "mlp")))(x)
    assert constrained.sharding.shard_shape(x.shape) == (2, 3)
    dropped = jax.jit(lambda x: place.constrain(x, ("batch", "mlp")))(x[:3, :5])  # divides over nothing
    assert np.array_equal(constrained, x)
    assert np.array_equal(dropped, x[:3, :5])
    assert place.parts("batch") == 2
    assert Placement(sharding.make_mesh(replica=2, data=2, expert=2)).parts("batch") == 8


def test_without_a_mesh_nothing_moves():
    place = Placement()
    x = np.ones(3)
    assert place.constrain(x, ("batch",)) is x
    assert place.sharding(("embed",), (7,)) == SingleDeviceSharding(jax.devices()[0])
    assert place.parts("batch") == 1


def test_start_up_of_one_process_touches_nothing(monkeypatch):
    calls = []

    def called(address, *, num_processes, process_id, heartbeat_timeout_seconds):
        assert heartbeat_timeout_seconds < 60  # a lost process ends the others within a minute
        calls.append((address, num_processes, process_id))

    monkeypatch.setattr(jax.distributed, "initialize", called)
    for name in (
        "SLURM_STEP_NUM_TASKS",
        "OMPI_COMM_WORLD_SIZE",
        "TPU_WORKER_HOSTNAMES",
        "MEGASCALE_COORDINATOR_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    sharding.initialize()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    sharding.initialize()
    assert calls == []
    for name, value in (
        ("TPU_WORKER_HOSTNAMES", "t0,t1"),
        ("SLURM_STEP_NUM_TASKS", "4"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            sharding.initialize()
        assert calls == [(None, None, None)], name
        calls.clear()
    sharding.initialize("127.0.0.1:1", process_count=2, process_index=1)
    assert calls == [("127.0.0.1:1", 2, 1)]
    with pytest.raises(ShardingError, match="must be HOST:PORT"):
        sharding.initialize("nowhere", process_count=2, process_index=1)
    for arguments in (dict(coordinator="a:1"), dict(process_count=2), dict(process_count=2, process_index=0)):
        with pytest.raises(ShardingError, match="go together"):
            sharding.initialize(**arguments)
    for index in (-1, 2):
        with pytest.raises(ShardingError, match=rf"process_index {index} must lie in \[0, 2\)"):
            sharding.initialize("a:1", process_count=2, process_index=index)
