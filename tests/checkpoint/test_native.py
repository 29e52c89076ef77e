"""Hugging Face -> Orbax -> Hugging Face is bit-equal whatever the layout and the mesh, and damage is named."""

import itertools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import qwen3_jax
import sharding
from qwen3_jax import Qwen3Config, UserError
from qwen3_jax.checkpoint.native import is_native, load_native, save_native
from qwen3_jax.kernels import Execution
from sharding import TRAINING, Placement
from tests.helpers import tiny_models

FIELDS = dict(
    vocab_size=480, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
)  # fmt: skip
# Layers 0, 2 dense and 1, 3 MoE: four runs of equal layers; and a plain stack.
CONFIGS = {
    "dense": Qwen3Config(**FIELDS, tie_word_embeddings=True),
    "mixed": Qwen3Config(
        **FIELDS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=2,
        tie_word_embeddings=False,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base, out = tmp_path_factory.mktemp("hf"), {}
    for name, config in CONFIGS.items():
        model = tiny_models.drawn(config)
        model.generation_config = qwen3_jax.GenerationConfig(eos_token_id=(1, 2), temperature=0.6, do_sample=True)
        out[name] = qwen3_jax.save(model, tiny_models.tokenizer(), base / name, dtype="bfloat16")
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# (configuration, stacked when saved, stacked when loaded, on a mesh): every pair of values; the rest is slow.
QUICK = [
    ("dense", True, True, False),
    ("dense", False, False, True),
    ("mixed", True, False, True),
    ("mixed", False, True, True),
    ("mixed", False, False, False),
]
EVERY = itertools.product(CONFIGS, (True, False), (True, False), (True, False))
AXES = {"dense": dict(data=2, tensor=2), "mixed": dict(tensor=2, expert=2)}


@pytest.mark.parametrize(
    ("name", "saved_stacked", "loaded_stacked", "meshed"),
    [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in EVERY],
)
def test_round_trip_is_bit_equal_across_layouts_and_meshes(
    name, saved_stacked, loaded_stacked, meshed, folders, tmp_path
):
    hf, mesh = folders[name], sharding.make_mesh(**AXES[name]) if meshed else None
    model, tokenizer = qwen3_jax.load(hf, scan_layers=saved_stacked, mesh=mesh if saved_stacked else None)
    save_native(model, tokenizer, tmp_path / "native")
    assert is_native(tmp_path / "native")
    assert not is_native(hf)
    assert [p.name for p in tmp_path.iterdir()] == ["native"]
    placement = Placement(mesh, TRAINING)
    back, tokenizer = load_native(tmp_path / "native", execution=Execution(placement), scan_layers=loaded_stacked)
    assert back.scan_layers == loaded_stacked
    assert back.config == model.config
    assert back.generation_config == model.generation_config
    for path, variable in nnx.to_flat_state(nnx.state(back)):
        array, axes_of = variable.get_value(), variable.get_metadata()["logical_axes"]
        assert array.dtype == "bfloat16"
        assert array.sharding.is_equivalent_to(placement.sharding(axes_of, array.shape), array.ndim), path
    qwen3_jax.save(back, tokenizer, tmp_path / "hf")
    assert files(tmp_path / "hf") == files(hf)
    general, _ = qwen3_jax.load(tmp_path / "native")  # the front door reads it too
    assert general.param_dtype == "bfloat16"


@pytest.mark.parametrize("name", CONFIGS)
def test_wider_storage_and_back_is_bit_equal(name, folders, tmp_path):
    hf = folders[name]
    native = save_native(*qwen3_jax.load(hf, scan_layers=True), tmp_path / "native")
    wide, _ = load_native(native, param_dtype="float32", dtype="bfloat16", remat="full")
    assert (wide.param_dtype, wide.dtype, wide.remat) == (np.float32, "bfloat16", "full")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(nnx.state(wide)))
    narrow, tokenizer = load_native(
        save_native(wide, tiny_models.tokenizer(), tmp_path / "wide"), param_dtype="bfloat16"
    )
    qwen3_jax.save(narrow, tokenizer, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()


def test_damage_of_any_file_is_one_clear_error(tmp_path):
    model = tiny_models.drawn(CONFIGS["dense"])
    whole = save_native(model, tiny_models.tokenizer(), tmp_path / "whole")
    editable = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja")
    damaged = 0
    for name, content in files(whole).items():
        for kind in ("cut", "flip", "gone"):
            if name in editable or (kind != "gone" and not content) or (name == "checksums.sha256" and kind == "gone"):
                continue
            broken = tmp_path / "broken"
            shutil.copytree(whole, broken)
            if kind == "gone":
                (broken / name).unlink()
            elif kind == "cut":
                (broken / name).write_bytes(content[: len(content) // 2])
            else:
                (broken / name).write_bytes(content[:-3] + bytes([content[-3] ^ 0x11]) + content[-2:])
            with pytest.raises(UserError) as caught:
                load_native(broken)
            assert str(broken) in str(caught.value) or "config" in str(caught.value), (name, kind, str(caught.value))
            assert "\n" not in str(caught.value)
            damaged += 1
            shutil.rmtree(broken)
    assert damaged > 12


def test_what_does_not_fit_config_json_is_named_and_targets_are_safe(tmp_path):
    model = tiny_models.drawn(CONFIGS["dense"])
    folder = save_native(model, None, tmp_path / "native")
    with pytest.raises(UserError, match="native exists"):
        save_native(model, None, folder)
    before = files(folder)
    save_native(model, None, folder, overwrite=True)
    assert files(folder).keys() >= {"config.json", "checksums.sha256"}
    assert files(folder)["config.json"] == before["config.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["native"]
    text = (folder / "config.json").read_text()
    for change, words in [
        ('"vocab_size": 480', "'embed'"),
        ('"num_hidden_layers": 4', "'groups.0"),
        ('"tie_word_embeddings": true', "'lm_head'"),
        ('"head_dim": 16', "'groups.0.attention"),
    ]:
        name, _, value = change.partition(": ")
        (folder / "config.json").write_text(
            text.replace(change, f"{name}: {'false' if value == 'true' else int(value) // 2}")
        )
        with pytest.raises(UserError, match=words):
            load_native(folder)
    (folder / "config.json").write_text(text)
    shutil.rmtree(folder / "params")
    with pytest.raises(UserError, match="no params/ folder"):
        load_native(folder)
    with pytest.raises(UserError, match="no checkpoint folder"):
        load_native(tmp_path / "nowhere")
