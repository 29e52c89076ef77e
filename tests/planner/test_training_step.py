"""The planned step is the real one: its arithmetic, traffic and memory against counts by hand, on a described v5e:2x2."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import jax
import pytest

from qwen3_jax.cli.train_options import parse_train
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import DataConfig
from qwen3_jax.data.config import Source
from qwen3_jax.errors import UserError
from qwen3_jax.planner import plan_training, search, topology, topology_mesh
from qwen3_jax.planner.architecture import training_architecture
from qwen3_jax.planner.checks import full_logits, full_stack_gathers
from qwen3_jax.planner.compile import compile_for
from qwen3_jax.planner.estimate import Estimate
from qwen3_jax.planner.estimate import estimate as estimate_of
from qwen3_jax.planner.meshes import factorizations
from qwen3_jax.planner.training_step import make_trainer, mesh_works
from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig, TokenizerConfig, TrainConfig
from qwen3_jax.training.flops import training_flops_per_token
from sharding import AXES, MeshConfig, ShardingError
from tests.helpers import planned_runs

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
LAYERS, WIDTH, MLP, HEADS, KV, HEAD, VOCABULARY, ROWS, LENGTH = 6, 128, 256, 4, 2, 64, 1024, 8, 256


def config(**changes) -> TrainConfig:
    """A tiny dense run; `changes` are fields of `TrainConfig`, and `architecture` fields of the model over these."""
    fields = dict(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV, head_dim=HEAD, tie_word_embeddings=False,
    ) | changes.pop("architecture", {})  # fmt: skip
    values = dict(
        steps=1000,
        data=DataConfig([Source("text", "no/such/folder")], sequence_length=LENGTH, batch_size=ROWS),
        model=ModelConfig(config=fields, dtype="bfloat16", remat="full"),
        tokenizer=TokenizerConfig(vocab_size=VOCABULARY),
        loss=LossConfig(chunk_tokens=128),
        mesh=MeshConfig(data=4),
    )
    return TrainConfig(**(values | changes))


CONFIGURATION = f"""
steps: 1000
data: {{sequence_length: {LENGTH}, batch_size: {ROWS}, sources: [{{name: text, path: no/such/folder}}]}}
model:
  dtype: bfloat16
  remat: full
  config: {{vocab_size: {VOCABULARY}, hidden_size: {WIDTH}, intermediate_size: {MLP}, num_hidden_layers: {LAYERS},
    num_attention_heads: {HEADS}, num_key_value_heads: {KV}, head_dim: {HEAD}, tie_word_embeddings: false}}
