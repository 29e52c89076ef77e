"""Folders of embedding models, as the hub and sentence-transformers have them; what is not implemented is refused by name."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import qwen3_jax
from qwen3_jax import EmbeddingConfig, EmbeddingModel, UserError
from qwen3_jax.checkpoint.embedding_files import read_embedding_config
from qwen3_jax.checkpoint.native import load_native, save_native
from qwen3_jax.model import flatten
from tests.helpers import embedding_folders
from tests.helpers.embedding_folders import PROMPTS, TEXTS, write_layout

WIDTH = embedding_folders.FIELDS["hidden_size"]
LAST = EmbeddingConfig(prompts=tuple(PROMPTS.items()))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """Names without `model.`, tied; no file of sentence-transformers."""
    return embedding_folders.write_model(tmp_path_factory.mktemp("decoder") / "x")


def edited(folder: Path, name: str, **fields) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "Qwen3Model"])
@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "bare"])
def test_every_form_of_the_folder_is_the_same_model(tied, architecture, prefix, decoder, tmp_path, capsys):
    expected = qwen3_jax.embed(*qwen3_jax.load(write_layout(shutil.copytree(decoder, tmp_path / "a"))), TEXTS)
    made = embedding_folders.write_model(tmp_path / "x", tied=tied, prefix=prefix, architectures=[architecture])
    model, tokenizer = qwen3_jax.load(write_layout(made))
    assert isinstance(model, EmbeddingModel)
    assert not model.has_vocabulary
    assert "lm_head" not in flatten(model)
    np.testing.assert_array_equal(qwen3_jax.embed(model, tokenizer, TEXTS), expected)
    assert capsys.readouterr().err == ""


def test_without_modules_json_the_config_decides(decoder, tmp_path, capsys):
    model, _ = qwen3_jax.load(decoder)
    assert model.has_vocabulary
    assert model.embedding_config is None
    untied = shutil.copytree(decoder, tmp_path / "untied")
    edited(untied, "config.json", tie_word_embeddings=False)
    assert capsys.readouterr().err == ""
    encoder, tokenizer = qwen3_jax.load(untied)
    assert isinstance(encoder, EmbeddingModel)
    assert "an embedding model, which cannot generate. If the embedding is the head, set tie" in capsys.readouterr().err
    with pytest.raises(UserError, match="which has no output projection"):
        qwen3_jax.generate(encoder, tokenizer, ["a"])
    assert qwen3_jax.load(untied, hf_overrides={"tie_word_embeddings": True})[0].has_vocabulary


def test_a_head_beside_modules_json_stays(decoder, tmp_path):
    folder = tmp_path / "x"
    qwen3_jax.save(*qwen3_jax.load(decoder), folder)
    model, tokenizer = qwen3_jax.load(write_layout(folder))
    assert isinstance(model, EmbeddingModel)
    edited(folder, "config.json", tie_word_embeddings=False)
    from safetensors.numpy import save_file

    stored = load_file(folder / "model.safetensors")
    (folder / "checksums.sha256").unlink()
    head = {"lm_head.weight": stored["model.embed_tokens.weight"] + 1}
    save_file(stored | head, folder / "model.safetensors", metadata={"format": "pt"})
    whole, _ = qwen3_jax.load(folder)
    assert whole.has_vocabulary
    assert whole.embedding_config == LAST
    np.testing.assert_array_equal(qwen3_jax.embed(whole, tokenizer, TEXTS), qwen3_jax.embed(model, tokenizer, TEXTS))


OLD = {"word_embedding_dimension": WIDTH}
NEW = {"embedding_dimension": WIDTH, "word_embedding_dimension": WIDTH, "pooling_mode_lasttoken": False}
# what modules and files say -> what is read
READ = {
    "the hub's": ({}, LAST),
    "not normalised": (dict(normalize=False), dataclasses.replace(LAST, normalize=False)),
    "one mean": (dict(pooling=OLD | {"pooling_mode_mean_tokens": True}), dataclasses.replace(LAST, pooling=("mean",))),
    "no mode is the mean": (dict(pooling=OLD), dataclasses.replace(LAST, pooling=("mean",))),
    "several": (
        dict(pooling=OLD | {"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}),
        dataclasses.replace(LAST, pooling=("cls", "lasttoken")),
    ),
    "the new spelling goes first": (
        dict(pooling=NEW | {"pooling_mode_cls_token": True, "pooling_mode": "weightedmean", "include_prompt": False}),
        dataclasses.replace(LAST, pooling=("weightedmean",), include_prompt=False),
    ),
    "several in an order of their own": (
        dict(pooling=NEW | {"pooling_mode": ["lasttoken", "cls"]}),
        dataclasses.replace(LAST, pooling=("lasttoken", "cls")),
    ),
    "prompts and limits": (
        dict(
            prompts={"prompts": {"query": None, "a": "A: "}, "default_prompt_name": "a"},
            limits={"max_seq_length": 77, "do_lower_case": False, "transformer_task": "feature-extraction"},
        ),
        dataclasses.replace(LAST, prompts=(("a", "A: "),), default_prompt_name="a", max_seq_length=77),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_the_files_say_is_read_and_written_again(name, decoder, tmp_path):
    options, expected = READ[name]
    folder = write_layout(shutil.copytree(decoder, tmp_path / "x"), **options)
    model, tokenizer = qwen3_jax.load(folder)
    assert model.embedding_config == expected
    again = qwen3_jax.save(model, tokenizer, tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["architectures"] == ["Qwen3Model"]
    reloaded, tokenizer = qwen3_jax.load(again)
    assert isinstance(reloaded, EmbeddingModel)
    assert reloaded.embedding_config == expected
    texts = [*TEXTS[:1], TEXTS[2]]
    np.testing.assert_array_equal(
        qwen3_jax.embed(reloaded, tokenizer, texts, truncate=True),
        qwen3_jax.embed(model, tokenizer, texts, truncate=True),
    )


def test_a_cross_encoder_makes_no_embeddings(decoder, tmp_path):
    folder = write_layout(shutil.copytree(decoder, tmp_path / "x"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    (folder / "modules.json").write_text(json.dumps(modules[:2]))
    assert qwen3_jax.load(folder)[0].has_vocabulary
    write_layout(folder, prompts={"model_type": "CrossEncoder"})
    assert read_embedding_config(folder, WIDTH) is None


# words of the error -> options of the layout
REFUSED = {
    r"modules.json has the module 'sentence_transformers.models.Dense' \(2_Dense\), which is not implemented; remove "
    "modules.json": dict(extra=("Dense",)),
    "field 'pooling_mode' has 'attention'; it must be among cls, max": dict(
        pooling=NEW | {"pooling_mode": "attention"}
    ),
    "1_Pooling/config.json gives the states 65 numbers, and config.json 64": dict(width=65),
    "field 'default_prompt_name' is 'x'; it must be among its prompts": dict(prompts={"default_prompt_name": "x"}),
    "field 'prompts' must map names to texts": dict(prompts={"prompts": {"a": 3}}),
    "field 'model_type' is 'SparseEncoder'": dict(prompts={"model_type": "SparseEncoder"}),
    "field 'do_lower_case' is True, which is not implemented": dict(limits={"do_lower_case": True}),
    "field 'max_seq_length' is 0; it must be a whole number": dict(limits={"max_seq_length": 0}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_implemented_or_damaged_is_refused_by_name(words, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    write_layout(folder, **REFUSED[words])
    with pytest.raises(UserError, match=words) as caught:
        read_embedding_config(folder, WIDTH)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ("[", "is no list of modules"),
        ('{"a": 1}', "is no list of modules"),
        (
            ["Pooling", "Transformer"],
            "has the modules Pooling, Transformer; only Transformer, Pooling and perhaps Norm",
        ),
        (["Transformer", "../Pooling"], r"has the path '\.\./Pooling', which leads out of the folder"),
        (["0_Transformer/Transformer", "Pooling"], "the first in the folder itself"),
    ],
)
def test_modules_that_cannot_be_read_are_named(modules, words, tmp_path):
    if isinstance(modules, list):
        paths = [name if "/" in name or name == "Pooling" else "" for name in modules]
        kinds = [f"sentence_transformers.models.{name.rpartition('/')[2]}" for name in modules]
        modules = json.dumps([{"type": kind, "path": path} for kind, path in zip(kinds, paths, strict=True)])
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(UserError, match=words):
        read_embedding_config(tmp_path, WIDTH)


def test_transformers_and_an_orbax_folder_have_the_same_states(decoder, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model, tokenizer = qwen3_jax.load(write_layout(shutil.copytree(decoder, tmp_path / "x")))
    expected = qwen3_jax.embed(model, tokenizer, TEXTS)
    native = save_native(model, tokenizer, tmp_path / "native")
    loaded, tokenizer = load_native(native, scan_layers=False)
    assert isinstance(loaded, EmbeddingModel)
    assert loaded.embedding_config == model.embedding_config
    np.testing.assert_allclose(qwen3_jax.embed(loaded, tokenizer, TEXTS), expected, atol=2e-5)
    saved = qwen3_jax.save(model, tokenizer, tmp_path / "saved")
    peer, info = transformers.AutoModel.from_pretrained(saved, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for row, text in zip(expected, TEXTS, strict=True):
        with torch.no_grad():
            state = peer(torch.tensor([tokenizer.encode_whole(text)])).last_hidden_state[0, -1]
        np.testing.assert_allclose(row, (state / state.norm()).numpy(), atol=2e-5)


def test_what_needs_a_head_says_so(decoder, tmp_path):
    from qwen3_jax.checkpoint.adapters.attach import attach
    from qwen3_jax.model import Lora

    model, _ = qwen3_jax.load(write_layout(shutil.copytree(decoder, tmp_path / "x")))
    with pytest.raises(UserError, match="an embedding model takes no adapter"):
        attach(model, Lora(()), {})
    with pytest.raises(UserError, match="an embedding model, which has no output projection"):
        _ = model.output_weight
