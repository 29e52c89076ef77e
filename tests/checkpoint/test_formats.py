"""Quantised checkpoints stand for exactly what their formats say, on one device and on a mesh; what is not read is named."""

import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qwen3_jax
import sharding
from qwen3_jax import UserError
from qwen3_jax.checkpoint.formats import unpacked
from qwen3_jax.checkpoint.formats.fp8 import pack_fp8
from qwen3_jax.checkpoint.formats.int4 import AWQ_ORDER, pack_awq, pack_words, unpack_words
from qwen3_jax.checkpoint.formats.int8 import pack_int8
from qwen3_jax.checkpoint.formats.opening import open_checkpoint
from tests.helpers import packed_folders
from tests.helpers.packed_folders import awq, fp8, gptq, int8

CHANNEL = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
INT8 = dict(quant_method="compressed-tensors", format="int-quantized", config_groups={"group_0": {"weights": CHANNEL}})
AWQ = dict(quant_method="awq", version="gemm", bits=4, group_size=32, zero_point=True)
GPTQ = dict(quant_method="gptq", bits=4, group_size=32, sym=False, desc_act=False, checkpoint_format="gptq")
FP8 = dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[48, 48])
# name -> (how matrices are packed, quantization_config, fields of the model)
FORMS = {
    "fp8": (fp8(128), FP8 | dict(weight_block_size=[128, 128]), dict(width=200, moe=False)),
    "fp8 moe": (fp8(48), FP8, dict(moe=True)),
    "int8 channel": (int8(1), INT8, dict(moe=False, tied=True)),
    "int8 group moe": (int8(2), INT8, dict(moe=True)),
    "awq": (awq(32), AWQ, dict(moe=False)),
    "awq one group moe": (awq(-1), AWQ | dict(group_size=-1, version="GEMM"), dict(moe=True)),
    "gptq": (gptq(32, index=False), GPTQ, dict(moe=False)),
    "gptq desc_act": (
        gptq(32, shuffled=True),
        GPTQ | dict(desc_act=True, dynamic={"-:.*mlp.gate$": {}}),
        dict(moe=True),
    ),
    "gptq_v2": (gptq(16, offset=0), GPTQ | dict(group_size=16, checkpoint_format="gptq_v2"), dict(moe=False)),
    "gptq 8 bits": (gptq(32, bits=8), GPTQ | dict(bits=8), dict(moe=True)),
}


@functools.cache
def plain(base: Path, **fields) -> Path:
    """An unquantised folder, written once."""
    return packed_folders.plain(base / str(len(list(base.iterdir()))), **fields)


@pytest.fixture(scope="module")
def unquantised(tmp_path_factory):
    """Copies of an unquantised folder to a target."""
    base = tmp_path_factory.mktemp("plain")
    return lambda target, **fields: shutil.copytree(plain(base, **fields), target)


@pytest.mark.parametrize("name", FORMS)
def test_a_quantised_folder_loads_as_exactly_what_its_format_says(name, unquantised, tmp_path):
    form, quantization, fields = FORMS[name]
    folder = unquantised(tmp_path / "in", **fields)
    meant = packed_folders.packed(folder, form, **quantization)
    spread = sharding.make_mesh(tensor=2, expert=2 if fields["moe"] else 1)
    for mesh in (None, spread):
        model, _ = qwen3_jax.load(folder, mesh=mesh, scan_layers=mesh is not None)
        assert model.param_dtype == np.float32
        qwen3_jax.save(model, None, tmp_path / "out", overwrite=True)
        stored = packed_folders.tensors(tmp_path / "out")
        assert stored.keys() == meant.keys()
        for tensor, array in meant.items():
            np.testing.assert_array_equal(stored[tensor], array, err_msg=tensor)
    # Half as wide: rounded once, from the exact value.
    model, _ = qwen3_jax.load(folder, dtype="bfloat16")
    qwen3_jax.save(model, None, tmp_path / "half")
    half = packed_folders.tensors(tmp_path / "half")
    for tensor, array in meant.items():
        np.testing.assert_array_equal(half[tensor], array.astype(half[tensor].dtype), err_msg=tensor)


