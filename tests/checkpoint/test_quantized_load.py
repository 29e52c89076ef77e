"""`load(quantize=...)`: near the unquantised model, the same on any mesh, and neither trained nor saved."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

import qwen3_jax
import sharding
from qwen3_jax import Qwen3, Qwen3Config, UserError
from qwen3_jax.checkpoint.described import described
from qwen3_jax.checkpoint.formats.write import save_quantized
from qwen3_jax.checkpoint.native import save_native
from qwen3_jax.kernels import is_quantized
from qwen3_jax.model import Structure
from tests.helpers import small_checkpoints, tiny_models

KINDS = ["int8", "fp8", "int4"]
FOLDERS = ["dense", "moe"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: small_checkpoints.write(name, tmp_path_factory.mktemp(name) / "model") for name in FOLDERS}


@pytest.fixture(scope="module")
def alone(folders):
    """(folder, kind) -> the unrolled model on one device and its logits; kind None is not quantised."""

    @functools.cache
    def load(name: str, kind: str | None) -> tuple[Qwen3, np.ndarray]:
        model, _ = qwen3_jax.load(folders[name], quantize=kind, scan_layers=False)
        return model, logits(model)

    return load


def logits(model) -> np.ndarray:
    return np.asarray(model(small_checkpoints.tokens()))


def weights(model: Qwen3) -> dict:
    flat = nnx.to_flat_state(nnx.state(model))
    return {".".join(map(str, path)): variable.get_value() for path, variable in flat}


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((actual - expected) ** 2).mean() / (expected**2).mean()))


@jax.jit
def stands_for(packed: dict) -> tuple[dict, dict]:
    """What packed weights stand for, and the step of each number."""
    steps = {name: value.replace(qvalue=jnp.ones_like(value.qvalue)) for name, value in packed.items()}
    return tuple({name: qwix.dequantize(value) for name, value in some.items()} for some in (packed, steps))


def with_weights(model: Qwen3, new: dict) -> Qwen3:
    """The model with other values of some weights, on its device as loading leaves them, so that no program changes."""
    filled = []
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        value = new.get(".".join(map(str, path)), variable.get_value())
        filled.append((path, variable.replace(jax.device_put(value, jax.devices()[0]))))
    return nnx.merge(nnx.graphdef(model), nnx.from_flat_state(filled))


def noisy(packed: dict, steps: dict, plain: Qwen3, seed: int) -> Qwen3:
    """The unquantised model, each of its packed weights moved at random by up to half a step of its packing."""
    random, values, moved = np.random.default_rng(seed), weights(plain), {}
    for name, value in packed.items():
        step = np.array(steps[name])
        if value.qvalue.dtype == jnp.float8_e4m3fn:
            # 3 binary digits after the first; below 2^-6 the steps are 2^-9.
            size = np.maximum(np.abs(np.asarray(value.qvalue).astype(np.float32)), 2.0**-6)
            step *= 2.0 ** (np.floor(np.log2(size)) - 3)
        moved[name] = np.asarray(values[name]) + step * random.uniform(-0.5, 0.5, value.shape).astype(np.float32)
    return with_weights(plain, moved)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_off_by_what_random_errors_of_half_a_step_do(name, kind, alone):
    model, quantised = alone(name, kind)
    plain, expected = alone(name, None)
    values = weights(model)
    packed = {name: value for name, value in values.items() if is_quantized(value)}
    meant, steps = stands_for(packed)
    relative = error(quantised, expected)
    by_noise = np.mean([error(logits(noisy(packed, steps, plain, seed)), expected) for seed in range(3)])
    print(f"{kind}: {relative:.4f}, by noise {by_noise:.4f}")
    assert by_noise / 1.5 <= relative <= 1.5 * by_noise
    # Matrices are packed; norms, the router, and an embedding that is no output projection are not.
    left = {name.rsplit(".", 1)[-1] for name in values.keys() - packed.keys()}
    tied = model.config.tie_word_embeddings
    assert left == ({"scale"} if tied else {"scale", "router", "embed"})
    types = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn, "int4": jnp.int4}
    for name in packed:
        assert values[name].qvalue.dtype == (jnp.int8 if name in ("embed", "lm_head") else types[kind]), name
        assert values[name].shape == weights(plain)[name].shape
    # What each packed weight stands for, in a model without packing, gives the same logits.
    np.testing.assert_allclose(logits(with_weights(plain, meant)), quantised, atol=2e-5 * np.abs(quantised).max())


def as_described(config: Qwen3Config, kind: str, mesh, stacked: bool) -> dict:
    """What the planner takes the weights to be, without a checkpoint."""
    structure = Structure(lambda: Qwen3(config, rngs=nnx.Rngs(0), scan_layers=stacked))
    state = nnx.split(structure.merge(structure.shapes))[1]
    return described(state, config, stacked, sharding.Placement(mesh, sharding.SERVING), kind)


TENSOR, EACH, EXPERT = dict(tensor=4), dict(expert=2, tensor=2), dict(expert=2)


def layers(model: Qwen3) -> dict[str, np.ndarray]:
    """The arrays of each parameter, packed or not, of each layer, whatever the layout."""
    out = {}
    for name, value in weights(model).items():
        for place, leaf in enumerate(np.asarray(leaf).astype(np.float32) for leaf in jax.tree.leaves(value)):
            root, _, rest = name.partition(".0.")
            stacked = model.scan_layers and root == "groups"
            for layer, array in enumerate(leaf) if stacked else [(None, leaf)]:
                out[f"groups.{layer}.{rest}" if stacked else name, place] = array
    return out


QUICK = [("moe", "int8", EACH), ("moe", "int4", EXPERT)]
REFUSED = [(name, "int4", axes) for name in FOLDERS for axes in (EACH, TENSOR)]
EVERY = [(name, kind, axes) for name in FOLDERS for kind in KINDS for axes in (EACH, TENSOR, EXPERT)]


@pytest.mark.parametrize(
    ("name", "kind", "axes"),
    [pytest.param(*case, marks=[] if case in QUICK + REFUSED else [pytest.mark.slow]) for case in EVERY],
)
def test_any_mesh_holds_the_same_numbers_and_gives_the_same_logits(name, kind, axes, folders, alone):
    """Stacked layers of the MoE model, unrolled ones of the dense model."""
    mesh = sharding.make_mesh(**axes)
    if kind == "int4" and "tensor" in axes:
        # MLPs of 96 and 48 columns have three groups each, of 32 and 16.
        with pytest.raises(sharding.ShardingError, match=r"down: its int4 groups of (32|16) along 'f' do not divide"):
            qwen3_jax.load(folders[name], quantize=kind, mesh=mesh)
        with pytest.raises(sharding.ShardingError, match=r"its int4 groups of (32|16) along 'f' do not divide"):
            as_described(alone(name, None)[0].config, kind, mesh, name == "moe")
        return
    model, expected = alone(name, kind)
    spread, _ = qwen3_jax.load(folders[name], quantize=kind, mesh=mesh, scan_layers=name == "moe")
    found, meant = weights(spread), as_described(spread.config, kind, mesh, spread.scan_layers)
    assert found.keys() == meant.keys()
    for of, array in found.items():
        for leaf, wanted in zip(jax.tree.leaves(array), jax.tree.leaves(meant[of]), strict=True):
            assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype), of
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim), of
    np.testing.assert_allclose(logits(spread), expected, atol=2e-5 * np.abs(expected).max())
    ours, theirs = layers(model), layers(spread)
    assert ours.keys() == theirs.keys()
    for of, array in ours.items():
        np.testing.assert_array_equal(array, theirs[of], err_msg=str(of))
    if "tensor" in axes:
        down = weights(spread)["groups.0.mlp.down"].qvalue
        assert down.sharding.shard_shape(down.shape)[-2] * axes["tensor"] == down.shape[-2]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "int4")) for kind in KINDS])
def test_a_quantised_model_generates_as_the_model_it_stands_for(kind, alone):
    model, _ = alone("moe", kind)
    tokens = small_checkpoints.tokens()
    prompt = tokens[0, :20].tolist()
    sampling = qwen3_jax.Sampling(temperature=0)
    (out,) = qwen3_jax.generate(model, None, [prompt], sampling=sampling, max_new_tokens=24)
    assert len(out.token_ids) == 24
    tokens[0, 20:44] = out.token_ids  # causal: what follows changes nothing
    np.testing.assert_array_equal(np.asarray(model(tokens))[0, 19:43].argmax(axis=1), out.token_ids)


@pytest.mark.parametrize("to", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "int4")) for kind in KINDS])
@pytest.mark.parametrize("moe", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_written_folder_loads_back_and_is_packed_again_without_loss(to, moe, tmp_path):
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        **(dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128) if moe else {}),
    )
    model = tiny_models.drawn(
        config, lambda name, noise: 1 + 0 * noise if name.endswith("scale") else noise / 50, scan_layers=False
    )
    model = with_weights(model, {})
    folder = save_quantized(model, None, tmp_path / "x", to)
    back, _ = qwen3_jax.load(folder)
    kept, _ = qwen3_jax.load(folder, quantize=to)
    tokens = small_checkpoints.tokens()
    expected = np.asarray(model(tokens))
    lost = error(np.asarray(back(tokens)), expected)
    assert 0 < lost < 0.5
    packed = {name: value for name, value in weights(kept).items() if is_quantized(value)}
    meant, _ = stands_for(packed)
    # Weights of fp8 are rounded twice: by blocks of 128 x 128 in the file, by channel in memory.
    assert error(np.asarray(with_weights(back, meant)(tokens)), expected) <= (2 if to == "fp8" else 1.2) * lost
    if to != "fp8":
        original, matrices = weights(back), packed.keys() - {"lm_head"}
        assert len(matrices) == 14
        for name in matrices:
            np.testing.assert_allclose(meant[name], original[name], rtol=1e-6, err_msg=name)
    with pytest.raises(UserError, match="x exists"):
        save_quantized(model, None, folder, to)


def test_what_cannot_be_done_with_a_quantised_model_is_refused_by_name(folders, alone, tmp_path):
    folder = folders["dense"]
    model, _ = alone("dense", "int8")
    for write in (
        lambda: qwen3_jax.save(model, None, tmp_path / "x"),
        lambda: save_native(model, None, tmp_path / "x"),
    ):
        with pytest.raises(UserError, match="weights were quantised when it was loaded"):
            write()
    with pytest.raises(UserError, match="weights were quantised when it was loaded"):
        save_quantized(model, None, tmp_path / "x", "int8")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no quantize='int3'"):
        qwen3_jax.load(folder, quantize="int3")
    plain, _ = alone("dense", None)
    native = save_native(plain, None, tmp_path / "native")
    with pytest.raises(UserError, match="is an Orbax folder: convert it"):
        qwen3_jax.load(native, quantize="int8")
    with pytest.raises(UserError, match="groups of 48 do not divide the 64 inputs of 'model"):
        save_quantized(plain, None, tmp_path / "y", "int4", group_size=48)
    assert not (tmp_path / "y").exists()
