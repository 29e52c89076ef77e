"""GGUF files load as what the package gguf says their blocks stand for, with their tokenizer; what is not read is named."""

import json
import shutil
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType as Type
from tokenizers import models

import qwen3_jax
import sharding
from qwen3_jax import UserError
from qwen3_jax.checkpoint.formats.opening import open_checkpoint
from tests.helpers import packed_folders, tiny_models

HIDDEN, HEADS, KV, HEAD, FFN, LAYERS, EXPERTS, EXPERT_FFN = 256, 8, 4, 32, 512, 2, 4, 256
VOCABULARY = tiny_models.VOCABULARY
# What a mixed file such as Q4_K_M has: tensor (below blk.N.) -> block type.
MIXED = {
    "attn_q.weight": Type.Q4_K,
    "attn_k.weight": Type.Q8_0,
    "attn_v.weight": Type.Q6_K,
    "attn_output.weight": Type.Q4_K,
    "ffn_gate.weight": Type.Q5_K,
    "ffn_up.weight": Type.F16,
    "ffn_down.weight": Type.BF16,
    "ffn_gate_exps.weight": Type.Q4_K,
    "ffn_up_exps.weight": Type.Q8_0,
    "ffn_down_exps.weight": Type.Q6_K,
    "token_embd.weight": Type.Q6_K,
    "output.weight": Type.Q8_0,
}
# llama.cpp's names, by its documentation and not by our table.
HF = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "ffn_gate_inp.weight": "mlp.gate.weight",
    "ffn_gate_exps.weight": "mlp.experts.{}.gate_proj.weight",
    "ffn_up_exps.weight": "mlp.experts.{}.up_proj.weight",
    "ffn_down_exps.weight": "mlp.experts.{}.down_proj.weight",
}