tokenizer: {{vocab_size: {VOCABULARY}}}
loss: {{chunk_tokens: 128}}
mesh: {{data: 4}}
"""


@pytest.fixture(scope="module")
def plan_and_output(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "run.yaml"
    file.write_text(CONFIGURATION)
    assert parse_train(["--config", str(file)], "train.py").config == config()
    return planned_runs.plan_by_command(file, "v5e:2x2")


@pytest.fixture(scope="module")
def planned(plan_and_output):
    return plan_and_output[0]


@needs_libtpu
def test_a_plan_needs_only_the_configuration(plan_and_output):
    plan, out = plan_and_output
    assert out == plan.json()
    assert list(out) == planned_runs.KEYS
    assert (out["topology"], out["chips"], out["fits"], out["tokens_per_step"]) == ("v5e:2x2", 4, True, ROWS * LENGTH)
    assert out["mesh"] == {"replica": 1, "data": 4, "expert": 1, "context": 1, "tensor": 1}
    assert out["hbm_capacity_gib"] == 16
    assert 0 < out["hbm_peak_gib"] < 1
    assert 0 < out["roofline_mfu"] < 1
    assert out["dcn_bytes_per_chip"] == 0 < out["ici_bytes_per_chip"]


@needs_libtpu
def test_arithmetic_is_what_the_architecture_needs(planned):
    """Forward, backward and one forward again; the last product of a layer is not computed again, nor is the output's."""
    tokens = ROWS * LENGTH // 4
    projections = 2 * tokens * WIDTH * (2 * HEADS * HEAD + 2 * KV * HEAD + 3 * MLP)
    down = 2 * tokens * MLP * WIDTH
    output = 3 * 2 * tokens * WIDTH * VOCABULARY
    pairs = LENGTH * LENGTH  # one block of queries and keys, which causal order cannot skip
    attention = 2 * (ROWS // 4) * HEADS * HEAD * pairs
    # Twice scores and output, then the five products of the kernel's fused backward pass.
    expected = LAYERS * (4 * projections - down + (2 + 2 + 5) * attention) + output
    assert planned.compiled.roofline.flops == expected
    assert planned.compiled.program.unknown_loops == []
    assert planned.compiled.program.unpriced == {}
    model = training_architecture(config())
    assert planned.model_flops == ROWS * LENGTH * training_flops_per_token(model, LENGTH)


@needs_libtpu
def test_memory_holds_weights_and_moments_once_per_mesh(planned):
    parameters = LAYERS * (WIDTH * HEAD * (2 * HEADS + 2 * KV) + 3 * WIDTH * MLP + 2 * WIDTH + 2 * HEAD)
    parameters += 2 * VOCABULARY * WIDTH + WIDTH
    norms = LAYERS * (2 * WIDTH + 2 * HEAD) + WIDTH  # too small to split
    per_chip = 4 * ((parameters - norms) / 4 + norms)
    assert planned.holds["weights"] == per_chip
    assert planned.holds["optimizer"] == pytest.approx(2 * per_chip, abs=64)
    memory = planned.compiled.memory
    assert memory.arguments >= 3 * per_chip
    assert memory.peak == memory.arguments + memory.results + memory.temporary + memory.code
    assert planned.fits


@needs_libtpu
def test_parameters_are_gathered_one_layer_at_a_time_and_logits_in_chunks(planned):
    assert full_stack_gathers(planned.compiled.module, LAYERS) == []
    assert full_logits(planned.compiled.module, VOCABULARY, ROWS * LENGTH // 4) == []


@needs_libtpu
def test_the_checks_see_a_gathered_stack_and_full_logits():
    """The same checks of a program that gathers the whole stack and holds all logits."""
    mesh = topology_mesh(topology("v5e:2x2"), MeshConfig(data=4))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "data"))
    stack = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), "float32", sharding=split)
    batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((ROWS, LENGTH, WIDTH), "float32", sharding=batch)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    head = jax.ShapeDtypeStruct((WIDTH, VOCABULARY), "float32", sharding=whole)

    def bad(stack, x, head):
        stack = jax.lax.with_sharding_constraint(stack * 2, whole)
        return jax.nn.logsumexp(x @ stack.sum(0) @ head, axis=-1).sum(), stack

    compiled = compile_for(jax.jit(bad).lower(stack, x, head), topology("v5e:2x2"), mesh)
    assert full_stack_gathers(compiled.module, LAYERS)
    assert full_logits(compiled.module, VOCABULARY, ROWS * LENGTH // 4)


@needs_libtpu
@pytest.mark.slow
def test_micro_batches_gather_parameters_again(planned):
    """Two micro-batches: the same arithmetic, twice the traffic of parameters."""
    again = plan_training(config(micro_batches=2), topology("v5e:2x2"))
    assert again.compiled.roofline.flops == planned.compiled.roofline.flops
    assert sum(again.compiled.roofline.ici_bytes.values()) > 1.3 * sum(planned.compiled.roofline.ici_bytes.values())


@needs_libtpu
@pytest.mark.slow
def test_between_slices_only_gradients_travel(tmp_path):
    """Planned by `qwen3 plan --slices 2`."""
    file = tmp_path / "run.yaml"
    file.write_text(CONFIGURATION)
    two, _ = planned_runs.plan_by_command(file, "v5e:2x2", "--slices", "2")
    assert two.mesh["replica"] == 2
    assert any("mesh.replica=2" in note for note in two.notes)
    gradients = two.holds["weights"]  # float32, and a sum over two slices sends each chip's part once
    assert gradients * 0.9 < two.compiled.roofline.dcn_bytes < gradients * 1.5
    assert all("replica" not in axes for axes in two.compiled.roofline.ici_bytes)
    text = two.text()
    assert "on 2 x v5e:2x2: 8 chips, mesh replica=2, data=4" in text
    assert "2 slices hold one copy each: mesh.replica=2" in text
    for line in ("HBM  ", "arithmetic", "ICI  ", "DCN  ", "step  ", "MFU  ", "assumptions"):
        assert f"\n  {line}" in text
    assert "DCN          sent per chip: 0.00 GB (0.0 us" not in text


@needs_libtpu
@pytest.mark.slow
def test_experts_are_counted_by_the_rows_that_reach_them():
    fields = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128)
    moe = plan_training(config(architecture=fields, mesh=MeshConfig(data=2, expert=2)), topology("v5e:2x2"))
    assert moe.compiled.program.unpriced == {}
    assert moe.compiled.program.unknown_loops == []
    ratio = moe.compiled.roofline.flops * 4 / moe.model_flops
    assert 1.0 < ratio < 1.8  # one forward pass again, and attention whose one block causal order cannot skip
    assert any("expert" in axes for axes in moe.compiled.roofline.ici_bytes)


