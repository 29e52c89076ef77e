"""Checkpoint folders as they occur: names of wrappers, files beside the checkpoint, files from Windows, adapters."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qwen3_jax
from qwen3_jax import EmbeddingModel, Qwen3Config, UserError
from qwen3_jax.model import flatten
from qwen3_jax.planner.architecture import checkpoint_architecture
from tests.helpers import packed_folders, tiny_models

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A tied checkpoint in one file, with a tokenizer."""
    folder = tmp_path_factory.mktemp("single") / "x"
    config = dataclasses.replace(tiny_models.model().config, tie_word_embeddings=True)
    return qwen3_jax.save(tiny_models.drawn(config), tiny_models.tokenizer(), folder)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """Another checkpoint, untied and in several files."""
    folder = tmp_path_factory.mktemp("sharded") / "x"
    return qwen3_jax.save(tiny_models.model(), None, folder, max_shard_bytes=80_000)


def params(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in flatten(qwen3_jax.load(folder, verify=False)[0]).items()}


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def renamed(folder: Path, change) -> None:
    """Give every tensor of a folder another name; None leaves it out."""
    for file in folder.glob("*.safetensors"):
        stored = {change(name): array for name, array in load_file(file).items()}
        stored.pop(None, None)
        save_file(stored, file, metadata={"format": "pt"})
    if (folder / INDEX).exists():
        index = json.loads((folder / INDEX).read_text())
        names = {change(name): file for name, file in index["weight_map"].items()}
        names.pop(None, None)
        (folder / INDEX).write_text(json.dumps(index | {"weight_map": names}))


@pytest.mark.parametrize("prefix", ["", "_orig_mod.model.", "module.model.", "base_model.model.model."])
def test_names_of_the_decoder_alone_and_of_wrappers_are_the_whole_models(prefix, single, sharded, tmp_path):
    """Qwen3-Embedding has no `model.`; torch.compile, DDP and PEFT put their own before it."""
    wrapper = prefix.removesuffix("model.")

    def change(name):
        return prefix + name.removeprefix("model.") if name.startswith("model.") else wrapper + name

    for source in (single, sharded):
        folder = shutil.copytree(source, tmp_path / source.parent.name)
        renamed(folder, change)
        assert_same(params(folder), params(source))
    config = json.loads((single / "config.json").read_text())
    shutil.copytree(tmp_path / single.parent.name, tmp_path / "encoder")
    (tmp_path / "encoder/config.json").write_text(json.dumps(config | {"architectures": ["Qwen3Model"]}))
    assert_same(params(tmp_path / "encoder"), params(single))


