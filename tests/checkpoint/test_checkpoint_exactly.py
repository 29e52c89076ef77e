"""Small files, key table, checksums, packed words and configurations by hand: no model is compiled."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from qwen3_jax import GenerationConfig, Qwen3Config, UserError
from qwen3_jax.checkpoint import hf_load, hf_save, keys
from qwen3_jax.checkpoint.checksums import CHECKSUMS, sha256, verify_checksums, write_checksums
from qwen3_jax.checkpoint.fingerprint import fingerprints
from qwen3_jax.checkpoint.formats.fp8 import Fp8Blocks, pack_fp8
from qwen3_jax.checkpoint.formats.int4 import AWQ_ORDER, pack_words, unpack_words
from qwen3_jax.checkpoint.formats.int8 import Int8, pack_int8
from qwen3_jax.checkpoint.formats.opening import gguf_file, scheme
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.checkpoint.keys import Slot
from qwen3_jax.checkpoint.publish import publishing
from qwen3_jax.checkpoint.safetensors import SafetensorsFolder
from qwen3_jax.checkpoint.slot_load import weight_type
from qwen3_jax.checkpoint.small_files import write_small_files
from qwen3_jax.checkpoint.source import Entry
from qwen3_jax.checkpoint.storage import as_dtype
from qwen3_jax.position_config import DualChunk, RopeScaling


def written(folder, config, generation, **more):
    folder.mkdir()
    model = SimpleNamespace(config=config, generation_config=generation)
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


def test_a_generation_config_keeps_every_field_and_leaves_out_what_is_not_set():
    full = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0,
            "repetition_penalty": 1.05, "max_new_tokens": 9, "bos_token_id": 3, "pad_token_id": 4}  # fmt: skip
    assert GenerationConfig.from_hf(full | {"num_beams": 4, "transformers_version": "5"}).to_hf() == full
    assert GenerationConfig().to_hf() == {"do_sample": False}
    assert GenerationConfig.from_hf({"eos_token_id": 5}).eos_token_id == (5,)
    assert GenerationConfig.from_hf({"eos_token_id": None, "top_p": None}) == GenerationConfig()


def small(**fields):
    sizes = dict(
        vocab_size=10, hidden_size=8, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, head_dim=4
    )
    return Qwen3Config(**(sizes | fields))


DENSE, MOE = {"model_type": "qwen3"}, {"model_type": "qwen3_moe"}


def test_what_huggingface_assumes_of_a_field_that_the_file_leaves_out():
    dense, moe = Qwen3Config.from_hf(DENSE), Qwen3Config.from_hf(MOE)
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "tie_word_embeddings", "num_experts", "rope_theta", "norm_topk_prob",
    )  # fmt: skip
    assert [getattr(dense, name) for name in names] == [
        151936,
        4096,
        22016,
        32,
        32,
        32,
        128,
        32768,
        False,
        0,
        10000.0,
        True,
    ]
    assert [getattr(moe, name) for name in names] == [
        151936,
        2048,
        6144,
        24,
        32,
        4,
        64,
        32768,
        False,
        128,
        10000.0,
        False,
    ]
    assert (dense.rms_norm_eps, dense.bos_token_id, dense.eos_token_id, dense.dtype) == (1e-6, None, None, None)
    assert (moe.num_experts_per_tok, moe.moe_intermediate_size, moe.decoder_sparse_step, moe.mlp_only_layers) == (
        8,
        768,
        1,
        (),
    )
    assert (
        Qwen3Config.from_hf(DENSE | {"num_key_value_heads": None, "num_attention_heads": 16}).num_key_value_heads == 16
    )
    assert Qwen3Config.from_hf(MOE | {"num_local_experts": 16, "head_dim": 128}).num_experts == 16
    assert Qwen3Config.from_hf(MOE | {"num_local_experts": 16, "num_experts": 32}).num_experts == 32
    assert Qwen3Config.from_hf(DENSE | {"num_experts": 8}).num_experts == 0
    assert Qwen3Config.from_hf(DENSE | {"dtype": "float16", "torch_dtype": "float32"}).dtype == "float16"
    assert Qwen3Config.from_hf(DENSE | {"torch_dtype": "float32"}).dtype == "float32"
    with pytest.warns(UserWarning, match=r"\['other'\] are not Qwen3's"):
        Qwen3Config.from_hf(DENSE | {"other": 1, "use_cache": False, "pad_token_id": 1})


def test_a_config_survives_its_file():
    for config in (
        small(),
        small(tie_word_embeddings=False, attention_bias=True, rms_norm_eps=1e-5, initializer_range=0.5, rope_theta=5e6),
        small(eos_token_id=(3, 4), bos_token_id=None, dtype="bfloat16", max_position_embeddings=99, num_key_value_heads=2),
        small(num_experts=6, num_experts_per_tok=3, moe_intermediate_size=5, norm_topk_prob=False, decoder_sparse_step=2,
              mlp_only_layers=(1,), router_aux_loss_coef=0.5),
        small(rope_scaling=RopeScaling(factor=4.0, original_max_position_embeddings=32, beta_fast=16.0, truncate=False)),
        small(dual_chunk_attention_config=DualChunk(64, 16, 128)),
    ):  # fmt: skip
        raw = json.loads(json.dumps(config.to_hf()))
        assert Qwen3Config.from_hf(raw) == config
        assert raw["architectures"] == ["Qwen3MoeForCausalLM" if config.num_experts else "Qwen3ForCausalLM"]
        assert ("num_experts" in raw) == ("max_window_layers" not in raw) == bool(config.num_experts)
    assert small(rope_scaling=RopeScaling(factor=4.0)).to_hf()["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}


def test_both_spellings_of_rope_and_which_one_wins():
    def rope(**raw):
        config = Qwen3Config.from_hf(DENSE | raw)
        return config.rope_theta, config.rope_scaling

    yarn = RopeScaling(factor=2.0)
    assert rope() == (10_000.0, None)
    assert rope(rope_theta=5) == (5.0, None)
    assert rope(rope_scaling={"type": "yarn", "factor": 2.0}, rope_theta=7) == (7.0, yarn)
    assert rope(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 8}) == (8.0, yarn)
    assert rope(rope_parameters={"rope_type": "default", "rope_theta": 8}, rope_theta=7) == (8.0, None)
    both = dict(rope_scaling={"rope_type": "yarn", "factor": 3.0}, rope_parameters={"factor": 2.0})
    assert rope(**both) == (10_000.0, yarn), "the newer spelling goes before"
    assert rope(rope_scaling={"type": "yarn", "rope_type": "yarn", "factor": 2.0, "beta_fast": None})[1] == yarn
    with pytest.raises(UserError, match=r"'partial_rotary_factor' is not 1\.0"):
        rope(rope_parameters={"partial_rotary_factor": 0.5})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(hidden_size=0), "config field hidden_size is 0; it must be at least 1."),
        (dict(num_hidden_layers=True), "config field num_hidden_layers is True; it must be a whole number."),
        (dict(num_experts=-1), "config field num_experts is -1; it must be at least 0."),
        (dict(head_dim=3), "config field 'head_dim' must be even"),
        (
            dict(num_key_value_heads=3),
            "'num_attention_heads' \\(4\\) must be a multiple of 'num_key_value_heads' \\(3\\)",
        ),
        (
            dict(num_experts=2, num_experts_per_tok=3),
            "must lie between 1 and 'num_experts' \\(2\\)",
        ),
        (dict(num_experts=2, num_experts_per_tok=0), "must lie between 1 and 'num_experts'"),
        (dict(mlp_only_layers=[4]), "names layer 4; there are 4"),
        (dict(mlp_only_layers=[-1]), "names layer -1"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_its_field(fields, message):
    with pytest.raises(UserError, match=message):
        small(**fields)
    assert small(num_experts=2, num_experts_per_tok=2, mlp_only_layers=[3]).mlp_only_layers == (3,)
    for chunks in ((64, 33), (64, 0), (64, -1)):
        with pytest.raises(UserError, match="needs 0 < local_size <= chunk_size / 2"):
            DualChunk(*chunks)
    assert DualChunk(64, 32).chunk == 32


def test_which_layers_hold_experts():
    config = small(num_experts=2, num_experts_per_tok=1, decoder_sparse_step=2, mlp_only_layers=(1,))
    assert [config.is_moe_layer(i) for i in range(4)] == [False, False, False, True]
    assert not small().is_moe_layer(0)


def test_presets_by_any_name():
    config = Qwen3Config.preset("Qwen/Qwen3-30B-A3B-Thinking-2507")
    assert (config.rope_theta, config.max_position_embeddings, config.eos_token_id) == (10_000_000.0, 262_144, 151_645)
    base = Qwen3Config.preset("qwen3-4b-base")
    assert (base.eos_token_id, base.max_position_embeddings, base.tie_word_embeddings) == (151_643, 32_768, True)
    assert not Qwen3Config.preset("Qwen3-8B").tie_word_embeddings
    with pytest.raises(UserError, match="no preset 'Qwen3-32B-Base'"):
        Qwen3Config.preset("Qwen3-32B-Base")


ROWS = [*keys.MODEL_KEYS, *keys.BLOCK_KEYS, *keys.DENSE_KEYS, *keys.MOE_KEYS]
SIZES = dict(v=10, d=6, n=4, k=2, h=3, f=5, e=2)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.ours}-{row.hf}")
def test_each_row_of_the_key_table_means_its_letters(row):
    """Element by element: HF's row and column are mixed radix numbers over the letters of their groups."""
    ours = np.arange(np.prod([SIZES[letter] for letter in row.dims])).reshape([SIZES[letter] for letter in row.dims])
    hf = np.asarray(keys.to_hf(ours, row))
    groups = (["e"] if "{expert}" in row.hf else []) + row.hf_dims.split(",")
    assert hf.shape == tuple(np.prod([SIZES[letter] for letter in group]) for group in groups)
    for index in np.ndindex(*ours.shape):
        place = dict(zip(row.dims, index, strict=True))
        flat = []
        for group in groups:
            number = 0
            for letter in group:
                number = number * SIZES[letter] + place[letter]
            flat.append(number)
        assert hf[tuple(flat)] == ours[index]
    np.testing.assert_array_equal(keys.from_hf(hf, row, SIZES), ours)
    # A part along each letter that may be cut: the slice of HF's tensor holds just the numbers of ours.
    for letter in {group[0] for group in row.hf_dims.split(",")}:
        index = {other: slice(0, SIZES[other]) for other in row.dims} | {letter: slice(1, SIZES[letter])}
        part = hf[(slice(None),) * (len(groups) - len(row.hf_dims.split(","))) + keys.hf_index(row, SIZES, index)]
        expected = ours[tuple(index[other] for other in row.dims)]
        np.testing.assert_array_equal(keys.from_hf(part, row, SIZES | {letter: SIZES[letter] - 1}), expected)