@needs_libtpu
def test_meshes_that_do_not_divide_the_model_are_refused_with_the_nearest():
    slice = topology("v5e:2x2")
    with pytest.raises(ShardingError, match=r"does not divide by 4.* Nearest that work: data=2, tensor=2;"):
        make_trainer(config(mesh=MeshConfig(tensor=4)), training_architecture(config()), slice)
    data = dataclasses.replace(config().data, batch_size=6)
    with pytest.raises(ShardingError, match=r"choose a multiple of 4\. Nearest that work: data=2, tensor=2"):
        plan_training(config(data=data), slice)


@needs_libtpu
@pytest.mark.parametrize("experts", [{}, dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=96)])
def test_whether_a_mesh_works_is_known_without_building(experts):
    slice = topology("v5e:2x4")
    run = config(architecture=experts)
    model = training_architecture(run)
    for sizes in factorizations(8, len(AXES)):
        tried = dataclasses.replace(run, mesh=MeshConfig(**dict(zip(AXES, sizes, strict=True))))
        try:
            make_trainer(tried, model, slice).abstract_batch(ROWS, LENGTH)
            works = True
        except ShardingError:
            works = False
        assert mesh_works(tried, model, sizes) == works, sizes


def test_the_vocabulary_comes_from_what_names_it():
    run = config()
    assert training_architecture(run).vocab_size == VOCABULARY
    assert training_architecture(dataclasses.replace(run, model=ModelConfig(preset="Qwen3-0.6B"))).vocab_size == 151_936
    trained = dataclasses.replace(run, model=ModelConfig(), tokenizer=TokenizerConfig(vocab_size=1000))
    assert training_architecture(trained).vocab_size == 1024
    assert training_architecture(
        dataclasses.replace(run, model=ModelConfig(init_from="Qwen/Qwen3-8B"))
    ) == dataclasses.replace(Qwen3Config.preset("Qwen3-8B"), dtype="float32")
    with pytest.raises(UserError, match=r"set model\.config\.vocab_size"):
        training_architecture(
            dataclasses.replace(run, model=ModelConfig(), tokenizer=TokenizerConfig(path="some/where"))
        )


