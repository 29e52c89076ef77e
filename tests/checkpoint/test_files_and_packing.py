"""Small files, checksums, packed words and folders by hand: no model is compiled."""

import json
import os
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen3_jax import GenerationConfig, Qwen3Config, UserError
from qwen3_jax.checkpoint.checksums import CHECKSUMS, sha256, verify_checksums, write_checksums
from qwen3_jax.checkpoint.fingerprint import fingerprints
from qwen3_jax.checkpoint.formats.fp8 import Fp8Blocks, pack_fp8
from qwen3_jax.checkpoint.formats.int4 import AWQ_ORDER, pack_words, unpack_words
from qwen3_jax.checkpoint.formats.int8 import Int8, pack_int8
from qwen3_jax.checkpoint.formats.opening import gguf_file, scheme
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.publish import publishing
from qwen3_jax.checkpoint.safetensors import SafetensorsFolder
from qwen3_jax.checkpoint.small_files import write_small_files
from qwen3_jax.checkpoint.source import Entry
from qwen3_jax.checkpoint.storage import as_dtype


def written(folder, config, generation, **more):
    folder.mkdir()
    model = SimpleNamespace(config=config, generation_config=generation, embedding_config=None)
    write_small_files(model, None, jnp.dtype("bfloat16"), folder, **more)
    return [json.loads((folder / name).read_text()) for name in ("config.json", "generation_config.json")]


@pytest.mark.parametrize(
    ("config_eos", "own", "expected"),
    [(7, (), [7]), ((7, 8), (), [7, 8]), (7, (9,), [9]), (7, (9, 7), [9, 7]), (None, (), None), (None, (3,), [3])],
)
def test_end_tokens_of_an_export_come_from_the_generation_config_and_else_from_the_model_s(
    tmp_path, config_eos, own, expected
):
    config = Qwen3Config(eos_token_id=config_eos, dtype="float32")
    model, generation = written(
        tmp_path / "x", config, GenerationConfig(eos_token_id=own, temperature=0.6, do_sample=True)
    )
    assert generation.get("eos_token_id") == expected
    assert {"temperature": 0.6, "do_sample": True}.items() <= generation.items()
    assert model["eos_token_id"] == (list(config_eos) if isinstance(config_eos, tuple) else config_eos)
    assert model["torch_dtype"] == "bfloat16", "what the weights are stored in, not what they were"
    assert "quantization_config" not in model
    assert written(tmp_path / "q", config, GenerationConfig(), quantization={"a": 1})[0]["quantization_config"] == {
        "a": 1
    }


def test_words_are_packed_from_the_lowest_bits():
    numbers = np.arange(8)
    assert pack_words(numbers).view(np.uint32).tolist() == [0x76543210]
    assert pack_words(numbers, order=AWQ_ORDER).view(np.uint32).tolist() == [0x75316420]
    assert pack_words(np.array([1, 2, 3, 255]), bits=8).view(np.uint32).tolist() == [0xFF030201]
    for bits, order in ((4, None), (4, AWQ_ORDER), (8, None)):
        values = np.random.default_rng(0).integers(0, 2**bits, (3, 16))
        np.testing.assert_array_equal(unpack_words(pack_words(values, bits, order), bits, order), values)


def test_packed_matrices_are_the_nearest_numbers_of_their_scale():
    weight = np.array([[127.0, -63.4, 0.6], [0, 0, 0], [-2, 1, 0.5]], np.float32)
    packed = pack_int8(weight)
    assert packed["weight_scale"].tolist() == [[1.0], [1.0], [np.float32(2) / np.float32(127)]]
    assert packed["weight"].tolist() == [[127, -63, 1], [0, 0, 0], [-127, 64, 32]]
    packed = pack_fp8(np.array([[448.0, 0, 224, 1], [0, 0, 0, 0], [0, 0, 2, -4]], np.float32), block=2)
    assert packed["weight_scale_inv"].tolist() == [[1.0, 0.5], [1.0, np.float32(4) / np.float32(448)]]
    assert packed["weight"].astype(np.float32).tolist() == [[448, 0, 448, 2], [0] * 4, [0, 0, 224, -448]]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bnb"}, "quant_method' is 'bnb'"),
        (None, "quant_method' is None"),
        ({"quant_method": "fp8"}, "weight_block_size' is None"),
        ({"quant_method": "fp8", "weight_block_size": [128, 0]}, "weight_block_size"),
        (
            {"quant_method": "fp8", "weight_block_size": [2, 2], "activation_scheme": "static"},
            "activation_scheme' is 'static'",
        ),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "format' is 'float-quantized'"),
        (
            {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {}},
            "says nothing of the weights",
        ),
    ],
)
def test_a_form_that_is_not_read_is_refused_by_its_field(config, message):
    with pytest.raises(UserError, match=message):
        scheme(config)


def test_shapes_of_scales_are_held_against_their_weight():
    def entries(weight, scale, part):
        return {"m.weight": Entry(None, weight, "x"), f"m.{part}": Entry(None, scale, "x")}

    blocks = Fp8Blocks(4, 2)
    assert blocks.shape(entries((5, 6), (2, 3), "weight_scale_inv"), "m") == (5, 6)
    for scale in ((1, 3), (2, 4), (2,)):
        with pytest.raises(UserError, match=r"mean \[2, 3\]"):
            blocks.shape(entries((5, 6), scale, "weight_scale_inv"), "m")
    assert Int8().shape(entries((5, 6), (5, 3), "weight_scale"), "m") == (5, 6)
    for scale in ((5, 4), (4, 3), (5,), (5, 0)):
        with pytest.raises(UserError, match="does not divide"):
            Int8().shape(entries((5, 6), scale, "weight_scale"), "m")


