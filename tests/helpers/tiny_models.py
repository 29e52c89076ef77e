"""Configurations that tests share, a tiny tokenizer, and tiny random models. None needs torch.

Programs are compiled once for each configuration, so a test that has no need of another takes one of these.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.config import Qwen3Config
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.model import Qwen3, Structure
from qwen3_jax.text import STOP_TEXT, Tokenizer, built_in_template, render, train_tokenizer

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
VOCABULARY = 480
_THINKS = 14.0  # how much a newline raises the logit of <think>
CONTEXT = 1024

# Fields of config.json; every dimension divides over every mesh of the tests. `hf_checkpoints.VARIANTS` has the oddities.
DENSE: dict[str, Any] = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=512,
    rope_theta=1e6,
    tie_word_embeddings=False,
)
MOE: dict[str, Any] = DENSE | dict(
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=48,
    norm_topk_prob=True,
)


TINY = dataclasses.replace(
    Qwen3Config(),
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
TINY_MOE = dataclasses.replace(TINY, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=24)


def drawn(
    config: Qwen3Config, draw: Callable[[str, np.ndarray], np.ndarray] | None = None, *, seed: int = 0, **options: Any
) -> Qwen3:
    """Return a random model with weights of NumPy: the model's own initialiser compiles a program for each shape.

    Args:
        config: the architecture.
        draw: makes a parameter of its name and of normal numbers in its shape; None keeps weights and logits lively.
        seed: of the numbers.
        options: for `Qwen3`.
    """
    random = np.random.default_rng(seed)
    structure = Structure(lambda: Qwen3(config, rngs=nnx.Rngs(0), **options))
    params = {}
    for name, like in structure.shapes.items():
        noise = random.normal(size=like.shape).astype(np.float32)
        params[name] = jnp.asarray((draw or _lively)(name, noise), like.dtype)
    return structure.merge(params)


def _lively(name: str, noise: np.ndarray) -> np.ndarray:
    return 1 + 0.2 * noise if name.endswith("scale") else noise / 6


@functools.cache
def tokenizer(chat_template: str | None = None) -> Tokenizer:
    """Trained on what a chat prompt with tools and the stop text look like, so that both are few tokens."""
    chat = render(built_in_template(), [{"role": "user", "content": "What is 2 + 3?"}], TOOLS)
    trained = train_tokenizer([chat, STOP_TEXT, STOP_TEXT] * 3, vocab_size=VOCABULARY)
    if chat_template is None:
        return trained
    backend, config, _ = trained.__reduce__()[1]
    return Tokenizer(backend, config, {"default": chat_template})


@functools.cache
def model(seed: int = 0, *, eos: bool = True, experts: int = 0, tag_scale: float = 3.0) -> Qwen3:
    """A random model in which think tags, tool tags and <|im_end|> are drawn often. Equal settings share compilations.

    An answer to messages often begins with <think>, as Qwen3's do: a newline, which ends the prompt, makes it likely.

    Args:
        seed: of the weights.
        eos: answers end at <|im_end|>; else only at their limit.
        experts: experts of an MoE model; 0 is dense.
        tag_scale: how much wider the logits of the tags are than those of other tokens.
    """
    tok = tokenizer()
    moe = dict(num_experts=experts, num_experts_per_tok=2, moe_intermediate_size=32) if experts else {}
    sizes = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, tie_word_embeddings=False)
    config = dataclasses.replace(TINY, **sizes, **moe)

    def draw(name: str, value: np.ndarray) -> np.ndarray:
        if name.endswith("scale"):
            value = 1 + 0.1 * value
        elif name == "lm_head":
            value *= 1.5 / value.shape[0] ** 0.5
            value[:, [tok.token_to_id(tag) for tag in TAGS]] *= tag_scale
            value[:, tok.im_end_id] *= (1 + tag_scale) / 2
        elif name != "embed":
            value *= 1.5 / value.shape[0] ** 0.5
        return value

    random_model = drawn(config, draw, seed=seed, scan_layers=False)
    if tag_scale:
        newline = random_model.embed[...][tok.newline_ids[0]]
        raised = random_model.lm_head[...].at[:, tok.think_start_id].add(_THINKS * newline / jnp.linalg.norm(newline))
        random_model.lm_head[...] = raised
    random_model.generation_config = GenerationConfig(
        eos_token_id=(tok.im_end_id,) if eos else (VOCABULARY,)
    )  # an id that is never drawn
    return random_model


def next_token_logits(of: Qwen3, prompt: list[int], answer: list[int]) -> np.ndarray:
    """The logits [len(answer), V] that each token of an answer was chosen from, by one plain pass with no cache."""
    ids = [*prompt, *answer]
    padded = np.zeros((1, -(-len(ids) // 128) * 128), np.int32)  # causal: what follows changes nothing
    padded[0, : len(ids)] = ids
    return np.asarray(jax.device_get(of(padded)))[0, len(prompt) - 1 : len(ids) - 1]


def packed_batch(rows: int = 8, length: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    """Two documents and some padding in every row, lengths differing by row; padding holds real-looking tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, TINY.vocab_size, (rows, length + 1)).astype(np.int32)
    segments = np.zeros((rows, length), np.int32)
    positions = np.zeros((rows, length), np.int32)
    for row in range(rows):
        first, end = 4 + row % 5, length - row % 7
        segments[row, :first], segments[row, first:end] = 1, 2
        positions[row, :first], positions[row, first:end] = np.arange(first), np.arange(end - first)
    mask = (segments > 0) & (rng.random((rows, length)) < 0.8)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": positions,
        "loss_mask": mask.astype(np.float32),
    }