def test_the_key_table_against_huggingface_s_modules():
    """nn.Linear stores [out, in]; q, k, v and o split their heads as [heads, head size]; experts lead in our arrays alone."""
    linear = {"attention.q": "nh,d", "attention.k": "kh,d", "attention.v": "kh,d", "attention.o": "d,nh", "mlp.gate": "f,d",
              "mlp.up": "f,d", "mlp.down": "d,f", "mlp.router": "e,d", "embed": "v,d", "lm_head": "v,d"}  # fmt: skip
    vectors = {"attention.q_bias": "nh", "attention.k_bias": "kh", "attention.v_bias": "kh", "attention.o_bias": "d",
               "attention.q_norm.scale": "h", "attention.k_norm.scale": "h", "attention_norm.scale": "d",
               "mlp_norm.scale": "d", "norm.scale": "d"}  # fmt: skip
    assert {row.ours: row.hf_dims for row in ROWS} == linear | vectors
    ours = {"attention.q": "dnh", "attention.k": "dkh", "attention.v": "dkh", "attention.o": "nhd", "mlp.router": "de",
            "embed": "vd", "lm_head": "dv"}  # fmt: skip
    for row in ROWS:
        dense = {"mlp.gate": "df", "mlp.up": "df", "mlp.down": "fd"}.get(
            row.ours, ours.get(row.ours, vectors.get(row.ours))
        )
        assert row.dims == ("e" + dense if "{expert}" in row.hf else dense)
    names = {row.ours: row.hf for row in (*keys.MODEL_KEYS, *keys.BLOCK_KEYS, *keys.DENSE_KEYS)}
    assert {ours: hf.rpartition(".")[0] for ours, hf in names.items()} == {
        "embed": "model.embed_tokens", "norm.scale": "model.norm", "lm_head": "lm_head",
        "attention_norm.scale": "input_layernorm",
        "mlp_norm.scale": "post_attention_layernorm", "attention.q_norm.scale": "self_attn.q_norm",
        "attention.k_norm.scale": "self_attn.k_norm",
        **{f"attention.{part}": f"self_attn.{part}_proj" for part in "qkvo"},
        **{f"attention.{part}_bias": f"self_attn.{part}_proj" for part in "qkvo"},
        **{f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
    }  # fmt: skip
    assert all(hf.endswith(".bias" if ours.endswith("_bias") else ".weight") for ours, hf in names.items())


def test_no_two_rows_share_a_name_and_a_head_is_never_cut():
    for rows in (keys.MODEL_KEYS, keys.BLOCK_KEYS + keys.DENSE_KEYS, keys.BLOCK_KEYS + keys.MOE_KEYS):
        for names in ([row.ours for row in rows], [row.hf for row in rows], [row.gguf for row in rows]):
            assert len(set(names)) == len(rows)
    row = next(row for row in keys.BLOCK_KEYS if row.ours == "attention.q")
    index = {"d": slice(0, 6), "n": slice(0, 4), "h": slice(0, 2)}
    with pytest.raises(ValueError, match="'h' cannot be split"):
        keys.hf_index(row, SIZES, index)
    assert {row.ours: row.fused_part for row in keys.MOE_KEYS if row.fused} == {
        "mlp.gate": 0,
        "mlp.up": 1,
        "mlp.down": None,
    }


def slot(ours, rows=keys.BLOCK_KEYS, prefixes=("model.layers.0.", "model.layers.3.")):
    row = next(row for row in rows if row.ours == ours)
    return Slot(("x",), tuple(SIZES[letter] for letter in row.dims), ("a",) * len(row.dims), True, row, prefixes)


def test_a_slot_names_the_tensors_of_each_layer():
    q = slot("attention.q")
    assert q.names(1) == ["model.layers.3.self_attn.q_proj.weight"]
    assert (q.hf_shape(), q.per_expert) == ((12, 6), False)
    up = slot("mlp.up", keys.MOE_KEYS)
    assert up.names(0) == [f"model.layers.0.mlp.experts.{e}.up_proj.weight" for e in range(2)]
    assert (up.hf_shape(), up.per_expert, up.key.summed) == ((5, 6), True, "d")
    assert [hf_save._layer_number(prefix) for prefix in ("", "model.layers.0.", "model.layers.12.")] == [-1, 0, 12]


def test_shards_are_filled_to_the_byte_in_the_order_of_layers(monkeypatch):
    """float32: an attention.q of one layer has 288 bytes, a norm 24, the embedding 240."""
    q, norm = slot("attention.q"), slot("mlp_norm.scale")
    embed = slot("embed", keys.MODEL_KEYS, prefixes=("",))
    monkeypatch.setattr(hf_save.keys, "slots", lambda *_: [q, norm, embed])
    monkeypatch.setattr(hf_save.nnx, "state", lambda model: None)
    model = SimpleNamespace(config=None, scan_layers=True)

    def shards(limit, dtype="float32"):
        planned = hf_save._plan(model, jnp.dtype(dtype), limit)
        return [[(part.key.ours, layer) for part, layer in shard] for shard in planned]

    whole = [("embed", 0), ("attention.q", 0), ("mlp_norm.scale", 0), ("attention.q", 1), ("mlp_norm.scale", 1)]
    assert shards(10**6) == [whole]
    assert shards(552) == [whole[:3], whole[3:]], "240 + 288 + 24 is no more than the limit"
    assert shards(551) == [whole[:2], whole[2:]]
    assert shards(100) == [[part] for part in whole], "a tensor larger than the limit has a file of its own"
    assert shards(276, "bfloat16") == [whole[:3], whole[3:]]


def tensors_of(shapes):
    entries = {name: Entry(Path("m.safetensors"), shape, "float32") for name, shape in shapes.items()}
    return SimpleNamespace(folder="FOLDER", entries=entries)


def test_every_parameter_has_its_tensors_and_every_tensor_its_parameter():
    slots = [
        slot("attention.q"),
        slot("mlp.up", keys.MOE_KEYS),
        slot("mlp.gate", keys.MOE_KEYS),
        slot("mlp.down", keys.MOE_KEYS),
    ]
    plain = {}
    for layer in (0, 3):
        prefix = f"model.layers.{layer}."
        plain[prefix + "self_attn.q_proj.weight"] = (12, 6)
        for expert in range(2):
            stem = f"{prefix}mlp.experts.{expert}."
            plain |= {
                stem + "up_proj.weight": (5, 6),
                stem + "gate_proj.weight": (5, 6),
                stem + "down_proj.weight": (6, 5),
            }
    fused = {name: shape for name, shape in plain.items() if ".experts." not in name}
    for layer in (0, 3):
        prefix = f"model.layers.{layer}.mlp.experts."
        fused |= {prefix + "gate_up_proj": (2, 10, 6), prefix + "down_proj": (2, 6, 5)}
    tied, untied = small(), small(tie_word_embeddings=False)
    for shapes in (plain, fused):
        hf_load._check(slots, tensors_of(shapes), tied)
        for name, shape in shapes.items():
            with pytest.raises(UserError, match=r"is missing from FOLDER|is no parameter"):
                hf_load._check(slots, tensors_of({n: s for n, s in shapes.items() if n != name}), tied)
            for wrong in (shape[::-1], (*shape[:-1], shape[-1] + 1), shape[1:]):
                if wrong != shape:
                    with pytest.raises(UserError, match=f"{re.escape(repr(name))}.*has shape"):
                        hf_load._check(slots, tensors_of(shapes | {name: wrong}), tied)
    with pytest.raises(UserError, match=r"'a' \(and 1 more\) in m.safetensors is no parameter"):
        hf_load._check(slots, tensors_of(plain | {"b": (1,), "a": (1,)}), tied)
    with pytest.raises(UserError, match=r"'lm_head.weight' in m.safetensors is no parameter"):
        hf_load._check(slots, tensors_of(plain | {"lm_head.weight": (10, 6)}), untied)


def test_which_weights_are_stored_in_fewer_bits():
    tied, untied = small(), small(tie_word_embeddings=False)
    embed, head = slot("embed", keys.MODEL_KEYS), slot("lm_head", keys.MODEL_KEYS)
    for kind in ("int4", "fp8", "int8"):
        assert (
            weight_type(slot("attention.q"), tied, kind)
            == weight_type(slot("mlp.down", keys.MOE_KEYS), tied, kind)
            == kind
        )
        assert weight_type(slot("mlp.router", keys.MOE_KEYS), tied, kind) is None
        assert weight_type(slot("attention_norm.scale"), tied, kind) is None
        assert weight_type(slot("attention.q_bias"), tied, kind) is None
        assert [weight_type(embed, config, kind) for config in (tied, untied)] == ["int8", None]
        assert weight_type(head, untied, kind) == "int8"
    assert weight_type(slot("attention.q"), tied, None) is None


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
        (dict(a=names[1], b=names[1]), "is not named in"),
        (dict(a=names[0], b=names[0]), "is not named in"),
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
    with pytest.raises(
        UserError, match=r"has model-00001-of-00002\.safetensors but no model\.safetensors\.index\.json"
    ):
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