def test_checksums_are_sha256sum_s_and_name_what_differs(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    (tmp_path / "below").mkdir()
    (tmp_path / "below/c").write_text("c")
    write_checksums(tmp_path, [tmp_path / "b", tmp_path / "below/c", tmp_path / "a"])
    lines = (tmp_path / CHECKSUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == ["a", "b", "below/c"]
    assert (
        lines[0].split()[0]
        == sha256(tmp_path / "a")
        == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    )
    verify_checksums(tmp_path)
    (tmp_path / "below/c").write_text("d")
    with pytest.raises(UserError, match="below/c does not have the checksum"):
        verify_checksums(tmp_path)
    (tmp_path / "below/c").unlink()
    with pytest.raises(UserError, match="below/c is missing"):
        verify_checksums(tmp_path)
    (tmp_path / CHECKSUMS).write_text("x  ../a\n")
    with pytest.raises(UserError, match="is missing"):
        verify_checksums(tmp_path)
    (tmp_path / CHECKSUMS).write_text("x\n")
    with pytest.raises(UserError, match="is damaged"):
        verify_checksums(tmp_path)
    (tmp_path / CHECKSUMS).unlink()
    verify_checksums(tmp_path)


def test_publishing_replaces_a_folder_only_when_told_and_leaves_what_was_there_when_it_fails(tmp_path):
    target = tmp_path / "x"

    def publish(text, overwrite, fail=None):
        with publishing(target, overwrite) as work:
            (work / "file").write_text(text)
            assert work.parent == tmp_path
            if fail:
                raise fail

    target.mkdir()
    publish("one", False)  # an empty folder is no obstacle
    with pytest.raises(UserError, match="exists"):
        publish("two", False)
    for failure, shown in ((OSError("full"), UserError), (KeyError("k"), KeyError)):
        with pytest.raises(shown):
            publish("two", True, failure)
        assert (target / "file").read_text() == "one"
    publish("three", True)
    assert (target / "file").read_text() == "three"
    assert os.listdir(tmp_path) == ["x"]
    (tmp_path / "f").write_text("")
    target = tmp_path / "f"
    with pytest.raises(UserError, match="exists"):
        publish("four", True)


def test_slices_of_files_and_what_an_index_must_agree_with(tmp_path):
    first, second = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(6, dtype=np.float16)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a": first}, tmp_path / names[0])
    save_file({"b": second}, tmp_path / names[1])
    index = tmp_path / "model.safetensors.index.json"

    def opened(**weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))
        return SafetensorsFolder(tmp_path)

    folder = opened(a=names[0], b=names[1])
    assert {name: (entry.file.name, entry.shape, entry.dtype) for name, entry in folder.entries.items()} == {
        "a": (names[0], (3, 4), "float32"), "b": (names[1], (6,), "float16"),
    }  # fmt: skip
    with folder.open() as reader:
        np.testing.assert_array_equal(reader.read("a", (slice(1, 3), slice(2, 4))), first[1:3, 2:4], strict=True)
        np.testing.assert_array_equal(reader.read("b", (slice(2, 5),)), second[2:5], strict=True)
    for weight_map, message in (
        (dict(a=names[1], b=names[1]), f"tensor 'a' is missing from {names[1]}"),
        (dict(a=names[0], b=names[0]), f"tensor 'b' is missing from {names[0]}"),
        (dict(a=names[0], c=names[1]), "'c' is missing"),
        (dict(a=names[1], b=names[0]), "'a' is in model-00001"),
        (dict(a="../x", b=names[1]), "outside the folder"),
        (dict(a="gone.safetensors", b=names[1]), "gone.safetensors is missing"),
    ):
        with pytest.raises(UserError, match=message):
            opened(**weight_map)
    save_file({"b": second, "c": second}, tmp_path / names[1])
    with pytest.raises(UserError, match=r"'c' in model-00002-of-00002\.safetensors is not in"):
        opened(a=names[0], b=names[1])
    index.unlink()
    assert SafetensorsFolder(tmp_path).entries.keys() == {"a", "b", "c"}  # every shard is there
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=rf"{names[1]} is missing; {names[0]} is one of 2 shards"):
        SafetensorsFolder(tmp_path)


def test_which_gguf_file_a_path_means(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"")
    assert gguf_file(file) == gguf_file(tmp_path) == file
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(UserError, match=r"has 2 GGUF files; name one of them, such as a\.gguf"):
        gguf_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf_file(tmp_path) is None
    assert gguf_file(tmp_path / "config.json") is None
    assert resolve(file) == file
    for path, revision, message in (
        (tmp_path / "config.json", None, "give the folder that holds"),
        (file, "main", "is a local file"),
        (tmp_path, "main", "is a local folder"),
        ("nothing-there", None, "neither a folder nor a hub repository"),
        ("./a/b", None, "neither a folder nor a hub repository"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(path, revision=revision)


def test_fingerprints_by_their_formula():
    values = {
        "w": np.array([[1, 2, 3], [4, 5, 6]], np.int32),
        "f": np.array([1.5, -2.0], np.float32),
        "b": np.array([True, False, True]),
    }
    bits = {"w": values["w"].ravel(), "f": values["f"].view(np.uint32), "b": values["b"].astype(np.uint8)}
    expected = {f"['{name}']": sum((2 * i + 1) * int(x) for i, x in enumerate(x)) % 2**32 for name, x in bits.items()}
    assert fingerprints({name: jnp.asarray(value) for name, value in values.items()}) == expected


def test_only_floating_types_hold_weights():
    assert [as_dtype(name).name for name in ("float32", "bfloat16", jnp.float16)] == ["float32", "bfloat16", "float16"]
    for name in ("int8", "float64", "nonsense", "float8_e4m3fn"):
        with pytest.raises(UserError, match="is not supported; choose"):
            as_dtype(name)
