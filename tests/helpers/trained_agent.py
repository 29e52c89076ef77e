"""A tiny model that has learnt to work with tools, from conversations that Qwen-Agent itself had.

No weights of Qwen3 can be had in tests, and a random model never writes a whole call. So Qwen-Agent's own code talks to a
`Teacher`, which gives written answers and keeps what it was sent; a model is trained on just that until it gives every answer
by itself. Then the same agent talks to a server with that model.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from openai.types.chat import ChatCompletionChunk
from qwen_agent.llm.oai import TextChatAtOAI

import qwen3_jax
from qwen3_jax.config import Qwen3Config
from qwen3_jax.generation_config import GenerationConfig
from qwen3_jax.model import Qwen3, Structure, flatten
from qwen3_jax.text import STOP_TEXT, Tokenizer, built_in_template, parse, render, train_tokenizer

VOCABULARY = 520
CONTEXT = 4096
MARGIN = 2.0  # of the right token's logit over all others: more than rounding in another order of sums can do


class Teacher(TextChatAtOAI):
    """Qwen-Agent's client of OpenAI's API, but for the API: the answers are given here, one after another.

    Attributes:
        seen: (messages, tools) of each request, as they would have gone over the wire, with the answer.
    """

    def __init__(self, answers: list[str], **generate_cfg: Any):
        super().__init__({"model": "teacher", "generate_cfg": generate_cfg})
        self._answers = iter(answers)
        self.seen: list[tuple[list[dict], list[dict] | None, str]] = []
        self._chat_complete_create = self._answer

    def _answer(self, model: str, messages: list[dict], stream: bool, tools=None, **_: Any) -> Iterator[Any]:
        answer = next(self._answers)
        self.seen.append((messages, tools, answer))
        parsed = parse(answer, tools=bool(tools))
        calls = [
            {"index": i, "id": f"call_{i}", "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for i, c in enumerate(parsed.tool_calls)
        ]
        delta = {"reasoning_content": parsed.thinking, "content": parsed.content, "tool_calls": calls}
        choices = [{"index": 0, "delta": delta, "finish_reason": "stop"}]
        common = {"id": "1", "created": 0, "model": model, "object": "chat.completion.chunk"}
        yield ChatCompletionChunk.model_validate(common | {"choices": choices})


def cut(answer: str, budget: int, tokenizer: Tokenizer) -> str:
    """An answer whose thinking ends after that many tokens with the stop text."""
    thinking, _, rest = answer.removeprefix("<think>").partition("\n</think>\n\n")
    return "<think>" + tokenizer.decode(tokenizer.encode(thinking)[:budget]) + STOP_TEXT + rest


def tokenizer_for(seen: list[tuple]) -> Tokenizer:
    """A tokenizer to which these conversations are not long."""
    texts = [render(built_in_template(), messages, tools) + answer for messages, tools, answer in seen]
    return train_tokenizer([*texts, *[STOP_TEXT] * 12], VOCABULARY)


def _rows(seen: list[tuple], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """(tokens, whether each is to be learnt). Where a request holds an earlier one and its answer, one row is for both."""
    rows: list[tuple[list[int], list[bool]]] = []
    for messages, tools, answer in seen:
        prompt = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True)
        # Nothing says that the stop text's tokens are the model's: the engine forces them.
        written, forced, rest = answer.partition(STOP_TEXT)
        parts = [
            (prompt, False), (tokenizer.encode(written), True), (tokenizer.encode(forced), False),
            (tokenizer.encode(rest), True), ([tokenizer.im_end_id], True),
        ]  # fmt: skip
        ids = [token for part, _ in parts for token in part]
        learnt = [kind for part, kind in parts for _ in part]
        rows.append((ids, learnt))
    rows.sort(key=lambda row: -len(row[0]))
    kept: list[tuple[list[int], list[bool]]] = []
    for ids, learnt in rows:
        whole = next((row for row in kept if row[0][: len(ids)] == ids), None)
        if whole is None:
            kept.append((ids, learnt))
        else:
            whole[1][: len(ids)] = [a or b for a, b in zip(whole[1], learnt, strict=False)]
    return kept


def train(seen: list[tuple], tokenizer: Tokenizer, folder: Path, steps: int = 300) -> None:
    """Train until greedy decoding gives every answer, with some margin, and save the model."""
    rows = _rows(seen, tokenizer)
    length = -(-max(len(ids) for ids, _ in rows) // 16) * 16
    tokens, learnt = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for i, (ids, which) in enumerate(rows):
        tokens[i, : len(ids)], learnt[i, : len(ids)] = ids, which
    row, place = np.nonzero(learnt)
    right = tokens[row, place]

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
    )

    def build() -> Qwen3:
        return Qwen3(config, rngs=nnx.Rngs(0), scan_layers=False)

    structure = Structure(build)
    params = flatten(build())
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, b2=0.98, weight_decay=0.0))

    def loss(params):
        """Cross-entropy of the answers, and the least margin of any of their tokens."""
        logits = structure.merge(params)(tokens)[row, place - 1]
        wrong = jnp.where(jax.nn.one_hot(right, VOCABULARY, dtype=bool), -jnp.inf, logits).max(axis=-1)
        margin = (jnp.take_along_axis(logits, right[:, None], axis=-1)[:, 0] - wrong).min()
        return optax.softmax_cross_entropy_with_integer_labels(logits, right).mean(), margin

    @jax.jit
    def step(params, state):
        gradients, margin = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, margin

    state = optimizer.init(params)
    for _ in range(steps):
        before = params  # whose margin it is
        params, state, margin = step(params, state)
        if margin > MARGIN:
            break
    else:
        raise AssertionError(f"not learnt in {steps} steps: the least margin is {margin}")
    model = structure.merge(before)
    model.generation_config = GenerationConfig(eos_token_id=(tokenizer.im_end_id,), do_sample=False)
    qwen3_jax.save(model, tokenizer, folder)
