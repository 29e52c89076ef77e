"""LoRA adapters in PEFT's format: read, written, merged, refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qwen3_jax
from qwen3_jax import UserError
from qwen3_jax.checkpoint.adapters.attach import merged, with_adapter
from qwen3_jax.checkpoint.adapters.config import AdapterConfig, read_adapter_config
from qwen3_jax.checkpoint.adapters.files import read_adapter
from qwen3_jax.checkpoint.adapters.targets import targets
from qwen3_jax.cli import evaluate, factory_options
from qwen3_jax.cli.main import main
from qwen3_jax.model import flatten
from qwen3_jax.text import train_tokenizer
from tests.helpers import adapters, tiny_models
from tests.helpers.fake_gcs import FakeGcs
from tests.helpers.tiny_models import TINY, TINY_MOE

TOKENS = np.arange(24, dtype=np.int32).reshape(2, 12)
MIXED = dataclasses.replace(TINY_MOE, num_hidden_layers=3, decoder_sparse_step=2, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tied dense model, its base folder, an adapter of all its weights, and the model with it."""
    root = tmp_path_factory.mktemp("adapters")
    model = tiny_models.drawn(
        dataclasses.replace(tiny_models.model().config, tie_word_embeddings=True), scan_layers=False
    )
    base = qwen3_jax.save(model, tiny_models.tokenizer(), root / "base")
    config = AdapterConfig(4, 6.0, adapters.names(model.config), rank_pattern={"v_proj": 2}, base=str(base))
    adapter, whole = adapters.saved(model, config, root / "adapter")
    return model, base, adapter, whole


def test_an_adapter_gives_the_same_model_beside_the_weights_in_them_and_from_every_folder(folders, tmp_path):
    model, base, adapter, whole = folders
    expected = np.asarray(whole(TOKENS))
    assert np.abs(expected - np.asarray(model(TOKENS))).max() > 0.1
    read = with_adapter(model, read_adapter(adapter, model.config))
    assert all(np.array_equal(value, flatten(whole)[name]) for name, value in flatten(read).items())

    # One weight by hand: PEFT's B A times alpha / r, the rank being that of rank_pattern.
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
    addition = 6 / 2 * tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]
    loaded, tokenizer = qwen3_jax.load(base, adapter=adapter, scan_layers=False)
    before, after = (np.asarray(one.groups[1].attention.v[...]) for one in (model, loaded))
    np.testing.assert_allclose((after - before).reshape(len(before), -1).T, addition, atol=1e-6)
    assert (loaded.lora, loaded.config.tie_word_embeddings) == (None, False)
    assert tokenizer is not None
    adapters.assert_merged(loaded, whole)
    np.testing.assert_allclose(np.asarray(loaded(TOKENS)), expected, atol=2e-5)
    own, tokenizer = qwen3_jax.load(adapter, scan_layers=False)  # names its base model
    assert tokenizer is not None
    assert all(np.array_equal(value, flatten(own)[name]) for name, value in flatten(loaded).items())
    with pytest.raises(UserError, match="is an adapter already"):
        qwen3_jax.load(adapter, adapter=adapter)
    for saving in (qwen3_jax.save, lambda *args: qwen3_jax.save_adapter(model, AdapterConfig(), args[2])):
        with pytest.raises(UserError, match="adapter"):
            saving(whole, None, tmp_path / "x")


