"""Nodes of GPUs by name, without a GPU: what is described, what is refused, and what a collective sends on which network."""

import dataclasses
import importlib.metadata
import importlib.resources
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from qwen3_jax.errors import UserError
from qwen3_jax.planner import Plan, gpu_nodes, roofline, topology, topology_mesh
from qwen3_jax.planner.compile import Compiled, Memory
from qwen3_jax.planner.networks import Nodes
from qwen3_jax.planner.program import Collective, Program, Wait, Work
from qwen3_jax.planner.topologies import Topology
from sharding import AXES, MeshConfig, ShardingError
from sharding.hardware import GPUS, memory_bandwidth, peak_flops
from tests.helpers.gpu_compiler import needs_gpu_compiler


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("h100:8", ("h100", 1, 8)), ("h100:8x1", ("h100", 1, 8)), ("h100:8x4", ("h100", 4, 8)), ("h200:4", ("h200", 1, 4)),
        ("b200:8x16", ("b200", 16, 8)), ("a100:3", ("a100", 1, 3)), ("l4:1", ("l4", 1, 1)), ("t4:1", ("t4", 1, 1)),
    ],
)  # fmt: skip
def test_a_name_is_a_card_the_cards_of_a_node_and_the_nodes(name, parsed):
    card, *counts = parsed
    assert gpu_nodes.is_gpu(name)
    assert gpu_nodes.parse(name) == (GPUS[card], *counts)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "h100",
            "'h100' is not CARD:GPUS or CARD:GPUSxNODES; for example h100:8, one node, or h100:8x4, four nodes of 8",
        ),
        ("h100:", "is not CARD:GPUS"),
        ("h100:0", "is not CARD:GPUS"),
        ("h100:8x0", "is not CARD:GPUS"),
        ("h100:2x2x2", "is not CARD:GPUS"),
        ("h100-8", "is not CARD:GPUS"),
        ("h100:16", "no node of 16 GPUs in 'h100:16': one has at most 8; the nearest is h100:8x2"),
        ("H100:8", "there is no GPU 'H100' .*, and of GPUs a100, h100, h200, b200, l4, t4: try h100:8"),
        ("v100:8", "there is no GPU 'v100' .*: try h100:8"),
        ("h100-80gb:8", "is not CARD:GPUS"),
    ],
)
def test_nodes_that_do_not_exist_are_refused_with_the_nearest(name, words):
    with pytest.raises(ShardingError, match=words):
        topology(name)


def test_slices_are_of_tpus():
    with pytest.raises(ShardingError, match="nodes of GPUs stand in the name, h100:8x2"):
        topology("h100:8", 2)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, 0.75),
        ({"XLA_CLIENT_MEM_FRACTION": "0.9"}, 0.9),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".92"}, 0.92),
        ({"XLA_CLIENT_MEM_FRACTION": ""}, 0.75),
        ({"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}, 1.0),
        ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, 0.75),
    ],
)
def test_the_share_of_memory_is_what_a_run_would_get(environment, share, monkeypatch):
    _set(monkeypatch, environment)
    assert gpu_nodes.allocator_share() == share


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"XLA_CLIENT_MEM_FRACTION": "most"}, "XLA_CLIENT_MEM_FRACTION is 'most'; it must be a share"),
        ({"XLA_CLIENT_MEM_FRACTION": "0"}, "is '0'; it must be a share"),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "90"}, "XLA_PYTHON_CLIENT_MEM_FRACTION is '90'"),
        ({"XLA_CLIENT_MEM_FRACTION": ".5", "XLA_PYTHON_CLIENT_MEM_FRACTION": ".6"}, "are both set; remove the second"),
    ],
)
def test_a_share_that_a_run_would_not_take_is_refused_by_name(environment, words, monkeypatch):
    _set(monkeypatch, environment)
    with pytest.raises(UserError, match=words):
        gpu_nodes.allocator_share()


