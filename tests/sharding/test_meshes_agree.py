"""The same model under any mesh: the same logits and tokens, and every device holds just its share."""

import functools
import math

import numpy as np
import pytest
from flax import nnx

import qwen3_jax
import sharding
from qwen3_jax import Qwen3, Qwen3Config
from qwen3_jax.checkpoint import load_model
from qwen3_jax.kernels import Execution
from qwen3_jax.model import Structure
from tests.helpers import small_checkpoints, tiny_models

TOLERANCE = 2e-5  # of the largest logit
MESHES = {
    "one_device": {},
    "data8": dict(data=8),
    "data4_tensor2": dict(data=4, tensor=2),
    "tensor4": dict(tensor=4),
    "data2_expert4": dict(data=2, expert=4),
    "data2_expert2_tensor2": dict(data=2, expert=2, tensor=2),
    "replica2_data2_tensor2": dict(replica=2, data=2, tensor=2),
    "context2_tensor2": dict(context=2, tensor=2, data=2),
}
# Over which mesh axes each parameter is split in training; `data` and `context` are left out in serving.
SPLIT = {
    "dense": {
        "embed": "tensor data context",
        "q": "data context tensor",
        "k": "data context tensor",
        "v": "data context tensor",
        "o": "tensor data context",
        "gate": "data context tensor",
        "up": "data context tensor",
        "down": "tensor data context",
        "scale": "",
    }
}
SPLIT["moe"] = SPLIT["dense"] | dict.fromkeys(("gate", "up", "down"), "expert data context tensor")
SPLIT["moe"] |= {"router": "data context", "lm_head": "data context tensor"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """kind -> (folder, model on one device with no mesh)."""

    @functools.cache
    def make(kind: str):
        folder = small_checkpoints.write(kind, tmp_path_factory.mktemp(kind) / "model")
        return folder, qwen3_jax.load(folder)[0]

    return make


@pytest.fixture(scope="module")
def expected_logits(alone):
    return functools.cache(lambda kind: np.asarray(alone(kind)[1](small_checkpoints.tokens())))


@pytest.fixture(scope="module")
def expected_tokens(alone):
    return functools.cache(lambda kind: small_checkpoints.greedy(alone(kind)[1]))


def assert_close(logits, wanted) -> None:
    assert logits.dtype == np.float32
    assert np.abs(np.asarray(logits) - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def assert_split(model, kind: str, mesh, axes_left_out=()) -> None:
    """Every device holds its share of every parameter and no more."""
    names = set()
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        value = variable.get_value()
        names.add(path[-1])
        axes = [axis for axis in SPLIT[kind][path[-1]].split() if axis not in axes_left_out]
        share = value.nbytes // math.prod(mesh.shape[axis] for axis in axes)
        assert {shard.device for shard in value.addressable_shards} == set(mesh.devices.flat), path
        assert {shard.data.nbytes for shard in value.addressable_shards} == {share}, path
    assert names == set(SPLIT[kind])


# Every axis once but for `context`, which training's exact steps have; other sizes and pairs are slow. Of a dense model most
# are by hand: an MoE model has its attention.
QUICK = {
    "moe": ("one_device", "data2_expert2_tensor2"),
    "dense": ("replica2_data2_tensor2",),
}
BY_HAND = [(name, "dense") for name in MESHES if name not in ("tensor4", "replica2_data2_tensor2")]


def tier(name: str, kind: str) -> list[pytest.MarkDecorator]:
    return [] if name in QUICK[kind] else [pytest.mark.soak if (name, kind) in BY_HAND else pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(name, kind, marks=tier(name, kind)) for kind in QUICK for name in MESHES],
)
def test_logits_and_shares_on_every_mesh(kind, name, alone, expected_logits):
    folder, wanted = alone(kind)[0], expected_logits(kind)
    mesh = sharding.make_mesh(**MESHES[name])
    serving, _ = qwen3_jax.load(folder, mesh=mesh)
    assert_split(serving, kind, mesh, axes_left_out=["data", "context"])
    assert_close(serving(small_checkpoints.tokens()), wanted)
    training = load_model(folder, execution=Execution(sharding.Placement(mesh, sharding.TRAINING)), scan_layers=True)
    assert_split(training, kind, mesh)
    assert_close(training(small_checkpoints.tokens()), wanted)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("data2_expert2_tensor2", "moe")]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in (("data3", "moe"), ("tensor4", "dense"))]
    + [
        pytest.param(*case, marks=pytest.mark.soak)
        for case in (("data3", "dense"), ("data2_expert2_tensor2", "dense"), ("tensor4", "moe"))
    ],
)
def test_generation_on_a_mesh_gives_the_same_tokens(kind, name, alone, expected_tokens):
    """Also where four rows do not divide over `data`: the placement of activations is a hint."""
    tokens = expected_tokens(kind)
    axes = dict(data=3) if name == "data3" else MESHES[name]
    model, _ = qwen3_jax.load(alone(kind)[0], mesh=sharding.make_mesh(**axes))
    assert small_checkpoints.greedy(model) == tokens
    assert tokens[2][:3] == [17, 311, 18]
    assert tokens[1][3:6] == [17, 311, 18] or 311 in tokens[1][:3]


def test_training_splits_nearly_every_byte_over_data_and_replicas_hold_whole_copies():
    """All but norms, which are under a hundredth. Loaded arrays have these parts: see `assert_split`."""
    structure = Structure(lambda: Qwen3(Qwen3Config(**tiny_models.MOE), rngs=nnx.Rngs(0)))

    def bytes_per_device(**axes) -> int:
        shardings = structure.shardings(sharding.Placement(sharding.make_mesh(**axes), sharding.TRAINING))
        parts = {name: shardings[name].shard_shape(value.shape) for name, value in structure.shapes.items()}
        return sum(math.prod(parts[name]) * value.dtype.itemsize for name, value in structure.shapes.items())

    whole = bytes_per_device()
    assert bytes_per_device(replica=8) == whole
    assert whole / 8 < bytes_per_device(data=8) < whole / 8 + whole / 100


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_dimension_that_does_not_divide_is_named(scan_layers, alone):
    folder, _ = alone("dense")
    placement = sharding.Placement(sharding.make_mesh(tensor=8), sharding.TRAINING)
    with pytest.raises(
        sharding.ShardingError, match=r"attention\.[kv]: dimension 1 \('kv_heads', 4\) does not divide by 8"
    ):
        load_model(folder, execution=Execution(placement), scan_layers=scan_layers)
    with pytest.raises(
        sharding.ShardingError, match=r"mlp\.(gate|up|down): dimension 0 \('expert', 8\).* by 3.*'expert'"
    ):
        qwen3_jax.load(alone("moe")[0], mesh=sharding.make_mesh(expert=3))
