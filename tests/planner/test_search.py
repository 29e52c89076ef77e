"""The search of settings with made-up programs: what fails is replaced, and what was compiled corrects the estimates."""

import dataclasses
from types import SimpleNamespace

import pytest

from qwen3_jax.planner import search
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.compile import DoesNotCompile
from qwen3_jax.planner.estimate import estimate, rate
from qwen3_jax.planner.plan import GIB
from sharding import AXES, MeshConfig
from tests.planner.test_gpu_nodes import nodes_of
from tests.planner.test_training_step import config


def fake(setting, seconds: float, needed: float, capacity: float):
    compiled = SimpleNamespace(roofline=SimpleNamespace(step_s=seconds), needed=needed)
    return SimpleNamespace(compiled=compiled, fits=needed <= capacity, mesh=setting.mesh)


def test_settings_that_do_not_compile_are_replaced_and_listed(monkeypatch):
    """On 8 GPUs of one node every mesh with `tensor` fails; others are compiled in their place."""
    topology, _ = nodes_of(1, 8, data=8)

    def plan(setting, _):
        if setting.mesh.tensor > 1 or setting.model.remat == "none":
            raise DoesNotCompile("a kernel needs more shared memory")
        return fake(setting, 1.0 + setting.mesh.context, 1.0, 2.0)

    monkeypatch.setattr(search, "plan_training", plan)
    run = dataclasses.replace(config(), mesh=MeshConfig(tensor=2, data=4))
    ranking = search.search(run, topology, limit=3)
    assert all(result.mesh[AXES.index("tensor")] == 1 and result.remat != "none" for result in ranking)
    assert len({result.mesh for result in ranking}) >= 2
    assert ranking.failed
    assert all("a kernel needs more shared memory" in text for text in ranking.failed)
    assert "data=4, tensor=2, remat full: " in ranking.failed[0]


def test_where_nothing_compiles_the_first_reason_is_told(monkeypatch):
    def plan(setting, _):
        raise DoesNotCompile("not on this card")

    monkeypatch.setattr(search, "plan_training", plan)
    with pytest.raises(DoesNotCompile, match="data=8, remat full: not on this card"):
        search.search(dataclasses.replace(config(), mesh=MeshConfig(data=8)), nodes_of(1, 8, data=8)[0])


def test_a_compiled_program_corrects_the_estimates_of_its_policy(monkeypatch):
    """The first program does not fit, so nothing larger than the smallest by estimate is expected to: that one is next."""
    topology, _ = nodes_of(1, 8, data=8)
    run = dataclasses.replace(config(), mesh=MeshConfig(data=8))
    model = training_architecture(run)
    compiled = search._Compiled(model, topology, SimpleNamespace(advance=lambda note: None))
    least = {
        sizes: min(one.memory for setting, one in search.candidates(run, model, topology) if setting.mesh.sizes(8) == sizes)
        for sizes in {setting.mesh.sizes(8) for setting, _ in search.candidates(run, model, topology)}
    }  # fmt: skip
    capacity = topology.capacity_gib * GIB

    def plan(setting, _):
        one = estimate(setting, model, topology, setting.mesh.sizes(8))
        return fake(setting, one.seconds, one.memory * capacity / min(least.values()), capacity)

    monkeypatch.setattr(search, "plan_training", plan)
    settings = search._settings(run, model, topology)
    before = compiled.next_of(settings)
    assert not compiled.fits(dataclasses.replace(run, mesh=MeshConfig(data=8)))
    after = compiled.next_of(settings)
    tried = (1, 8, 1, 1, 1)
    assert before.mesh.sizes(8) == tried or after.mesh.sizes(8) != before.mesh.sizes(8)
    smallest = min((size for sizes, size in least.items() if sizes != tried))
    assert estimate(after, model, topology, after.mesh.sizes(8)).memory == smallest


@pytest.mark.parametrize(
    ("axis", "size", "mesh", "bytes_per_second"),
    [
        ("tensor", 8, dict(data=2, tensor=8), 4.5e11),
        ("data", 16, dict(data=16), 4e11),  # eight network cards a node, 50 GB/s each
        ("data", 2, dict(data=2, tensor=8), 5e10),  # one of each node
        ("data", 8, dict(data=8, tensor=2), 2e11),
    ],
)
def test_rates_over_two_nodes(axis, size, mesh, bytes_per_second):
    topology, laid = nodes_of(2, 8, **mesh)
    assert rate(topology, laid.shape, axis, size) == bytes_per_second


def test_copies_of_the_weights_are_tried_one_per_node():
    topology, _ = nodes_of(2, 8, data=16)
    run = dataclasses.replace(config(), data=dataclasses.replace(config().data, batch_size=32))
    every = [setting.mesh.replica for setting, _ in search.candidates(run, training_architecture(run), topology)]
    assert set(every) == {1, 2}