def _set(monkeypatch, environment: dict[str, str]) -> None:
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_ALLOCATOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("installed", "words"),
    [
        ({}, "planning for h100:8x2 needs jax-cuda13-plugin {v}, jax-cuda13-pjrt {v}, nvidia-cuda-nvcc, nvidia-nvvm: "),
        (
            {"jax-cuda13-plugin": "0.1", "jax-cuda13-pjrt": "{v}", "nvidia-cuda-nvcc": "13", "nvidia-nvvm": "13"},
            "needs jax-cuda13-plugin {v} (0.1 is installed): ",
        ),
    ],
)
def test_a_plan_without_the_compiler_says_what_to_install(installed, words, monkeypatch):
    version = jax.__version__

    def of(package):
        if package not in installed:
            raise importlib.metadata.PackageNotFoundError(package)
        return installed[package].format(v=version)

    monkeypatch.setattr(importlib.metadata, "version", of)
    monkeypatch.setattr(gpu_nodes.shutil, "which", lambda name: None)
    gpu_nodes.devices.cache_clear()
    command = (
        f"pip install --no-deps jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version} nvidia-cuda-nvcc nvidia-nvvm"
    )
    with pytest.raises(ShardingError, match=re.escape(words.format(v=version) + command)):
        topology("h100:8x2")


@pytest.mark.parametrize("name", GPUS)
def test_a_card_in_the_table_is_the_card_that_xla_compiles_for(name):
    text = (importlib.resources.files("qwen3_jax.planner") / "gpu_targets" / f"{name}.txtpb").read_text()
    fields = {key: value.strip('"') for key, value in re.findall(r'(\w+): ("[^"]*"|\S+)', text)}
    gpu = GPUS[name]
    assert gpu.hbm_gib == pytest.approx(int(fields["device_memory_size"]) / 2**30, abs=1e-3)
    assert gpu.hbm_bandwidth == pytest.approx(int(fields["memory_bandwidth"]), rel=0.005)
    device = SimpleNamespace(platform="gpu", device_kind=fields["name"])
    assert fields["device_description_str"] == fields["name"]
    assert (peak_flops(device), memory_bandwidth(device)) == (gpu.flops, gpu.hbm_bandwidth)