@pytest.mark.parametrize("name", FORMS)
def test_any_part_of_a_quantised_matrix_is_that_part_of_the_whole(name, unquantised, tmp_path, monkeypatch):
    """Parts that begin and end inside a word, a group, a block or a piece."""
    form, quantization, fields = FORMS[name]
    folder = unquantised(tmp_path / "in", **fields)
    meant = packed_folders.packed(folder, form, **quantization)
    monkeypatch.setattr(unpacked, "PIECE", 500)  # numbers: several pieces of each matrix
    with open_checkpoint(folder).tensors.open() as reader:
        for tensor in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
            matrix = meant[tensor]
            for rows in (slice(0, matrix.shape[0]), slice(3, 42), slice(17, 18)):
                for columns in (slice(0, matrix.shape[1]), slice(5, 39), slice(33, 34)):
                    part = reader.read(tensor, (rows, columns))
                    np.testing.assert_array_equal(part, matrix[rows, columns], err_msg=f"{tensor} {rows} {columns}")


def drop(part: str):
    def damage(stored):
        stored.pop(f"model.layers.1.mlp.up_proj.{part}")

    return damage


def resize(part: str):
    def damage(stored):
        name = f"model.layers.1.mlp.up_proj.{part}"
        stored[name] = np.ascontiguousarray(stored[name][:-1])

    return damage


STEM = r"model\.layers\.1\.mlp\.up_proj\."
# name -> (form, change to the quantization_config, change to the tensors, what the message says)
FAULTS = {
    "unknown method": ("awq", dict(quant_method="bitsandbytes"), None, r"quant_method' is 'bitsandbytes'.*quantize="),
    "no method": ("awq", dict(quant_method=None), None, "quant_method' is None"),
    "fp8 per tensor": ("fp8", dict(weight_block_size=None), None, "weight_block_size' is None"),
    "fp8 static": ("fp8", dict(activation_scheme="static"), None, "activation_scheme' is 'static'"),
    "fp8 e5m2": ("fp8", dict(fmt="e5m2"), None, "fmt' is 'e5m2'"),
    "fp8 other blocks": ("fp8", dict(weight_block_size=[64, 64]), None, r"weight_scale_inv' has shape .*64 x 64"),
    "fp8 no scale": ("fp8", {}, drop("weight_scale_inv"), STEM + "weight_scale_inv' is missing"),
    "int8 packed": ("int8 channel", dict(format="pack-quantized"), None, "format' is 'pack-quantized'"),
    "int8 of 4 bits": (
        "int8 channel",
        dict(config_groups={"group_0": {"weights": CHANNEL | dict(num_bits=4)}}),
        None,
        r"group_0\.weights\.num_bits' is 4",
    ),
    "int8 no scale": ("int8 channel", {}, drop("weight_scale"), STEM + "weight_scale' is missing"),
    "int8 scales": ("int8 channel", {}, resize("weight_scale"), STEM + "weight_scale' has shape"),
    "awq 8 bits": ("awq", dict(bits=8), None, "bits' is 8; of AWQ"),
    "awq gemv": ("awq", dict(version="gemv"), None, "version' is 'gemv'"),
    "awq without zeros": ("awq", dict(zero_point=False), None, "zero_point' is False"),
    "awq group": ("awq", dict(group_size=40), None, "group_size' 40 does not divide the 96 inputs of 'model"),
    "awq no group": ("awq", dict(group_size=None), None, "group_size' is None"),
    "awq other group": ("awq", dict(group_size=16), None, "qzeros' has shape .*groups of 16"),
    "awq no scales": ("awq", {}, drop("scales"), STEM + "scales' is missing"),
    "awq no numbers": ("awq", {}, drop("qweight"), r"data type int32, and none of its companions"),
    "gptq 3 bits": ("gptq", dict(bits=3), None, "bits' is 3; of GPTQ"),
    "gptq marlin": ("gptq", dict(checkpoint_format="marlin"), None, "checkpoint_format' is 'marlin'"),
    "gptq mixed": ("gptq", dict(dynamic={"+:.*down.*": {"bits": 8}}), None, r"dynamic' changes .*down"),
    "gptq index": ("gptq desc_act", {}, resize("g_idx"), "g_idx' has shape"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_read_is_named_with_its_tensor_or_field(fault, unquantised, tmp_path):
    name, changes, damage, message = FAULTS[fault]
    form, quantization, fields = FORMS[name]
    folder = unquantised(tmp_path / "x", **fields | dict(moe=False))
    packed_folders.packed(folder, form, **quantization | changes)
    if damage is not None:
        stored = packed_folders.tensors(folder)
        damage(stored)
        packed_folders.rewrite(folder, stored)
    with pytest.raises(UserError, match=message) as caught:
        qwen3_jax.load(folder)
    assert "\n" not in str(caught.value)


def test_a_matrix_that_is_plain_and_quantised_and_a_scale_without_a_matrix_are_refused(unquantised, tmp_path):
    folder = unquantised(tmp_path / "x", moe=False)
    plain = packed_folders.tensors(folder)
    packed_folders.packed(folder, awq(32), **AWQ)
    stored = packed_folders.tensors(folder)
    twice = shutil.copytree(folder, tmp_path / "twice")
    name = "model.layers.0.mlp.up_proj.weight"
    packed_folders.rewrite(twice, stored | {name: plain[name]})
    with pytest.raises(UserError, match="occurs both plain and quantised"):
        qwen3_jax.load(twice)
    fp8_folder = unquantised(tmp_path / "fp8", moe=False)
    packed_folders.packed(fp8_folder, fp8(48), **FP8)
    stored = packed_folders.tensors(fp8_folder) | {name: plain[name]}
    packed_folders.rewrite(fp8_folder, stored)
    with pytest.raises(UserError, match=r"up_proj.weight_scale_inv' in .* is no parameter"):
        qwen3_jax.load(fp8_folder)


@settings(max_examples=100)
@given(data=st.data(), bits=st.sampled_from([4, 8]), ordered=st.booleans())
def test_words_hold_every_number_at_the_place_that_the_order_says(data, bits, ordered):
    each = 32 // bits
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=2, max_side=5))
    numbers = data.draw(hnp.arrays(np.uint8, (*shape, 2 * each), elements=st.integers(0, 2**bits - 1)))
    order = AWQ_ORDER if ordered and bits == 4 else None
    words = pack_words(numbers, bits, order)
    assert (words.dtype, words.shape) == (np.int32, (*shape, 2))
    np.testing.assert_array_equal(unpack_words(words, bits, order), numbers)
    for place in range(each):
        slot = place if order is None else order.index(place)
        held = (words[..., 1].view(np.uint32) >> np.uint32(bits * slot)) & np.uint32(2**bits - 1)
        np.testing.assert_array_equal(held, numbers[..., each + place])


