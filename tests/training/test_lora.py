"""Training adapters: what the state holds, runs, their folders, meshes, resuming."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import qwen3_jax
import sharding
from qwen3_jax import UserError
from qwen3_jax.checkpoint.adapters.attach import adapter_arrays, structure, with_adapter
from qwen3_jax.checkpoint.adapters.files import read_adapter
from qwen3_jax.cli.train_options import parse_config
from qwen3_jax.model import flatten
from qwen3_jax.training import adapters as lora_runs
from qwen3_jax.training import train
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.methods import LoraConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.run_folder import load_run
from qwen3_jax.training.step import Trainer
from tests.helpers import adapters, small_run, tiny_models
from tests.helpers.adapters import AdapterConfig
from tests.helpers.equations import decoder
from tests.helpers.tiny_models import TINY, TINY_MOE, packed_batch

OPTIONS = OptimizerConfig(warmup_steps=0, spike_window=8)


def trainer_of(config, lora, mesh=None, **options):
    placement = sharding.Placement(None if mesh is None else sharding.make_mesh(**mesh), sharding.TRAINING)
    model = ModelConfig(**options)
    return Trainer(config, model, OPTIONS, schedule(OPTIONS, 100), placement, lora=lora)


def test_the_state_holds_the_adapters_alone():
    """Bytes of parameters, moments and checkpoint entries: those of A and B, three times, and none of the base."""
    lora = lora_runs.lora_of(LoraConfig(rank=4, targets="all-linear"), TINY)
    state = trainer_of(TINY, lora).abstract_state()
    d, f, n, k = TINY.hidden_size, TINY.intermediate_size, 64, 32  # widths of q and o, and of k and v
    shapes = [(d, n), (d, k), (d, k), (n, d), (d, f), (d, f), (f, d)]
    expected = 2 * sum(4 * (inputs + outputs) for inputs, outputs in shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == expected
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * expected
    assert all(".adapters." in name for name in state.params)
    full = trainer_of(TINY, None).abstract_state()

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    assert size(state) < size(full) / 3
    for changes, words in [
        (dict(rank=0), "lora.rank is 0"),
        (dict(init_from="x", rank=4), "lora.init_from sets lora.rank"),
        (dict(init_from="x", targets=["q_proj"]), "lora.init_from sets lora.targets"),
    ]:
        with pytest.raises(UserError, match=words):
            LoraConfig(**changes)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, marks=pytest.mark.soak),  # PEFT's steps in test_adapters_against_peft.py have its gradients
        pytest.param(TINY_MOE, marks=pytest.mark.slow),
    ],
    ids=["dense", "moe"],
)
def test_gradients_agree_on_meshes_layouts_and_quantised_bases(config):
    """And equal those of the whole weights, by the chain rule: dA = scaling dW B^T."""
    settings = AdapterConfig(4, 8.0, adapters.names(config))
    model = tiny_models.drawn(config, scan_layers=True)
    drawn = adapters.drawn(settings, config)
    arrays = adapter_arrays(structure(model, drawn.lora), model, drawn.lora, drawn.values)
    batch = packed_batch(rows=8, length=24)

    def gradients(base=None, mesh=None, **options):
        trainer = trainer_of(config, drawn.lora, mesh, **options)
        base = flatten(model) if base is None else base
        constants = {name: value for name, value in arrays.items() if name not in trainer.shardings.params}
        every = trainer.structure.shardings(trainer.placement)
        trainer.take_base({name: jax.device_put(value, every[name]) for name, value in (base | constants).items()})
        params = {name: jax.device_put(arrays[name], place) for name, place in trainer.shardings.params.items()}
        found, loss = trainer.gradients(params, trainer.place(batch))
        assert found.keys() == trainer.shardings.params.keys()
        return jax.device_get(found), float(loss.total)

    first, loss = gradients()
    axes = {"expert": 2} if config.num_experts else {"context": 2}
    for options in (dict(mesh=dict(data=2, tensor=2) | axes), dict(mesh=dict(data=8)), dict(remat="full")):
        other, again = gradients(**options)
        assert again == pytest.approx(loss, rel=1e-5)
        for name, value in first.items():
            np.testing.assert_allclose(other[name], value, atol=2e-5 * np.abs(value).max(), err_msg=name)
    # The chain rule, from a trainer of all parameters whose weights have the adapters added.
    from qwen3_jax.checkpoint.adapters.attach import merged

    whole = merged(structure(model, drawn.lora).merge(flatten(model) | arrays))
    full = trainer_of(whole.config, None)
    dense = jax.device_get(full.gradients(flatten(whole), full.place(batch))[0])
    dw, b = dense["groups.0.attention.q"], np.asarray(arrays["groups.0.attention.adapters.q.b"])
    expected = 2.0 * np.einsum("ldnh,lrnh->ldr", dw, b)
    np.testing.assert_allclose(first["groups.0.attention.adapters.q.a"], expected, atol=2e-5 * np.abs(expected).max())
    for kind in ("int8", "int4"):
        rounded = quantised(flatten(model), config, kind)
        from qwen3_jax.kernels import dequantize, is_quantized

        plain = {n: dequantize(w, np.float32) if is_quantized(w) else w for n, w in rounded.items()}
        trainer = trainer_of(config, drawn.lora)
        constants = {name: value for name, value in arrays.items() if name not in trainer.shardings.params}
        params = {name: arrays[name] for name in trainer.shardings.params}
        results = []
        for base in (rounded, plain):
            trainer.take_base(base | constants)
            results.append(jax.device_get(trainer.gradients(params, trainer.place(batch))[0]))
        for name, value in results[1].items():
            np.testing.assert_allclose(results[0][name], value, atol=2e-5 * np.abs(value).max(), err_msg=name)


def quantised(params, config, kind):
    """A model's parameters as `load(quantize=)` stores them."""
    import tempfile
    from pathlib import Path

    from qwen3_jax.checkpoint import load_model

    with tempfile.TemporaryDirectory() as folder:
        model = structure(tiny_models.drawn(config), None).merge(params)
        path = qwen3_jax.save(model, None, Path(folder) / "x")
        return flatten(load_model(path, quantize=kind))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Its logits are of ordinary size, 6: float32 rounding is in proportion to them."""
    folder = tmp_path_factory.mktemp("base")
    return qwen3_jax.save(tiny_models.model(experts=8, tag_scale=0.0), tiny_models.tokenizer(), folder / "base")


def configured(folder, base, *options, **lora):
    path = small_run.write_config(
        folder, model={"init_from": str(base)}, tokenizer={}, lora={"rank": 4, **lora}, steps=6, checkpoint_every=3,
    )  # fmt: skip
    return parse_config(["--config", str(path), "--run_dir", str(folder / "run"), *options])


def assert_one_model(base, run_dir, paths):
    """The checkpoint of a run, adapters beside the base, and the folders of `paths`, merged, are base + adapter in float64.

    A float32 pass of this model is 6e-6 from its logits without rounding, transformers' too, and so is the base's alone.
    """
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    plain, _ = qwen3_jax.load(base, scan_layers=False)
    beside = with_adapter(plain, read_adapter(run_dir / "adapter", plain.config))
    exact, _ = decoder(beside.config, {name: value for name, (value, _) in adapters.sums(beside).items()}, tokens)
    assert np.abs(exact).max() < 8
    run, _ = load_run(run_dir)
    expected = np.asarray(run(tokens))
    np.testing.assert_allclose(expected, exact, atol=1e-5, rtol=0)
    for path in paths:
        model, _ = qwen3_jax.load(path, scan_layers=False)
        adapters.assert_merged(model, beside)
        np.testing.assert_allclose(np.asarray(model(tokens)), exact, atol=1e-5, rtol=0)
        np.testing.assert_allclose(np.asarray(model(tokens)), expected, atol=2e-5, rtol=0)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_bits_and_exports_what_it_trained(base, tmp_path):
    """On a mesh, over int8 weights; the exported adapter, its merged model and the run's checkpoint are one model."""
    whole = tmp_path / "whole"
    whole.mkdir()
    exported = train(configured(whole, base, merge=True, quantize="int8"))
    assert exported == whole / "run" / "hf"

    class Stop(Exception):
        pass

    def watch(step, _):
        if step == 4:
            raise Stop

    cut = tmp_path / "cut"
    cut.mkdir()
    with pytest.raises(Stop):
        train(configured(cut, base, quantize="int8"), watch)
    assert train(configured(cut, base, quantize="int8")) == cut / "run" / "adapter"
    first, second = (load_file(one / "run/adapter/adapter_model.safetensors") for one in (whole, cut))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert any(np.abs(value).max() > 0 for name, value in first.items() if "lora_B" in name)

    saved = json.loads((whole / "run/adapter/adapter_config.json").read_text())
    assert [saved[name] for name in ("base_model_name_or_path", "r", "lora_alpha")] == [str(base), 4, 8]
    assert_one_model(base, whole / "run", [exported, whole / "run/adapter", cut / "run"])
    step = whole / "run" / "checkpoints" / "6" / "state"
    names = {
        entry["key"] for entry in map(_keys, json.loads((step / "_METADATA").read_text())["tree_metadata"].values())
    }
    assert names
    assert not any("embed" in name for name in names)

    # Trained on from the adapter, the first loss is the last evaluation's, not the base's.
    on = tmp_path / "on"
    on.mkdir()
    path = small_run.write_config(
        on, model={"init_from": str(base)}, tokenizer={}, lora={"init_from": str(cut / "run")}, steps=3
    )
    train(parse_config(["--config", str(path), "--run_dir", str(on / "run")]))
    losses = [json.loads(line) for line in (on / "run/metrics.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (cut / "run/metrics.jsonl").read_text().splitlines()]
    loss = [row["train.cross_entropy"] for row in losses if "train.cross_entropy" in row]
    old = [row["train.cross_entropy"] for row in before if "train.cross_entropy" in row]
    assert loss[0] < old[0]
    with pytest.raises(UserError, match="is an adapter, and lora: trains another"):
        train(dataclasses.replace(configured(on, cut / "run" / "adapter"), run_dir=str(on / "other")))


def _keys(entry):
    return {"key": ".".join(str(part["key"]) for part in entry["key_metadata"])}


SIZES = dict(
    model_type="qwen3", vocab_size=2048, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=4, head_dim=64, max_position_embeddings=512, tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "rank"),
    [pytest.param(None, 4, marks=pytest.mark.slow), pytest.param("Qwen/Qwen3-0.6B", 16, marks=pytest.mark.soak)],
    ids=["small", "0.6b"],
)
def test_a_plan_counts_no_moments_of_the_base(model, rank, tmp_path):
    from qwen3_jax import planner
    from qwen3_jax.data import DataConfig, Source
    from qwen3_jax.training import TrainConfig
    from sharding import MeshConfig

    if model is None:
        (tmp_path / "config.json").write_text(json.dumps(SIZES))
        model = str(tmp_path)

    def holds(lora):
        config = TrainConfig(
            DataConfig([Source("text", "x.txt")], sequence_length=256, batch_size=4), steps=10,
            model=ModelConfig(init_from=model, dtype="bfloat16", param_dtype="bfloat16", remat="full"),
            optimizer=OptimizerConfig(warmup_steps=0), mesh=MeshConfig(data=4), lora=lora,
        )  # fmt: skip
        plan = planner.plan_training(config, planner.topology("v5e:2x2"))
        assert plan.fits
        return plan

    full, adapters_only = holds(None), holds(LoraConfig(rank=rank))
    int8 = holds(LoraConfig(rank=rank, quantize="int8"))
    assert adapters_only.holds["optimizer"] < full.holds["optimizer"] / 9  # of which those of the base are bfloat16
    ours, theirs = adapters_only.compiled.memory, full.compiled.memory
    assert ours.arguments < theirs.arguments / 2
    # Activations weigh more beside few weights.
    assert ours.peak - ours.code < (theirs.peak - theirs.code) * (0.65 if rank == 4 else 0.5)
    assert int8.holds["weights"] < adapters_only.holds["weights"]
    assert adapters_only.model_flops < full.model_flops
