"""Whole plans for GPUs that are not here, against arithmetic by hand: training, decoding, two nodes."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_jax.cli import infer
from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.config import Qwen3Config
from qwen3_jax.planner import costs, plan_decoding, plan_training, topology
from sharding import MeshConfig
from tests.helpers import planned_runs
from tests.helpers.gpu_compiler import needs_gpu_compiler
from tests.planner.test_training_step import CONFIGURATION, LAYERS, LENGTH, WIDTH, config

pytestmark = [needs_gpu_compiler, pytest.mark.slow]
GIB = 2**30
ROOT = Path(__file__).parent.parent.parent


def products(plan) -> float:
    """FLOPs of products of matrices alone, without kernels of attention."""
    return costs.count(plan.compiled.module).flops


def sent(plan, kind: str) -> float:
    return sum(one.bytes * times for one, times in plan.compiled.program.collectives if one.kind == kind)


def test_training_of_the_smallest_model_on_eight_gpus():
    """configs/scale/qwen3-0.6b.yaml: 28 layers of width 1,024, 16 rows of 4,096 tokens, remat "full", FSDP."""
    run = parse_config(["--config", "configs/scale/qwen3-0.6b.yaml", "--mesh.data=8"])
    plan = plan_training(run, topology("h100:8"))
    tokens, d, q, kv, mlp, vocabulary = 16 * 4096 // 8, 1024, 16 * 128, 8 * 128, 3072, 151_936
    projections, down = 2 * tokens * d * (2 * q + 2 * kv + 3 * mlp), 2 * tokens * mlp * d
    # Forward, one forward again but for a layer's last product, and twice as much backward; the output's are computed once.
    assert products(plan) == 28 * (4 * projections - down) + 3 * 2 * tokens * d * vocabulary
    one_product = 2 * tokens * q * 4096 / 2
    attention = (plan.compiled.program.flops - products(plan)) / 28 / one_product
    assert attention in (2 + 2 + 5, 2 + 2 + 7), "the backward kernel's products: five, or seven with the scores twice"
    norms = 28 * (2 * d + 2 * 128) + d
    parameters = vocabulary * d + 28 * (d * (2 * q + 2 * kv) + 3 * d * mlp) + norms
    assert sent(plan, "reduce-scatter") == pytest.approx((parameters - norms) * 4 * 7 / 8, rel=1e-3)
    assert plan.holds["weights"] == 4 * ((parameters - norms) / 8 + norms)
    memory = plan.compiled.memory
    assert memory.arguments >= 3 * plan.holds["weights"]
    assert 2.5 * GIB < memory.peak < 4 * GIB
    assert plan.fits
    assert plan.topology.capacity_gib == pytest.approx(0.75 * 79.109)
    assert (plan.compiled.program.unpriced, plan.compiled.program.unread) == ({}, {})
    assert plan.compiled.roofline.dcn_bytes == 0


@pytest.mark.parametrize(("layers", "vocabulary"), [(4, 8192), pytest.param(36, 151_936, marks=pytest.mark.soak)])
def test_decoding_on_one_gpu(layers, vocabulary):
    """Qwen3-8B, 16 rows with 4,096 slots: layers of width 4,096, 32 heads over 8. Sorting a large vocabulary compiles long."""
    model = dataclasses.replace(Qwen3Config.preset("Qwen3-8B"), num_hidden_layers=layers, vocab_size=vocabulary)
    plan = plan_decoding(model, topology("h100:1"), MeshConfig(), 16, 4096)
    d, q, kv, mlp = 4096, 32 * 128, 8 * 128, 12_288
    matrices = layers * d * (2 * q + 2 * kv + 3 * mlp)
    norms = layers * (2 * d + 2 * 128) + d
    assert plan.holds["weights"] == 2 * (matrices + 2 * vocabulary * d + norms)
    pages = 1 + 16 * 4096 // 32  # and one that idle rows write to
    assert plan.holds["cache"] == layers * 2 * kv * 2 * pages * 32
    assert products(plan) == 2 * 16 * (matrices + vocabulary * d)
    kernel = plan.compiled.program.flops - products(plan)
    one_head = layers * 4 * 16 * 8 * 128 * 4096
    assert kernel in (4 * one_head, 16 * one_head), "of 4 query heads a key/value head, which a kernel may pad to 16"
    used = layers * 2 * kv * 2 * 16 * 4096
    read = 2 * (matrices + vocabulary * d) + used
    assert read < plan.compiled.program.hbm_bytes < 1.15 * read
    assert plan.compiled.memory.peak == pytest.approx(plan.holds["weights"] + plan.holds["cache"], rel=0.05)
    assert plan.compiled.program.unpriced == {}


def test_decoding_with_int8_weights():
    """A byte for each number of a matrix, and a float32 scale for each of its columns; the embedding stays as it is."""
    d, q, kv, mlp, vocabulary, layers, rows, slots = 1024, 8 * 128, 4 * 128, 1536, 2048, 2, 4, 512
    model = Qwen3Config(
        vocab_size=vocabulary, hidden_size=d, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        head_dim=128, intermediate_size=mlp, tie_word_embeddings=False,
    )  # fmt: skip
    plan = plan_decoding(model, topology("h100:1"), MeshConfig(), rows, slots, quantize="int8")
    matrices = layers * d * (2 * q + 2 * kv + 3 * mlp) + d * vocabulary
    columns = layers * (q + 2 * kv + d + 2 * mlp + d) + vocabulary
    norms = layers * (2 * d + 2 * 128) + d
    assert plan.holds["weights"] == matrices + 4 * columns + 2 * (vocabulary * d + norms)
    assert products(plan) == 2 * rows * matrices
    read = matrices + layers * 2 * kv * 2 * rows * slots
    # 1.30: beside what must be read, a step of so small a model writes activations and draws its tokens.
    assert read < plan.compiled.program.hbm_bytes < 1.35 * read, "with bfloat16 weights it would be 1.7"
    assert "with int8 weights" in plan.title


def test_gpus_that_split_the_vocabulary_divide_the_rows_that_they_sample():
    """Each has whole logits of its own rows, and never those of all."""
    model = Qwen3Config(
        vocab_size=2048, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        intermediate_size=512, tie_word_embeddings=False,
    )  # fmt: skip
    text = plan_decoding(model, topology("h100:2"), MeshConfig(tensor=2), 8, 64).compiled.text
    assert "f32[4,2048]" in text
    assert "f32[8,2048]" not in text


def test_two_nodes_use_nvlink_and_the_network(tmp_path, monkeypatch):
    """A tiny run over 16 GPUs: of what a ring of 16 sends one part in eight leaves the node, of an exchange 8 of 15."""
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    file = tmp_path / "run.yaml"
    file.write_text(CONFIGURATION)
    plan, out = planned_runs.plan_by_command(file, "h100:8x2", "--mesh.data=16", "--data.batch_size=16")
    assert list(out) == planned_runs.KEYS
    assert (out["topology"], out["chips"], out["fits"], out["tokens_per_step"]) == ("h100:8x2", 16, True, 16 * LENGTH)
    assert out["hbm_capacity_gib"] == pytest.approx(0.9 * 79.109)
    share = {"all-to-all": 8 / 15}
    moved = [(one.kind, one.bytes * times) for one, times in plan.compiled.program.collectives]
    assert {kind for kind, _ in moved} <= {"all-gather", "reduce-scatter", "all-reduce", "all-to-all"}
    outside = sum(size * share.get(kind, 1 / 8) for kind, size in moved)
    assert out["dcn_bytes_per_chip"] == pytest.approx(outside)
    assert out["ici_bytes_per_chip"] == pytest.approx(sum(size for _, size in moved) - outside)
    tokens = LENGTH
    assert out["flops_per_chip"] > LAYERS * 3 * 2 * tokens * WIDTH * WIDTH
    text = plan.text()
    for line in (
        "16 GPUs, mesh data=16", "\n  HBM  ", "(90% of its 79.1, JAX's allocator)", "without a GPU", "\n  NVLink  ",
        "\n  network      sent per GPU: ", "\n  MFU  ", "\n  assumptions  ", "\n  not counted  memory outside",
        "\n  not counted  autotuning", "\n  not counted  NCCL's choice",
    ):  # fmt: skip
        assert line in text


@pytest.mark.soak
def test_copies_of_the_weights_in_each_node_send_gradients_alone_over_the_network():
    copies = config(mesh=MeshConfig(replica=2, data=8), data=dataclasses.replace(config().data, batch_size=16))
    plan = plan_training(copies, topology("h100:8x2"))
    assert plan.holds["weights"] * 0.9 < plan.compiled.roofline.dcn_bytes < plan.holds["weights"] * 1.5


def test_a_search_of_meshes_for_decoding(tmp_path, capsys):
    """All meshes of two GPUs that divide the model: by rows, or by heads."""
    (tmp_path / "config.json").write_text(json.dumps(dict(
        model_type="qwen3", vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
    )))  # fmt: skip
    arguments = ["--model", str(tmp_path), "--plan", "h100:2", "--context", "128", "--search"]
    assert infer.main(arguments, "infer.py") == 0
    heading, first, second, _, flags, *report = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["mesh", "HBM", "GiB"]
    assert {first.split()[0], second.split()[0]} == {"data=2", "tensor=2"}
    assert float(first.split()[2]) <= float(second.split()[2])
    assert first.split()[0] in flags
    assert report[0].startswith(f"{tmp_path}, decoding 8 rows with 128 slots each, bfloat16, on h100:2: 2 GPUs, mesh ")


def test_the_command_prints_nothing_but_the_plan(tmp_path):
    """In a fresh process: no warnings of XLA, which has no GPU to ask how sorts should run."""
    file = tmp_path / "run.yaml"
    file.write_text(CONFIGURATION)
    done = subprocess.run(
        [sys.executable, "train.py", "--config", str(file), "--plan", "l4:1", "--mesh.data=1", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"]
    assert done.stderr == ""