def test_a_card_with_a_longer_name_is_another_card():
    """An L40S is no L4; an H100 with a suffix is an H100."""
    assert peak_flops(SimpleNamespace(platform="gpu", device_kind="NVIDIA L40S")) is None
    assert peak_flops(SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 NVL")) == GPUS["h100"].flops


def nodes_of(nodes: int, per_node: int, **axes: int) -> tuple[Topology, Mesh]:
    """Nodes of H100 with devices that are only numbers: no compiler is needed."""
    devices = tuple(range(nodes * per_node))
    sizes = dataclasses.astuple(MeshConfig(**axes))
    mesh = SimpleNamespace(devices=np.asarray(devices).reshape(sizes), shape=dict(zip(AXES, sizes, strict=True)))
    return Topology(f"h100:{per_node}x{nodes}", 1, (nodes, per_node), GPUS["h100"], devices, 0.75), mesh


@pytest.mark.parametrize(
    ("kind", "axes", "groups", "inside", "outside", "seconds"),
    [
        # 1 GB over the 8 GPUs of a node: all by NVLink.
        ("all-gather", dict(data=2, tensor=8), "tensor", 1.0, 0.0, 1 / 450),
        # Over all 16: of a ring's 8 edges that leave a node's GPUs, one leaves the node.
        ("all-reduce", dict(data=16), "data", 7 / 8, 1 / 8, 1 / 8 / 50),
        # One GPU per node: everything by the network card.
        ("reduce-scatter", dict(replica=2, data=8), "replica", 0.0, 1.0, 1 / 50),
        # 4 GPUs in each of two nodes.
        ("all-gather", dict(data=8, tensor=2), "data", 3 / 4, 1 / 4, 1 / 4 / 50),
        # An exchange among 16: 8 of the 15 others are in the other node.
        ("all-to-all", dict(expert=16), "expert", 7 / 15, 8 / 15, 8 / 15 / 50),
        ("ragged-all-to-all", dict(data=2, expert=8), "expert", 1.0, 0.0, 1 / 450),
    ],
)
def test_a_collective_over_nodes_uses_both_networks(kind, axes, groups, inside, outside, seconds):
    topology, mesh = nodes_of(2, 8, **axes)
    network = Nodes(topology, mesh)
    numbers = np.arange(16).reshape(list(mesh.shape.values()))
    along = AXES.index(groups)
    members = np.moveaxis(numbers, along, -1).reshape(-1, numbers.shape[along])
    one = Collective(kind, 1e9, members, "")
    assert network.axes(one) == groups
    traffic = network.traffic(one)
    sent = {i: part.bytes / 1e9 for i, part in traffic.items()}
    assert sent == {i: pytest.approx(share) for i, share in ((0, inside), (1, outside)) if share}
    assert max(part.seconds for part in traffic.values()) == pytest.approx(seconds)


def test_a_shift_leaves_the_node_at_its_edge():
    """Each of 16 sends to the next: 2 of 16 cross, and these take a network card's time."""
    topology, mesh = nodes_of(2, 8, context=16)
    pairs = np.asarray([(i, (i + 1) % 16) for i in range(16)])
    traffic = Nodes(topology, mesh).traffic(Collective("collective-permute", 1e9, pairs, ""))
    assert (traffic[0].bytes, traffic[1].bytes) == (14e9 / 16, 2e9 / 16)
    assert (traffic[0].seconds, traffic[1].seconds) == (1 / 450, 1 / 50)


def test_the_step_time_and_its_bound_over_nodes():
    topology, mesh = nodes_of(2, 8, data=16)
    gather = Collective("all-gather", 8e9, np.arange(16)[None], "", "k")
    work = Work("w", 1e-3 * GPUS["h100"].flops, 0.0)
    bound = roofline.bound(Program([gather, work, Wait("k")]), topology, mesh)
    assert (bound.ici_bytes, bound.dcn_axes) == ({"data": 7e9}, {"data": 1e9})
    assert (bound.step_s, bound.dcn_s, bound.dcn_bytes) == (pytest.approx(0.02), pytest.approx(0.02), 1e9)
    assert bound.bound == "network"
    topology, mesh = nodes_of(1, 8, data=8)
    bound = roofline.bound(Program([dataclasses.replace(gather, groups=np.arange(8)[None]), Wait("k")]), topology, mesh)
    assert bound.bound == "NVLink"


@needs_gpu_compiler
@pytest.mark.parametrize(("name", "count"), [("h100:8", 8), ("h100:8x4", 32), ("l4:1", 1)])
def test_cards_are_described_without_a_gpu(name, count):
    described = topology(name)
    assert (described.chips, len(described.devices)) == (count, count)
    assert peak_flops(described.devices[0]) == described.chip.flops
    mesh = topology_mesh(described, MeshConfig(data=-1))
    assert mesh.devices.shape == (1, count, 1, 1, 1)
    assert list(mesh.devices.flat) == list(described.devices)


@pytest.mark.parametrize("card", ["h100", "t4"])
def test_a_report_names_what_only_a_device_could_tell(card):
    topology = Topology(f"{card}:1", 1, (1, 1), GPUS[card], (0,), 0.75)
    mesh = dict.fromkeys(AXES, 1)
    memory = Memory(2 * 2**30, 0, 2**30, 0)
    program = Program([Work("w", GPUS[card].flops, 0.0)], unpriced={"new_kernel": 3.0}, unread={"a transfer (s)": 2.0})
    bound = roofline.bound(program, *nodes_of(1, 1, data=1))
    compiled = Compiled(1.0, memory, memory.peak, bound, "", program)
    text = Plan("A run", topology, mesh, compiled, {"weights": 2**30}, 8, 1.0).text()
    capacity = 0.75 * GPUS[card].hbm_gib
    for line in (
        f"A run, on {card}:1: 1 GPUs, mesh one device\n",
        f"  HBM          3.00 of {capacity:.4g} GiB per GPU (75% of its {GPUS[card].hbm_gib:.1f}, JAX's allocator)",
        "fits: weights 1.00, other arguments 1.00, activations and temporary 1.00, results 0.00, code 0.00",
        "\n  not counted  the FLOPs of kernels and operations without a known cost: new_kernel (3 times)\n",
        "\n  not counted  a transfer (s) (2 times)\n",
        *(f"\n  not counted  {what}" for what in gpu_nodes.NOT_COUNTED),
    ):
        assert line in text
    assert ("take no bfloat16" in text) == (card == "t4")
    assert "DCN" not in text
    small = Plan("A run", topology, mesh, dataclasses.replace(compiled, memory=Memory(2**38, 0, 0, 0)), {}, 8, 1.0)
    assert not small.fits
    assert small.json()["hbm_capacity_gib"] == capacity