@settings(max_examples=60)
@given(
    weight=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3).map(lambda n: 8 * n), st.integers(1, 3).map(lambda n: 32 * n)),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_packing_is_off_by_half_a_step_at_most_and_changes_nothing_the_second_time(weight):
    def unpacked_awq(parts):
        q_io = unpack_words(parts["qweight"], 4, AWQ_ORDER).astype(np.int32) - 8
        assert np.abs(q_io).max() <= 7
        assert (unpack_words(parts["qzeros"], 4, AWQ_ORDER) == 8).all()
        scale_io = parts["scales"].astype(np.float32).repeat(32, axis=0)
        return (q_io * scale_io).T.astype(np.float32), scale_io.T

    def unpacked_int8(parts):
        return parts["weight"].astype(np.float32) * parts["weight_scale"], parts["weight_scale"]

    def unpacked_fp8(parts):
        rows, columns = weight.shape
        scale = parts["weight_scale_inv"].repeat(128, axis=0)[:rows].repeat(128, axis=1)[:, :columns]
        return parts["weight"].astype(np.float32) * scale, scale

    # e4m3 has steps of 2^-9 (times the scale) below 2^-6, and of 1/16 of a number above.
    fp8_step = np.maximum(np.abs(weight) / 8, unpacked_fp8(pack_fp8(weight))[1] * 2.0**-9)
    cases = [(lambda w: pack_awq(w, 32), unpacked_awq, None), (pack_int8, unpacked_int8, None)]
    for pack, unpack, step in [*cases, (pack_fp8, unpacked_fp8, fp8_step)]:
        parts = pack(weight)
        once, scale = unpack(parts)
        # The largest number is 7 (1 + 2^-11) steps where its scale was rounded down to float16: 0.0034 of a step is cut.
        assert (np.abs(once - weight) <= 1.01 * (scale if step is None else step) / 2 + 1e-30).all()
        twice, _ = unpack(pack(once))
        np.testing.assert_allclose(twice, once, rtol=1e-6, atol=1e-30)