@pytest.mark.parametrize("infix", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module._orig_mod."])
def test_names_of_wrapped_layers_and_of_a_decoder_in_another_module_are_the_whole_models(infix, sharded, tmp_path):
    """torch.compile, FSDP and checkpointing of single layers; and tables that older versions of transformers saved."""

    def change(name):
        layer = name.removeprefix("model.layers.")
        if layer != name:
            number, _, rest = layer.partition(".")
            return f"language_model.layers.{number}.{infix}{rest}"
        return name.replace("model.", "language_model.")

    folder = shutil.copytree(sharded, tmp_path / "x")
    renamed(folder, change)
    (folder / INDEX).unlink()
    tables = {f"language_model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)}
    save_file(tables, folder / "tables.safetensors")
    assert_same(params(folder), params(sharded))


def test_an_untied_encoder_without_a_head_is_named_as_one(sharded, tmp_path, capsys):
    folder = shutil.copytree(sharded, tmp_path / "x")
    renamed(folder, lambda name: name.removeprefix("model.") if name.startswith("model.") else None)
    model, _ = qwen3_jax.load(folder, verify=False)
    assert isinstance(model, EmbeddingModel)
    (line,) = capsys.readouterr().err.splitlines()
    for words in (
        "has no 'lm_head.weight'",
        "an embedding model, which cannot generate",
        "tie_word_embeddings to true",
    ):
        assert words in line


def test_quantised_folders_may_lack_the_prefix_too(tmp_path):
    folder = packed_folders.plain(tmp_path / "x", moe=False, tied=True)
    packed_folders.packed(
        folder,
        packed_folders.fp8(48),
        quant_method="fp8",
        activation_scheme="dynamic",
        fmt="e4m3",
        weight_block_size=[48, 48],
    )
    expected = params(folder)
    stored = packed_folders.tensors(folder)
    packed_folders.rewrite(folder, {name.removeprefix("model."): array for name, array in stored.items()})
    assert_same(params(folder), expected)


def beside(folder: Path, source: Path, name: str) -> None:
    shutil.copy(source, folder / name)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-0.6B"})
    )
    save_file({"base_model.model.lora_A": np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")


def without_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def one_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")


def hidden(folder: Path) -> None:
    """What macOS leaves on other disks."""
    for file in list(folder.iterdir()):
        (folder / f"._{file.name}").write_bytes(b"\0\x05\x16\x07")
    (folder / "._model-00001-of-00009.gguf").write_bytes(b"")


def copied(folder: Path) -> None:
    """A tensor of the last shard stands in the first one, too, with other numbers."""
    first, *_, last = shards(folder)
    name, array = next(iter(load_file(last).items()))
    save_file(load_file(first) | {name: array + 1}, first, metadata={"format": "pt"})


# name -> (which folder, what happens to it, which folder's weights load, the files that are named)
FOLDERS = {
    "an adapter beside one file": ("single", lambda f, _: adapter(f), "single", ["adapter_model.safetensors"]),
    "an adapter beside shards": ("sharded", lambda f, _: adapter(f), "sharded", ["adapter_model.safetensors"]),
    "an adapter, and shards without an index": (
        "sharded", lambda f, _: (adapter(f), without_index(f)), "sharded", ["adapter_model.safetensors"],
    ),
    "a stale set of shards": (
        "sharded",
        lambda f, other: [beside(f, other / "model.safetensors", f"model-0000{i}-of-00002.safetensors") for i in (1, 2)],
        "sharded",
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    ),
    "shards and their index beside one file": (
        "single",
        lambda f, other: [beside(f, file, file.name) for file in [*shards(other), other / INDEX]],
        "single",
        [INDEX, "model-00001-of-"],
    ),
    "an index without its shards beside one file": (
        "single", lambda f, other: beside(f, other / INDEX, INDEX), "single", [INDEX],
    ),
    "one shard of one without an index": ("single", lambda f, _: one_shard(f), "single", []),
    "shards without an index": ("sharded", lambda f, _: without_index(f), "sharded", []),
    "hidden files": ("single", lambda f, _: hidden(f), "single", []),
    "hidden files, and shards without an index": ("sharded", lambda f, _: (hidden(f), without_index(f)), "sharded", []),
    "a copy of a tensor in another shard": (
        "sharded", lambda f, _: copied(f), "sharded", [f"because {INDEX} names other files for them", "model-00001-of-"],
    ),
    "links": (
        "sharded",
        lambda f, other: [(file.rename(f / f"blob{i}"), file.symlink_to(f"blob{i}")) for i, file in enumerate(shards(f))],
        "sharded", [],
    ),
    "a file of another name": (
        "single", lambda f, _: (f / "model.safetensors").rename(f / "weights.safetensors"), "single", [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_the_main_file_or_the_index_decides_and_strays_are_named(name, single, sharded, tmp_path, capsys):
    kind, change, expected, named = FOLDERS[name]
    sources = {"single": single, "sharded": sharded}
    (other,) = (source for key, source in sources.items() if key != kind)
    folder = shutil.copytree(sources[kind], tmp_path / "x")
    change(folder, other)
    assert_same(params(folder), params(sources[expected]))
    err = capsys.readouterr().err
    assert err.count("warning: ") == bool(named)
    assert all(file in err for file in named)


def test_folders_that_are_no_whole_checkpoint_say_what_is_missing(single, sharded, tmp_path):
    def refused(words: str, folder: Path, load=qwen3_jax.load) -> None:
        with pytest.raises(UserError, match=words) as caught:
            load(folder, verify=False) if load is qwen3_jax.load else load(str(folder))
        assert "\n" not in str(caught.value)

    lacking = shutil.copytree(sharded, tmp_path / "lacking")
    without_index(lacking)
    first, second, *_ = shards(lacking)
    second.unlink()
    refused(rf"{second.name} is missing; {first.name} is one of \d shards", lacking)
    twice = shutil.copytree(sharded, tmp_path / "twice")
    without_index(twice)
    shutil.copy(shards(twice)[0], twice / "model-00001-of-00001.safetensors")
    refused(r"occurs twice, in model-00001-of-00001\.safetensors and model-00001-of-", twice)
    pickled = shutil.copytree(single, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(r"pytorch_model\.bin, whose pickled weights are not read", pickled)
    (pickled / "pytorch_model.bin").rename(pickled / "training_args.bin")
    refused(r"has no \*\.safetensors file; is the checkpoint complete", pickled)
    stale = shutil.copytree(sharded, tmp_path / "stale")
    index = json.loads((stale / INDEX).read_text())
    names = {name: f"model-0000{1 + i % 2}-of-00099.safetensors" for i, name in enumerate(index["weight_map"])}
    (stale / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(
        rf"of-00099\.safetensors is missing; .* delete the index if it belongs to other files than {first.name}", stale
    )
    (stale / INDEX).write_text(json.dumps({"weight_map": {}}))
    refused("has no 'weight_map'", stale)
    names = dict(list(index["weight_map"].items())[1:])
    (stale / INDEX).write_text(json.dumps({"weight_map": names}))
    refused("is not in .*delete the index if every tensor", stale)
    peft = tmp_path / "peft"
    peft.mkdir()
    adapter(peft)
    words = r"peft holds an adapter, and its base model cannot be had: 'Qwen/Qwen3-0\.6B' is not a local folder"
    refused(words, peft)
    assert checkpoint_architecture(str(peft)) == Qwen3Config.preset("Qwen3-0.6B")
    for file in single.glob("*.json"):
        shutil.copy(file, peft)
    refused(words, peft)  # adapters are also published with their base's small files
    (peft / "adapter_model.safetensors").rename(peft / "adapter_model.bin")
    refused(words, peft)
    inside = shutil.copytree(single, tmp_path / "inside")
    layer = "model.layers.0.self_attn.q_proj."
    renamed(inside, lambda name: f"base_model.model.{name}".replace(f"{layer}weight", f"{layer}base_layer.weight"))
    refused(
        r"was saved with a PEFT adapter in its layers \('model.layers.0.self_attn.q_proj.base_layer.weight'\)", inside
    )


def test_what_a_clone_without_git_lfs_and_a_broken_download_leave_is_named(single, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for name in ("model.safetensors", "tokenizer.json"):
        folder = shutil.copytree(single, tmp_path / name)
        (folder / name).write_bytes(pointer)
        with pytest.raises(
            UserError, match=rf"{name} is a Git LFS pointer and not the file itself: get that with `git lfs"
        ):
            qwen3_jax.load(folder, verify=False)
    cut = shutil.copytree(single, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        (cut / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.safetensors is not a complete safetensors file .*copy it again"):
            qwen3_jax.load(cut, verify=False)
    (cut / "model.safetensors").rename(cut / "model.safetensors.part")
    with pytest.raises(UserError, match="is the checkpoint complete"):
        qwen3_jax.load(cut, verify=False)


def test_settings_of_quantisation_that_are_stale_or_in_a_file_of_their_own(tmp_path, capsys):
    folder = packed_folders.plain(tmp_path / "x", moe=False)
    expected = params(folder)
    packed_folders.describe(folder, quant_method="bitsandbytes", load_in_4bit=True)
    assert_same(params(folder), expected)
    assert (
        "'quantization_config' of config.json has no effect, because no tensor is quantised" in capsys.readouterr().err
    )
    packed_folders.describe(folder)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 3, "group_size": 128}))
    assert_same(params(folder), expected)
    for name, form, method, older in (
        ("quantize_config.json", packed_folders.gptq(32), "gptq", {"bits": 4, "group_size": 32, "desc_act": False}),
        ("quant_config.json", packed_folders.awq(32), "awq",
         {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}),
    ):  # fmt: skip
        quantised = packed_folders.plain(tmp_path / name, moe=False)
        packed_folders.packed(quantised, form, quant_method=method, bits=4, group_size=32)
        expected = params(quantised)
        packed_folders.describe(quantised)
        with pytest.raises(UserError, match=r"has data type I32, and config\.json has no 'quantization_config'"):
            params(quantised)
        (quantised / name).write_text("\ufeff" + json.dumps(older))
        assert_same(params(quantised), expected)


JSON_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    INDEX,
    "checksums.sha256",
]


def test_every_file_of_a_folder_may_come_from_windows(single, sharded, tmp_path):
    for mark, ending in (("\ufeff", "\r\n"), ("", "\r"), ("\ufeff", "\n")):
        for source in (single, sharded):
            folder = shutil.copytree(source, tmp_path / f"{source.parent.name}{len(mark)}{len(ending)}")
            for file in [*folder.glob("*.json"), *folder.glob("*.sha256"), *folder.glob("*.jinja")]:
                text = file.read_text(encoding="utf-8")
                file.write_bytes((mark + text.replace("\n", ending)).encode())
            assert_same(params(folder), params(source))
            model, tokenizer = qwen3_jax.load(folder, verify=False)
            assert model.generation_config == qwen3_jax.load(source)[0].generation_config
            if tokenizer is not None:
                messages = [{"role": "user", "content": "hi"}]
                assert tokenizer.apply_chat_template(messages) == tiny_models.tokenizer().apply_chat_template(messages)
    for name in JSON_FILES:
        source = sharded if name == INDEX else single
        folder = shutil.copytree(source, tmp_path / f"utf16-{name}")
        (folder / name).write_bytes((folder / name).read_text(encoding="utf-8").encode("utf-16"))
        with pytest.raises(UserError, match=rf"{name} is UTF-16 text.*save it again as UTF-8"):
            qwen3_jax.load(folder)