def test_convert_merges_an_adapter_from_either_side(folders, tmp_path, capsys):
    model, base, adapter, whole = folders
    expected = np.asarray(whole(TOKENS))
    half = qwen3_jax.save(model, tiny_models.tokenizer(), tmp_path / "half", dtype="bfloat16")
    for name, command in {
        "given": [base, "--merge", adapter],
        "named": [adapter, "--merge"],
        "orbax": [adapter, "--to", "orbax", "--merge"],
    }.items():
        assert main(["convert", str(command[0]), str(tmp_path / name), *map(str, command[1:])]) == 0
        one, tokenizer = qwen3_jax.load(tmp_path / name)
        assert (one.lora, tokenizer is None) == (None, False)
        np.testing.assert_allclose(np.asarray(one(TOKENS)), expected, atol=2e-5)
        assert not (tmp_path / name / "adapter_config.json").exists()
    # The sum is rounded once, to the type that is asked for.
    assert main(["convert", str(half), str(tmp_path / "wide"), "--merge", str(adapter), "--dtype", "float32"]) == 0
    wide, _ = qwen3_jax.load(tmp_path / "wide", scan_layers=False)
    rounded, _ = qwen3_jax.load(half, dtype="float32", scan_layers=False)
    sums = flatten(merged(with_adapter(rounded, read_adapter(adapter, model.config))))
    assert all(np.array_equal(value, sums[name]) for name, value in flatten(wide).items())
    capsys.readouterr()
    for command, words in [
        ([base, tmp_path / "x", "--merge"], "holds no adapter; name the one to add"),
        ([base, tmp_path / "x", "--merge", base], "holds no adapter: it has no adapter_config.json"),
        ([adapter, tmp_path / "x", "--merge", adapter], "is an adapter already"),
    ]:
        assert main(["convert", *map(str, command)]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_another_chat_template_or_vocabulary_beside_an_adapter_is_named(folders, tmp_path, capsys):
    _, base, adapter, _ = folders
    for given in (lambda folder: folder, lambda folder: {"x": folder}):
        for name, tokenizer, words in [
            ("same", tiny_models.tokenizer(), ""),
            ("template", tiny_models.tokenizer("{{ messages[0].content }}"), "has another chat template than"),
            ("words", train_tokenizer(["other words"] * 3, 288, show_progress=False), "has another vocabulary"),
        ]:
            folder = shutil.copytree(adapter, tmp_path / name, dirs_exist_ok=True)
            tokenizer.save_pretrained(folder)
            capsys.readouterr()
            qwen3_jax.load(base, adapter=given(folder))
            said = capsys.readouterr().err
            assert words in said if words else "another" not in said, (name, said)


def test_an_adapter_is_part_of_what_identifies_a_model(folders):
    """So that `qwen3 eval` and `qwen3 data` never continue the answers of another adapter, or of the base model."""
    _, base, adapter, _ = folders

    def identities(*command: object):
        args = evaluate._parser("qwen3 eval").parse_args([*map(str, command), "--task", "running_sum"])
        return factory_options._Engine(args).fingerprint, str(evaluate._checkpoint(args, None)[0])

    plain, added = identities("--model", base), identities("--model", base, "--adapter", adapter)
    assert all(one != other for one, other in zip(plain, added, strict=True))
    assert identities("--model", adapter) == added


# field of adapter_config.json, value -> what the refusal says; None: it changes nothing
FIELDS = [
    ("peft_type", "LOHA", "'peft_type' is 'LOHA'"),
    ("use_dora", True, "'use_dora' is set"),
    ("lora_bias", True, "'lora_bias' is set"),
    ("modules_to_save", ["lm_head"], "'modules_to_save' is set"),
    ("trainable_token_indices", [1], "'trainable_token_indices' is set"),
    ("layer_replication", [[0, 2]], "'layer_replication' is set"),
    ("alora_invocation_tokens", [1], "'alora_invocation_tokens' is set"),
    ("init_lora_weights", "pissa", "'init_lora_weights' is 'pissa'"),
    ("init_lora_weights", "pissa_niter_4", "'init_lora_weights' is 'pissa_niter_4'"),
    ("r", 0, "r is 0; it must be at least 1"),
    ("lora_alpha", "8", "lora_alpha is '8'; it must be a number"),
    ("r", 3, "mean \\[3, "),
    ("rank_pattern", {"(": 4}, "is no regular expression"),
    ("layers_to_transform", ["all"], "layers_to_transform is 'all'; it must be a whole number"),
    ("target_modules", [1], "'target_modules' must be names"),
    ("rank_pattern", {"q_proj": 0}, "rank_pattern is 0"),
    ("rank_pattern", [4], "has a value of the wrong type"),
    ("use_dora", False, None),
    ("modules_to_save", [], None),
    ("lora_dropout", 0.1, None),
    ("init_lora_weights", "gaussian", None),
    ("fan_in_fan_out", True, None),
    ("bias", "all", None),  # Qwen3 has none
]


def test_fields_that_change_the_result_are_refused_by_name_and_no_others(folders, tmp_path):
    model, _, adapter, whole = folders
    raw = json.loads((adapter / "adapter_config.json").read_text())
    folder = shutil.copytree(adapter, tmp_path / "x")
    for name, value, words in FIELDS:
        (folder / "adapter_config.json").write_text(json.dumps(raw | {name: value}))
        if words is None:
            assert read_adapter(folder, model.config).lora == whole.lora, name
        else:
            with pytest.raises(UserError, match=words):
                read_adapter(folder, model.config)
    biased = dataclasses.replace(model.config, attention_bias=True)
    with pytest.raises(UserError, match="'bias' is 'all'"):
        read_adapter(folder, biased)


def test_damaged_and_foreign_tensors_are_named(folders, tmp_path, capsys):
    model, base, adapter, _ = folders
    tensors = load_file(adapter / "adapter_model.safetensors")
    folder = shutil.copytree(adapter, tmp_path / "x")
    first = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_A" in name)

    def refused(words, changed):
        save_file(changed, folder / "adapter_model.safetensors")
        with pytest.raises(UserError, match=words):
            read_adapter(folder, model.config)

    refused("not its other half", {name: value for name, value in tensors.items() if name != first})
    refused("has A \\[4, 16\\]", tensors | {first: tensors[first][:, :16].copy()})
    refused(r"layers\.9.*no weight of the model", {n.replace("layers.0", "layers.9"): t for n, t in tensors.items()})
    refused(r"'model.norm.weight' .*no low-rank adapter's", tensors | {"model.norm.weight": tensors[first]})
    kept = {name: value for name, value in tensors.items() if "layers.0.self_attn.q_proj" not in name}
    save_file(kept, folder / "adapter_model.safetensors")
    assert len(read_adapter(folder, model.config).values) == len(tensors) // 2 - 1
    assert "has no tensors for model.layers.0.self_attn.q_proj" in capsys.readouterr().err
    # Names of a model without its head, and of a compiled one; an adapter's own name behind the matrix.
    for old, new in (
        ("base_model.model.model.", "base_model.model."),
        (".q_proj.", ".q_proj._orig_mod."),
        ("A.weight", "A.default.weight"),
    ):
        save_file(
            {name.replace(old, new): value for name, value in tensors.items()}, folder / "adapter_model.safetensors"
        )
        assert len(read_adapter(folder, model.config).values) == len(tensors) // 2
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="pickled"):
        read_adapter(folder, model.config)
    with pytest.raises(UserError, match=r"has no adapter_config\.json"):
        qwen3_jax.load(base, adapter=base)


