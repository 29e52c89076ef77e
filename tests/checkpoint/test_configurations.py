"""Configurations by hand: what a file leaves out, both spellings, round trips, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen3_jax import GenerationConfig, Qwen3Config, UserError
from qwen3_jax.checkpoint.formats import gguf
from qwen3_jax.position_config import DualChunk, RopeScaling
from tests.helpers.small_config import small


def test_a_generation_config_keeps_every_field_and_leaves_out_what_is_not_set():
    full = {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.0,
            "repetition_penalty": 1.05, "max_new_tokens": 9, "bos_token_id": 3, "pad_token_id": 4}  # fmt: skip
    assert GenerationConfig.from_hf(full | {"num_beams": 4, "transformers_version": "5"}).to_hf() == full
    assert GenerationConfig().to_hf() == {"do_sample": False}
    assert GenerationConfig.from_hf({"eos_token_id": 5}).eos_token_id == (5,)
    assert GenerationConfig.from_hf({"eos_token_id": None, "top_p": None}) == GenerationConfig()


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
        assert "torch_dtype" in raw
        assert "dtype" not in raw, "the spelling of the hub's files, which both versions of transformers read"
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


def test_settings_in_older_spellings_and_at_their_no_op_value():
    plain = Qwen3Config.from_hf(DENSE)
    fields = Qwen3Config.__dataclass_fields__.keys() - {"num_key_value_heads"}
    for model_type in (DENSE, MOE):
        assert Qwen3Config.from_hf(model_type | dict.fromkeys(fields)) == Qwen3Config.from_hf(model_type), (
            "null is absent"
        )
    for raw in (
        {"architectures": "Qwen3ForCausalLM", "torch_dtype": None, "num_local_experts": None},
        {"hidden_act": "swish", "hidden_size": 4096.0, "quantization_config": None, "layer_types": None},
        {"use_sliding_window": None, "sliding_window": 4096, "max_window_layers": 28},
        {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0},
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 32},
        {"use_sliding_window": True, "sliding_window": 4096, "layer_types": ["full_attention"] * 32},
        {"rope_scaling": {"type": "linear", "factor": 1.0}, "auto_map": {}, "unsloth_version": "2025.5"},
        {"rope_scaling": {"rope_type": "default", "type": None, "factor": None}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10_000},
                "sliding_attention": {},
            }
        },
    ):
        assert Qwen3Config.from_hf(DENSE | raw) == plain, raw
    assert Qwen3Config.from_hf(DENSE | {"torch_dtype": "torch.bfloat16"}).dtype == "bfloat16"
    assert Qwen3Config.from_hf(MOE | {"num_experts": None, "num_local_experts": 16}).num_experts == 16
    yarn = {"full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e6}}
    nested = Qwen3Config.from_hf(DENSE | {"rope_parameters": yarn})
    assert (nested.rope_theta, nested.rope_scaling) == (5e6, RopeScaling(factor=4.0))
    with pytest.warns(UserWarning, match="'attention_dropout' has no effect: nothing is dropped here"):
        assert Qwen3Config.from_hf(DENSE | {"attention_dropout": 0.1}) == plain
    for raw, message in (
        (DENSE | {"use_sliding_window": True, "max_window_layers": 1}, "'use_sliding_window' is true"),
        (DENSE | {"use_sliding_window": True}, "'use_sliding_window' is true"),
        (MOE | {"use_sliding_window": True, "max_window_layers": 99}, "'use_sliding_window' is true"),
        (DENSE | {"layer_types": ["full_attention", "sliding_attention"]}, "'layer_types' has"),
        (DENSE | {"rope_scaling": {"factor": 4.0}}, "has a 'factor' and no 'rope_type'; set it to 'yarn'"),
        (DENSE | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'rope_type' is 'linear'"),
        (DENSE | {"rope_scaling": {"type": "linear"}}, "'rope_type' is 'linear'"),
        (DENSE | {"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling field 'factor' has the value '4'"),
        (DENSE | {"rope_theta": "1e6"}, "'rope_theta' is '1e6'; it must be a number"),
        (DENSE | {"hidden_size": 64.5}, "'hidden_size' has the value 64.5"),
    ):
        with pytest.raises(UserError, match=message):
            Qwen3Config.from_hf(raw)


def test_sampling_defaults_as_files_have_them():
    raw = {
        "eos_token_id": [],
        "top_k": 20.0,
        "bos_token_id": [3],
        "pad_token_id": [],
        "temperature": 1,
        "max_new_tokens": None,
    }
    read = GenerationConfig.from_hf(raw)
    assert read == GenerationConfig(top_k=20, bos_token_id=3, temperature=1.0)
    assert GenerationConfig.from_hf({"top_k": -1}).top_k == 0, "no limit"
    for field, value in (("temperature", -1), ("top_p", 1.5), ("top_p", 0), ("repetition_penalty", 0), ("top_k", -2)):
        with pytest.raises(
            UserError, match=rf"^generation_config\.json field {field} is {float(value) if field != 'top_k' else value}"
        ):
            GenerationConfig.from_hf({field: value})
    for field, value in (("temperature", "0.6"), ("top_k", 2.5), ("bos_token_id", [1, 2])):
        with pytest.raises(UserError, match=f"^generation_config.json field '{field}' has the value"):
            GenerationConfig.from_hf({field: value})


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


def gguf_header(name="qwen3", kind="Q4_K", tensors=(), **fields):
    """Metadata of a file, below its architecture's name where there is no dot, and tensors of one kind."""
    needed = {"embedding_length": 64, "attention.head_count": 8, "feed_forward_length": 96, "block_count": 3,
              "context_length": 100, "attention.layer_norm_rms_epsilon": 1e-6}  # fmt: skip
    metadata = {f"{name}.{key}": value for key, value in needed.items()} | {"general.architecture": name} | fields
    shapes = {"token_embd.weight": (40, 64), "blk.0.attn_q.weight": (64, 64)} | dict(tensors)
    kinds = {tensor: gguf.Tensor(SimpleNamespace(name=kind), shape, 0, 0) for tensor, shape in shapes.items()}
    return gguf.Header(metadata, kinds)


