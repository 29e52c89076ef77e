"""The key table element by element, the tensors and shards that follow from it, and how weights are stored."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax import UserError
from qwen3_jax.checkpoint import hf_load, hf_save, keys
from qwen3_jax.checkpoint.keys import Slot
from qwen3_jax.checkpoint.slot_load import weight_type
from qwen3_jax.checkpoint.source import Entry
from tests.helpers.small_config import small

ROWS = [*keys.MODEL_KEYS, *keys.BLOCK_KEYS, *keys.DENSE_KEYS, *keys.MOE_KEYS]


SIZES = dict(v=10, d=6, n=4, k=2, h=3, f=5, e=2, s=3)


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
              "mlp.up": "f,d", "mlp.down": "d,f", "mlp.router": "e,d", "embed": "v,d", "lm_head": "v,d",
              "score": "s,d"}  # fmt: skip
    vectors = {"attention.q_bias": "nh", "attention.k_bias": "kh", "attention.v_bias": "kh", "attention.o_bias": "d",
               "attention.q_norm.scale": "h", "attention.k_norm.scale": "h", "attention_norm.scale": "d",
               "mlp_norm.scale": "d", "norm.scale": "d"}  # fmt: skip
    assert {row.ours: row.hf_dims for row in ROWS} == linear | vectors
    ours = {"attention.q": "dnh", "attention.k": "dkh", "attention.v": "dkh", "attention.o": "nhd", "mlp.router": "de",
            "embed": "vd", "lm_head": "dv", "score": "ds"}  # fmt: skip
    for row in ROWS:
        dense = {"mlp.gate": "df", "mlp.up": "df", "mlp.down": "fd"}.get(
            row.ours, ours.get(row.ours, vectors.get(row.ours))
        )
        assert row.dims == ("e" + dense if "{expert}" in row.hf else dense)
    names = {row.ours: row.hf for row in (*keys.MODEL_KEYS, *keys.BLOCK_KEYS, *keys.DENSE_KEYS)}
    assert {ours: hf.rpartition(".")[0] for ours, hf in names.items()} == {
        "embed": "model.embed_tokens", "norm.scale": "model.norm", "lm_head": "lm_head", "score": "score",
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