def shapes(moe: bool, tied: bool) -> dict[str, tuple[int, ...]]:
    by_name = {"token_embd.weight": (VOCABULARY, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        by_name["output.weight"] = (VOCABULARY, HIDDEN)
    block = {
        "attn_norm.weight": (HIDDEN,),
        "attn_q.weight": (HEADS * HEAD, HIDDEN),
        "attn_k.weight": (KV * HEAD, HIDDEN),
        "attn_v.weight": (KV * HEAD, HIDDEN),
        "attn_output.weight": (HIDDEN, HEADS * HEAD),
        "attn_q_norm.weight": (HEAD,),
        "attn_k_norm.weight": (HEAD,),
        "ffn_norm.weight": (HIDDEN,),
    }
    if moe:
        block |= {
            "ffn_gate_inp.weight": (EXPERTS, HIDDEN),
            "ffn_gate_exps.weight": (EXPERTS, EXPERT_FFN, HIDDEN),
            "ffn_up_exps.weight": (EXPERTS, EXPERT_FFN, HIDDEN),
            "ffn_down_exps.weight": (EXPERTS, HIDDEN, EXPERT_FFN),
        }
    else:
        block |= {"ffn_gate.weight": (FFN, HIDDEN), "ffn_up.weight": (FFN, HIDDEN), "ffn_down.weight": (HIDDEN, FFN)}
    return by_name | {f"blk.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in block.items()}


def blocks(random, shape: tuple[int, ...], kind: Type) -> np.ndarray:
    """Random blocks: what quantisers make where gguf has one, else any bits under small float16 scales."""
    values = (random.normal(size=shape) / 8).astype(np.float32)
    if kind not in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return gguf.quants.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (*shape[:-1], shape[-1] // block, size)).astype(np.uint8)
    scale = random.uniform(1e-4, 1e-3, (*blocks.shape[:-1], 1)).astype(np.float16).view(np.uint8)
    if kind == Type.Q6_K:
        blocks[..., -2:] = scale  # d comes last
    else:
        blocks[..., :2] = blocks[..., 2:4] = scale  # d and dmin come first
    return blocks.reshape(*shape[:-1], -1)


def write(
    path: Path, *, moe=False, tied=False, kinds=None, change=None, omit=(), tokenizer=True, ends=False
) -> dict[str, np.ndarray]:
    """Write a file as llama.cpp's converter does; return what it stands for, by HF's names."""
    random, meant = np.random.default_rng(0), {}
    arch = "qwen3moe" if moe else "qwen3"
    writer = gguf.GGUFWriter(path, arch)
    fields = {
        "block_count": LAYERS,
        "context_length": 1024,
        "embedding_length": HIDDEN,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
    }
    if moe:
        fields |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": EXPERT_FFN}
    for key, value in (fields | (change or {})).items():
        if isinstance(value, str):
            writer.add_string(f"{arch}.{key}", value)
        elif key not in omit:
            writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.rope.freq_base", 1e6)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
    if tokenizer:
        add_tokenizer(writer, pre="qwen2" if tokenizer is True else tokenizer)
    if ends:
        writer.add_add_eos_token(True)
    for name, shape in shapes(moe, tied).items():
        if name in omit:
            continue
        below = name.split(".", 2)[2] if name.startswith("blk.") else name
        kind = (kinds or {}).get(below, Type.F32)
        if len(shape) == 1:
            kind = Type.F32
        packed = blocks(random, shape, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        value = gguf.quants.dequantize(packed, kind)
        prefix = f"model.layers.{name.split('.')[1]}." if name.startswith("blk.") else ""
        if below.endswith("_exps.weight"):
            meant |= {prefix + HF[below].format(e): value[e] for e in range(EXPERTS)}
        else:
            meant[prefix + HF[below]] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def add_tokenizer(writer: gguf.GGUFWriter, pre: str) -> None:
    tok = tiny_models.tokenizer()
    backend, *_ = tok.__reduce__()[1]
    added = backend.get_added_tokens_decoder()
    texts = [backend.id_to_token(i) for i in range(tok.vocab_size)]
    kinds = [(3 if added[i].special else 4) if i in added else 1 for i in range(tok.vocab_size)]
    padding = VOCABULARY - len(texts)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts + [f"[PAD{i}]" for i in range(padding)])
    writer.add_token_types(kinds + [5] * padding)
    assert isinstance(backend.model, models.BPE)
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(tok.im_end_id)
    writer.add_pad_token_id(tok.token_to_id("<|endoftext|>"))
    writer.add_bos_token_id(tok.token_to_id("<|endoftext|>"))
    writer.add_add_bos_token(False)


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_file_loads_as_what_its_blocks_stand_for(moe, mixed, tmp_path):
    kinds = MIXED if mixed else {}
    meant = write(tmp_path / "m.gguf", moe=moe, tied=not mixed, kinds=kinds)
    for mesh in (sharding.make_mesh(tensor=2, expert=2 if moe else 1), None):
        model, tok = qwen3_jax.load(tmp_path / "m.gguf", dtype="float32", mesh=mesh, scan_layers=mesh is not None)
        qwen3_jax.save(model, tok, tmp_path / "hf", overwrite=True)
        stored = packed_folders.tensors(tmp_path / "hf")
        assert stored.keys() == meant.keys()
        for name, array in meant.items():
            np.testing.assert_array_equal(stored[name], array, err_msg=name)
    config = model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (HEADS, KV, HEAD)
    assert (config.rope_theta, config.intermediate_size, config.tie_word_embeddings) == (1e6, FFN, not mixed)
    assert (config.num_experts, config.norm_topk_prob) == ((EXPERTS if moe else 0), True)
    # The folder that was exported from it answers the same, and the type is that of the matrices.
    again, _ = qwen3_jax.load(tmp_path / "hf")
    if mixed:
        tokens = np.arange(24).reshape(2, 12)
        np.testing.assert_allclose(again(tokens), model(tokens), atol=1e-5)
    for left, right in zip(jax.tree.leaves(nnx.state(again)), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(left, right)
    assert qwen3_jax.load(tmp_path)[0].param_dtype == ("bfloat16" if mixed else "float32")


def test_what_a_field_is_that_the_file_leaves_out(tmp_path):
    optional = ["expert_feed_forward_length", "feed_forward_length", "attention.head_count_kv", "attention.key_length"]
    write(tmp_path / "m.gguf", moe=True, omit=[*optional, "attention.value_length"])
    config = open_checkpoint(tmp_path / "m.gguf").config
    assert config.moe_intermediate_size == config.intermediate_size == EXPERT_FFN  # of the experts' matrices
    assert config.num_key_value_heads == config.num_attention_heads == HEADS
    assert config.head_dim == HIDDEN // HEADS


def test_the_tokenizer_is_read_from_the_file_or_from_beside_it(tmp_path):
    write(tmp_path / "m.gguf")
    model, tok = qwen3_jax.load(tmp_path / "m.gguf")
    expected = tiny_models.tokenizer()
    messages = [{"role": "user", "content": "What is 2 + 3? 世界 <think>"}]
    assert tok.vocab_size == expected.vocab_size
    for text in ("the cat sat, 世界\n\n<|im_end|> <think>x</think>", "  2 + 3 = 5"):
        assert tok.encode(text) == expected.encode(text)
        assert tok.decode(tok.encode(text)) == text
    assert tok.apply_chat_template(messages, tokenize=True) == expected.apply_chat_template(messages, tokenize=True)
    assert tok.im_end_id == expected.im_end_id
    assert model.generation_config.eos_token_id == (expected.im_end_id, expected.token_to_id("<|endoftext|>"))
    write(tmp_path / "other.gguf", tokenizer="llama-bpe")
    with pytest.raises(UserError, match=r"tokenizer.ggml.pre is 'llama-bpe'.*put the model's tokenizer.json"):
        qwen3_jax.load(tmp_path / "other.gguf")
    expected.save_pretrained(tmp_path)
    assert qwen3_jax.load(tmp_path / "other.gguf")[1].encode("the cat") == expected.encode("the cat")
    write(tmp_path.joinpath("bare").with_suffix(".gguf"), tokenizer=False)
    (tmp_path / "alone").mkdir()
    shutil.move(tmp_path / "bare.gguf", tmp_path / "alone/bare.gguf")
    assert qwen3_jax.load(tmp_path / "alone")[1] is None


def test_the_end_token_of_an_embedding_model_is_added_to_texts_that_stand_alone(tmp_path):
    """Qwen3-Embedding's files have add_eos_token."""
    for name, ends in (("plain", False), ("embedding", True)):
        write(tmp_path / f"{name}.gguf", ends=ends)
        _, tok = qwen3_jax.load(tmp_path / f"{name}.gguf")
        added = [tok.eos_token_id] if ends else []
        assert tok.encode_whole("the cat") == [*tok.encode("the cat"), *added]


def test_damage_and_what_is_not_read_are_named(tmp_path):
    path = tmp_path / "m.gguf"
    for options, message in [
        (dict(omit=["blk.1.attn_k.weight"]), r"model.layers.1.self_attn.k_proj.weight' is missing"),
        (dict(omit=["block_count"]), r"qwen3.block_count is None"),
        (dict(change={"attention.value_length": 16}), "value_length differs"),
        (dict(change={"rope.scaling.type": "linear"}), "rope.scaling.type is 'linear'"),
        (dict(change={"embedding_length": 128}), r"token.*has shape \[480, 256\]; config.json means|embed_tokens"),
        (dict(moe=True, change={"expert_count": 8}), r"ffn_gate_exps.weight' .* 8 experts are meant"),
    ]:
        write(path, **options)
        with pytest.raises(UserError, match=message) as caught:
            qwen3_jax.load(path)
        assert "\n" not in str(caught.value)
    write(path)
    whole = path.read_bytes()
    for cut in (0, 3, 100, 3000, len(whole) // 2, len(whole) - 8):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"m\.gguf"):
            qwen3_jax.load(path)
    path.write_bytes(whole.replace(b"qwen3", b"llama"))
    with pytest.raises(UserError, match=r"general\.architecture is 'llama'"):
        qwen3_jax.load(path)
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(whole)
    with pytest.raises(UserError, match=r"has 2 GGUF files; name one of them, such as a\.gguf"):
        qwen3_jax.load(tmp_path / "two")
