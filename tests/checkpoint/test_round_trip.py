"""HF -> JAX -> HF is bit-equal, transformers loads what is written without a warning, and damage is named."""

import json
import logging
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import qwen3_jax
import sharding
from qwen3_jax import UserError
from tests.helpers import hf_checkpoints, tiny_models


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def assert_bit_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert left[name].tobytes() == right[name].tobytes(), name


def cases() -> list:
    """Every variant stacked, in float32; those whose layers differ also unrolled, in bfloat16. The rest is slow."""
    out = []
    for variant in [name for name in hf_checkpoints.VARIANTS if name != "real_vocabulary"]:
        for dtype in ("float32", "bfloat16"):
            for scan_layers in (True, False):
                unrolled = variant in ("dense_tied", "dense_bias", "moe_mixed_layers")
                quick = (dtype == "float32") if scan_layers else (dtype == "bfloat16" and unrolled)
                out.append(pytest.param(variant, dtype, scan_layers, marks=[] if quick else [pytest.mark.slow]))
    return out


@pytest.mark.parametrize(("variant", "dtype", "scan_layers"), cases())
def test_hf_to_jax_to_hf_is_bit_equal_and_loads_in_transformers_without_warnings(
    variant, dtype, scan_layers, tmp_path, caplog
):
    hf_checkpoints.write(variant, tmp_path / "in", dtype=getattr(torch, dtype))
    meshed = scan_layers and variant in ("dense_tied", "moe_mixed_layers")
    mesh = sharding.make_mesh(data=2) if meshed else None
    model, tokenizer = qwen3_jax.load(tmp_path / "in", scan_layers=scan_layers, mesh=mesh)
    assert tokenizer is None
    assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.tree.leaves(model.embed))} == {dtype}
    qwen3_jax.save(model, None, tmp_path / "out", max_shard_bytes=60_000 if scan_layers else 10**9)
    assert (tmp_path / "out/model.safetensors.index.json").exists() == scan_layers
    assert_bit_equal(tensors(tmp_path / "in"), tensors(tmp_path / "out"))

    transformers.logging.set_verbosity_warning()
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        logging.getLogger("transformers").propagate = True
        back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert [record.getMessage() for record in caplog.records] == []
    original = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "in")
    assert back.dtype == getattr(torch, dtype)
    expected = dict(original.named_parameters())
    assert expected.keys() == dict(back.named_parameters()).keys()
    for name, parameter in back.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    ours, theirs = back.config.to_dict(), original.config.to_dict()
    for name in ("rope_parameters", "head_dim", "num_key_value_heads", "tie_word_embeddings", "mlp_only_layers"):
        assert ours.get(name) == theirs.get(name), name
    # A second pass through our own format changes nothing either.
    again, _ = qwen3_jax.load(tmp_path / "out", scan_layers=not scan_layers)
    assert again.config == model.config
    qwen3_jax.save(again, None, tmp_path / "again")
    assert_bit_equal(tensors(tmp_path / "out"), tensors(tmp_path / "again"))