def test_targets_are_peft_s_names():
    def weights(config=TINY, **fields):
        return {(one.layer, one.weight) for one in targets(AdapterConfig(4, 8.0, **fields), config).additions}

    assert weights(target_modules=("q_proj",)) == {(0, "attention.q"), (1, "attention.q")}
    assert weights(target_modules=("layers.1.self_attn.q_proj",)) == {(1, "attention.q")}
    assert weights(target_modules=("q_proj", "k_proj"), layers=(1,)) == {(1, "attention.q"), (1, "attention.k")}
    assert weights(target_modules=r".*\.0\..*(q|up)_proj") == {(0, "attention.q"), (0, "mlp.up")}
    assert len(weights(target_modules="all-linear")) == 14
    assert len(weights(target_modules="all-linear", exclude_modules=("mlp.up_proj", "k_proj"))) == 10
    experts = {(0, "mlp.experts.gate_up"), (1, "mlp.experts.gate_up")}
    assert weights(TINY_MOE, target_parameters=("mlp.experts.gate_up_proj",)) == experts
    assert weights(TINY_MOE, target_modules=("gate_proj", "up_proj")) == experts
    assert weights(TINY_MOE, target_modules=("gate",)) == {(0, "mlp.router"), (1, "mlp.router")}
    assert len(weights(TINY_MOE, target_modules="all-linear")) == 14
    # Where some layers have experts and some a dense MLP, PEFT takes the name for the experts'.
    assert {weight for _, weight in weights(MIXED, target_modules=r".*\.down_proj")} == {"mlp.experts.down"}
    joined = targets(AdapterConfig(4, 8.0, ("gate_proj", "up_proj")), TINY_MOE).additions[0]
    assert (joined.rank, joined.scaling) == (8, 2.0)
    assert targets(AdapterConfig(4, 8.0, ("q_proj",), rslora=True), TINY).additions[0].scaling == 4.0
    for fields, words in [
        (dict(target_modules=("q_prj",)), r"'q_prj' names no weight of the model\. Did you mean 'q_proj'"),
        (dict(target_modules=r".*\.z_proj"), "name no weight"),
        (dict(target_modules="("), "is no regular expression"),
        (dict(target_parameters=("mlp.experts.gate_up_proj",)), "names no weight"),
    ]:
        with pytest.raises(UserError, match=words):
            weights(**fields)
    with pytest.raises(UserError, match="'gate_proj' without 'up_proj'"):
        weights(TINY_MOE, target_modules=("gate_proj",))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY, marks=pytest.mark.soak),
        pytest.param(TINY_MOE, marks=pytest.mark.soak),
        pytest.param(MIXED, marks=pytest.mark.slow),  # has layers of both kinds
    ],
    ids=["dense", "moe", "mixed"],
)
def test_layouts_meshes_and_quantised_bases_agree(config, tmp_path):
    """Stacked or not, split over devices or not; over int8 and int4 as over the numbers that these stand for."""
    import sharding
    from qwen3_jax.kernels import is_quantized
    from qwen3_jax.kernels.quantized import dequantize

    settings = AdapterConfig(4, 8.0, adapters.names(config), alpha_pattern={"layers.1.self_attn.q_proj": 3.0})
    model = tiny_models.drawn(config, scan_layers=False)
    base = qwen3_jax.save(model, None, tmp_path / "base")
    folder, whole = adapters.saved(model, settings, tmp_path / "adapter")
    expected = np.asarray(whole(TOKENS))
    adapters.assert_merged(merged(whole), whole)
    np.testing.assert_allclose(np.asarray(merged(whole)(TOKENS)), expected, atol=2e-5)
    axes = {"expert": 2} if config.num_experts else {}
    mesh = sharding.make_mesh(tensor=2, data=2, **axes)
    for options in (dict(scan_layers=True), dict(scan_layers=True, mesh=mesh), dict(scan_layers=False, mesh=mesh)):
        plain, _ = qwen3_jax.load(base, **options)
        both = with_adapter(plain, read_adapter(folder, config))
        np.testing.assert_allclose(np.asarray(both(TOKENS)), expected, atol=2e-5)
        np.testing.assert_allclose(np.asarray(merged(both)(TOKENS)), expected, atol=2e-5)
        again = qwen3_jax.save_adapter(both, settings, tmp_path / "again", overwrite=True)
        first, second = (load_file(one / "adapter_model.safetensors") for one in (folder, again))
        assert all(np.array_equal(first[name], second[name]) for name in first | second)
    for kind in ("int8", "int4"):
        quantised, _ = qwen3_jax.load(base, adapter=folder, quantize=kind, scan_layers=True)
        assert quantised.lora is not None
        assert is_quantized(quantised.groups[0].attention.q.get_value())
        unpacked = jax.tree.map(
            lambda w: dequantize(w, np.float32) if is_quantized(w) else w, flatten(quantised), is_leaf=is_quantized
        )
        from qwen3_jax.checkpoint.adapters.attach import structure

        same = structure(quantised, quantised.lora).merge(unpacked)
        np.testing.assert_allclose(np.asarray(quantised(TOKENS)), np.asarray(same(TOKENS)), atol=2e-5)
        with pytest.raises(UserError, match="quantised"):
            merged(quantised)