@needs_libtpu
def test_estimates_order_settings_as_they_should():
    slice = topology("v5p:4x4x4")
    run = config(
        model=ModelConfig(preset="Qwen3-8B", dtype="bfloat16"),
        data=DataConfig([Source("text", "no/such/folder")], sequence_length=4096, batch_size=128),
        mesh=MeshConfig(data=64),
    )
    model = training_architecture(run)

    def estimate(remat="full", micro=1, optimizer=OptimizerConfig(), **axes) -> Estimate:
        one = dataclasses.replace(
            run, model=dataclasses.replace(run.model, remat=remat), micro_batches=micro, optimizer=optimizer
        )
        return estimate_of(one, model, slice, MeshConfig(**axes).sizes(64))

    kept = [estimate(remat, data=64) for remat in ("full", "attention", "qkv", "mlp", "dots", "none")]
    assert [one.memory for one in kept] == sorted(one.memory for one in kept)
    assert kept[-1].seconds < kept[0].seconds
    assert estimate(micro=2, data=64).memory < kept[0].memory + 4 * 8.2e9 / 64
    assert estimate(data=16, tensor=4).seconds > kept[0].seconds
    assert estimate(optimizer=OptimizerConfig(moment_dtype="bfloat16"), data=64).memory < kept[0].memory
    every = list(search.candidates(run, model, slice))
    assert all(mesh_works(one, model, one.mesh.sizes(64)) for one, _ in every)
    assert {one.model.remat for one, _ in every} == {"none", "dots", "mlp", "qkv", "attention", "full"}


@needs_libtpu
@pytest.mark.parametrize(
    ("remat", "limit"),
    [
        pytest.param("none", 1, marks=pytest.mark.slow),
        pytest.param("none", 2, marks=pytest.mark.soak),
        pytest.param("dots", 2, marks=pytest.mark.soak),
        pytest.param("full", 3, marks=pytest.mark.soak),
    ],
)
def test_search_compiles_the_promising_and_ranks_them(remat, limit):
    slice = topology("v5e:2x2")
    results = search.search(config(model=dataclasses.replace(config().model, remat=remat)), slice, limit=limit)
    steps = [result.plan.compiled.roofline.step_s for result in results if result.plan.fits]
    assert steps == sorted(steps)
    settings = {(result.mesh, result.remat, result.micro_batches) for result in results}
    policies = ("none", "dots", "mlp", "qkv", "attention", "full")
    own = {((1, 4, 1, 1, 1), policy, 1) for policy in policies[: policies.index(remat) + 1]}
    assert own <= settings, "the configuration's own mesh under its policy and all that recompute less, which fit"
    assert len({mesh for mesh, *_ in settings}) >= limit, "other meshes than its own"
    text = search.table(results, slice)
    assert "--model.remat=" in text.splitlines()[len(results) + 2]  # below a heading and the rows
    data = dataclasses.replace(config().data, batch_size=3, sequence_length=255)  # nothing to split but heads
    with pytest.raises(UserError, match="no mesh of the 4 devices of v5e:2x2 divides 3 rows"):
        search.search(config(data=data), slice)


@dataclasses.dataclass
class FakePlan:
    """A program of a known time and size."""

    mesh: dict
    step_s: float
    fits: bool

    @property
    def compiled(self):
        return SimpleNamespace(roofline=SimpleNamespace(step_s=self.step_s), needed=None)


@needs_libtpu
@pytest.mark.parametrize("policy", ["none", "dots", "mlp", "qkv", "attention", "full"])
def test_search_finds_what_one_flag_finds(monkeypatch, policy):
    """Whichever policy is the quickest that fits, on the configuration's own mesh: estimates do not decide it."""
    order = ["none", "dots", "mlp", "qkv", "attention", "full"]
    compiled = []

    def plan(setting, topology):
        sizes, place = setting.mesh.sizes(4), order.index(setting.model.remat)
        own = sizes == (1, 4, 1, 1, 1)
        compiled.append((sizes, setting.model.remat, setting.micro_batches))
        seconds = 1.0 + place + setting.micro_batches / 10 + (0 if own else 9)
        return FakePlan(dict(zip(AXES, sizes, strict=True)), seconds, not own or place >= order.index(policy))

    monkeypatch.setattr(search, "plan_training", plan)
    best = search.search(config(), topology("v5e:2x2"))[0]
    assert (best.mesh, best.remat, best.micro_batches) == ((1, 4, 1, 1, 1), policy, 1)
    assert len(compiled) == len(set(compiled)) <= 15
    assert len({mesh for mesh, *_ in compiled}) >= 2, "another mesh than its own"