def test_fused_experts_of_transformers_5_are_read(tmp_path):
    reference = hf_checkpoints.build("moe")
    reference.save_pretrained(tmp_path / "hub")
    stored = tensors(tmp_path / "hub")
    fused = {k: v for k, v in stored.items() if ".experts." not in k}
    for layer in range(2):
        prefix = f"model.layers.{layer}.mlp.experts."

        def stack(kind, prefix=prefix):
            return np.stack([stored[f"{prefix}{e}.{kind}_proj.weight"] for e in range(8)])

        fused[f"{prefix}gate_up_proj"] = np.concatenate([stack("gate"), stack("up")], axis=1)
        fused[f"{prefix}down_proj"] = stack("down")
    shutil.copytree(tmp_path / "hub", tmp_path / "fused")
    save_file(fused, tmp_path / "fused/model.safetensors")
    model, _ = qwen3_jax.load(tmp_path / "fused", mesh=sharding.make_mesh(expert=2, tensor=2))
    qwen3_jax.save(model, None, tmp_path / "out")
    assert_bit_equal(stored, tensors(tmp_path / "out"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with four weight files and a tokenizer, as `qwen3_jax.save` writes it."""
    folder = tmp_path_factory.mktemp("exported") / "x"
    return qwen3_jax.save(tiny_models.model(experts=4), tiny_models.tokenizer(), folder, max_shard_bytes=80_000)


# What people may edit (and no checksum covers) comes last.
DAMAGED_FILES = [
    "model.safetensors.index.json",
    "model-00002-of-00004.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(DAMAGED_FILES))
def test_truncating_any_file_is_an_error_that_names_it(exported, tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("damaged") / "x"
    shutil.copytree(exported, folder)
    content = (folder / name).read_bytes()
    keep = data.draw(st.integers(0, len(content.rstrip()) - 1))
    (folder / name).write_bytes(content[:keep])
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        qwen3_jax.load(folder)


NO_ID = st.one_of(st.floats(), st.booleans(), st.text(), st.dictionaries(st.text(), st.integers()))


@given(value=NO_ID | st.lists(NO_ID, min_size=1))
def test_an_end_token_that_is_no_id_is_refused_by_name(value):
    with pytest.raises(UserError, match=r"^generation_config\.json field 'eos_token_id'"):
        qwen3_jax.GenerationConfig.from_hf({"eos_token_id": value})
    with pytest.raises(UserError, match=r"^config\.json field 'eos_token_id'"):
        qwen3_jax.Qwen3Config.from_hf({"model_type": "qwen3", "eos_token_id": value})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(DAMAGED_FILES[:3]))
def test_any_changed_byte_of_the_weights_or_their_index_is_an_error_that_names_the_file(
    exported, tmp_path_factory, data, name
):
    folder = tmp_path_factory.mktemp("damaged") / "x"
    shutil.copytree(exported, folder)
    content = bytearray((folder / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=r"\.safetensors|tokenizer\.json"):
        qwen3_jax.load(folder)


def edit(folder: Path, change) -> None:
    """Rewrite the only weights file of a folder through a function on its tensors."""
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return hf_checkpoints.write("dense_tied", tmp_path_factory.mktemp("tied") / "x")


PROJ = "model.layers.1.self_attn.q_proj.weight"
FAULTS = {
    "missing tensor": (
        lambda f: edit(f, lambda t: t.pop(PROJ)),
        r"'model.layers.1.self_attn.q_proj.weight' is missing",
    ),
    "unknown tensor": (lambda f: edit(f, lambda t: t.update(odd=t[PROJ])), r"'odd' in model.safetensors is no param"),
    "misshapen tensor": (
        lambda f: edit(f, lambda t: t.update({PROJ: t[PROJ][:-1]})),
        r"q_proj.weight'.*has shape \[127",
    ),
    "integer tensor": (lambda f: edit(f, lambda t: t.update({PROJ: t[PROJ].astype(np.int8)})), r"q_proj.*type I8"),
    "untied but equal names": (
        lambda f: edit(f, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        "values differ",
    ),
    "another architecture": (lambda f: set_config(f, model_type="qwen3_next"), "model_type.*qwen3_next"),
    "another class": (lambda f: set_config(f, architectures=["Qwen3ForSequenceClassification"]), "ForSequenceClass"),
    "sliding window": (
        lambda f: set_config(f, use_sliding_window=True, sliding_window=16, max_window_layers=1, layer_types=None),
        "use_sliding_window",
    ),
    "sliding layers": (lambda f: set_config(f, layer_types=["sliding_attention"] * 2), "layer_types"),
    "another rope": (
        lambda f: set_config(f, rope_parameters={"rope_type": "llama3", "factor": 8.0}),
        "rope_type.*llama3",
    ),
    "unknown rope field": (
        lambda f: set_config(f, rope_parameters={"rope_type": "yarn", "factr": 8.0}),
        "rope_scaling.factr.*Did you mean 'factor'",
    ),
    "quantised in another way": (
        lambda f: (
            set_config(f, quantization_config={"quant_method": "hqq"}),
            edit(f, lambda t: t.update({PROJ: t[PROJ].astype(np.int8)})),
        ),
        "quantization_config.quant_method' is 'hqq'",
    ),
    "wrong type": (lambda f: set_config(f, hidden_size="64"), "hidden_size.*'64'"),
    "wrong heads": (lambda f: set_config(f, num_key_value_heads=3), "num_key_value_heads"),
    "wrong activation": (lambda f: set_config(f, hidden_act="gelu"), "hidden_act.*gelu"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "stray shard": (
        lambda f: (f / "model.safetensors").rename(f / "model-00001-of-00002.safetensors"),
        r"model-00002-of-00002.safetensors is missing; model-00001-of-00002.safetensors is one of 2",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_sentence_that_names_the_culprit(fault, tied, tmp_path):
    folder = shutil.copytree(tied, tmp_path / "x")
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        qwen3_jax.load(folder)
    assert "\n" not in str(caught.value)


def test_duplicate_tensors_and_missing_shards_are_named(exported, tmp_path):
    first = exported / "model-00001-of-00004.safetensors"
    folder = shutil.copytree(exported, tmp_path / "twice")
    shutil.copy(first, folder / "model-00002-of-00004.safetensors")
    with pytest.raises(
        UserError, match=r"is missing from model-00002-of-00004\.safetensors; model\.safetensors\.index"
    ):
        qwen3_jax.load(folder, verify=False)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="occurs twice, in model-00001-of-00004"):
        qwen3_jax.load(folder, verify=False)
    folder = shutil.copytree(exported, tmp_path / "lost")
    (folder / first.name).unlink()
    with pytest.raises(UserError, match=r"model-00001-of-00004\.safetensors is missing"):
        qwen3_jax.load(folder)


def test_a_tied_checkpoint_that_stores_its_head_twice_loads(tied, tmp_path):
    folder = shutil.copytree(tied, tmp_path / "x")
    edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    model, _ = qwen3_jax.load(folder)
    assert not hasattr(model, "lm_head")


def test_saving_replaces_nothing_unless_told_and_leaves_nothing_half_written(tied, tmp_path, monkeypatch):
    folder = shutil.copytree(tied, tmp_path / "x")
    model, _ = qwen3_jax.load(folder)
    before = tensors(folder)
    with pytest.raises(UserError, match="exists"):
        qwen3_jax.save(model, None, folder)

    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qwen3_jax.checkpoint.hf_save.save_file", fail)
        for target in (folder, tmp_path / "new"):
            with pytest.raises(UserError, match="No space left"):
                qwen3_jax.save(model, None, target, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    assert_bit_equal(before, tensors(folder))
    qwen3_jax.save(model, None, folder, overwrite=True, dtype="bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    assert qwen3_jax.load(folder)[0].param_dtype == "bfloat16"
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # whoever may read one may read all