def test_a_configuration_without_a_base_model_says_what_to_give(folders, tmp_path):
    _, base, adapter, _ = folders
    folder = shutil.copytree(adapter, tmp_path / "x")
    raw = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(raw | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="names no base model"):
        qwen3_jax.load(folder)
    (folder / "adapter_config.json").write_text(json.dumps(raw | {"base_model_name_or_path": str(base) + "-gone"}))
    with pytest.raises(UserError, match="its base model cannot be had"):
        qwen3_jax.load(folder)
    assert read_adapter_config(folder).base == f"{base}-gone"


def test_adapters_of_single_experts_become_those_of_all(tmp_path):
    """Transformers 4 had a module for each projection of each expert; one expert has none here."""
    rng, folder = np.random.default_rng(0), tmp_path / "older"
    folder.mkdir()
    d, f, tensors = TINY_MOE.hidden_size, TINY_MOE.moe_intermediate_size, {}
    for expert in range(TINY_MOE.num_experts - 1):
        for leaf, inputs, outputs in (("gate_proj", d, f), ("up_proj", d, f), ("down_proj", f, d)):
            name = f"base_model.model.model.layers.1.mlp.experts.{expert}.{leaf}.lora_"
            tensors[f"{name}A.weight"] = rng.normal(size=(2, inputs)).astype(np.float32)
            tensors[f"{name}B.weight"] = rng.normal(size=(outputs, 2)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    model = tiny_models.drawn(TINY_MOE, scan_layers=False)
    summed = merged(with_adapter(model, read_adapter(folder, TINY_MOE)))
    before, after = model.groups[1].mlp, summed.groups[1].mlp
    for leaf in ("gate", "up", "down"):
        change = np.asarray(getattr(after, leaf)[...]) - np.asarray(getattr(before, leaf)[...])
        name = f"base_model.model.model.layers.1.mlp.experts.3.{leaf}_proj.lora_"
        np.testing.assert_allclose(
            change[3].T, 1.5 * tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"], atol=2e-5
        )
        assert not change[-1].any()
    assert np.array_equal(np.asarray(summed.groups[0].mlp.gate[...]), np.asarray(model.groups[0].mlp.gate[...]))


@pytest.mark.slow
def test_a_bucket_holds_adapters_as_a_folder_does(folders, tmp_path, monkeypatch):
    pytest.importorskip("gcsfs")
    _, base, adapter, whole = folders
    with FakeGcs() as gcs:
        gcs.create("bucket")
        for name, value in (gcs.environment | {"XDG_CACHE_HOME": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)
        config = read_adapter_config(adapter)
        for _ in range(2):
            qwen3_jax.save_adapter(whole, config, "gs://bucket/one", tiny_models.tokenizer(), overwrite=True)
        names = {name.removeprefix("one/") for name in gcs.objects["bucket"]}
        assert names >= {"adapter_config.json", "adapter_model.safetensors", "checksums.sha256", "tokenizer.json"}
        for options in (dict(path_or_repo_id=base, adapter="gs://bucket/one"), dict(path_or_repo_id="gs://bucket/one")):
            model, _ = qwen3_jax.load(**options)
            np.testing.assert_allclose(np.asarray(model(TOKENS)), np.asarray(whole(TOKENS)), atol=2e-5)
        several, _ = qwen3_jax.load(base, adapter={"x": "gs://bucket/one"})
        assert several.lora.names == ("x",)
        with pytest.raises(UserError, match="adapter: gs://bucket/none"):
            qwen3_jax.load(base, adapter="gs://bucket/none")