def test_the_architecture_of_a_gguf_file_is_in_its_metadata():
    def config(**options):
        return gguf._config(Path("m.gguf"), gguf_header(**options))

    plain = config()
    assert (plain.vocab_size, plain.hidden_size, plain.num_hidden_layers, plain.max_position_embeddings) == (
        40,
        64,
        3,
        100,
    )
    assert (plain.num_attention_heads, plain.num_key_value_heads, plain.head_dim) == (8, 8, 8)
    assert (plain.tie_word_embeddings, plain.attention_bias, plain.rope_theta, plain.rope_scaling) == (
        True,
        False,
        1e4,
        None,
    )
    assert (plain.dtype, plain.num_experts, plain.eos_token_id) == ("bfloat16", 0, None)
    assert config(kind="F16").dtype == "float16"
    more = config(
        tensors={"output.weight": (40, 64), "blk.0.attn_q.bias": (64,)},
        **{"qwen3.attention.key_length": 16, "qwen3.attention.head_count_kv": 2, "qwen3.rope.freq_base": 5e6,
           "tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.bos_token_id": 6, "qwen3.rope.scaling.type": "yarn",
           "qwen3.rope.scaling.factor": 4, "qwen3.rope.scaling.original_context_length": 25},
    )  # fmt: skip
    assert (more.head_dim, more.num_key_value_heads, more.rope_theta, more.eos_token_id, more.bos_token_id) == (
        16,
        2,
        5e6,
        7,
        6,
    )
    assert (more.tie_word_embeddings, more.attention_bias) == (False, True)
    assert more.rope_scaling == RopeScaling(factor=4.0, original_max_position_embeddings=25)
    experts = {"qwen3moe.expert_count": 4, "qwen3moe.expert_used_count": 2}
    stored = {"blk.0.ffn_gate_exps.weight": (4, 24, 64)}
    moe = config(name="qwen3moe", tensors=stored, **experts)
    assert (moe.num_experts, moe.num_experts_per_tok, moe.moe_intermediate_size, moe.norm_topk_prob) == (4, 2, 24, True)
    assert (
        config(
            name="qwen3moe", tensors=stored, **experts, **{"qwen3moe.expert_feed_forward_length": 32}
        ).moe_intermediate_size
        == 32
    )
    for options, message in (
        ({"name": "llama"}, "general.architecture is 'llama'"),
        ({"qwen3.attention.value_length": 4}, "value_length differs from key_length"),
        ({"qwen3.rope.scaling.type": "linear"}, "rope.scaling.type is 'linear'"),
        ({"qwen3.block_count": [3]}, r"qwen3.block_count is \[3\]; expected one number"),
        ({"name": "qwen3moe"}, "expert_feed_forward_length is None"),
    ):
        with pytest.raises(UserError, match=message):
            config(**options)


def test_an_answer_of_a_gguf_model_ends_at_any_of_its_end_tokens():
    tokens = ["a", "<|im_end|>", "b", "<|endoftext|>"]
    for eos, expected in ((None, (1, 3)), (3, (3, 1)), (1, (1, 3)), (2, (2, 1, 3))):
        fields = {"tokenizer.ggml.tokens": tokens} | ({} if eos is None else {"tokenizer.ggml.eos_token_id": eos})
        assert gguf._generation(fields) == GenerationConfig(eos_token_id=expected)
    sampled = gguf._generation({"general.sampling.temp": 0.6, "general.sampling.min_p": 0.1})
    assert sampled == GenerationConfig(do_sample=True, temperature=0.6, min_p=0.1)
