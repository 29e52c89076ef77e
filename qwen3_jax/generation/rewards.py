"""The rewards of conversations under a reward model.

    model, tokenizer = qwen3_jax.load("runs/reward/hf")
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    qwen3_jax.reward(model, tokenizer, [chat])                       # [1.3]

The reward of a conversation is that of its last token, the end of the last turn, as in training. Rows are padded behind their
text; attention is causal, so that padding changes nothing, and its rewards are never read.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.errors import UserError
from qwen3_jax.generation.request import is_message
from qwen3_jax.model import Qwen3, RewardModel
from qwen3_jax.text import Tokenizer

_BUCKET = 64  # rows are padded to a multiple of this and of powers of two, so that few programs are compiled

Conversation = Sequence[Mapping[str, Any]]


def reward(
    model: Qwen3,
    tokenizer: Tokenizer | None,
    conversations: Sequence[Conversation | Sequence[int]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 8,
) -> list[float]:
    """Return the reward of each conversation.

    Args:
        model: a reward model (`RewardModel`), as `load` returns it for a folder of Qwen3ForSequenceClassification.
        tokenizer: its tokenizer; only messages need it.
        conversations: messages, the last of them the assistant's; or token ids, to the last one that counts. The text of a
            special token inside of a message is plain characters.
        tools: of all conversations that are messages, in OpenAI's form.
        batch_size: rows in a batch.

    Raises:
        UserError: the model is not a reward model, or a conversation is empty, too long, or does not end with an answer.
        ChatTemplateError: the chat template refuses the messages.
    """
    if not isinstance(model, RewardModel):
        raise UserError("this model writes text and gives no rewards; train one with method: reward_model.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    every = [_tokens(number, one, tokenizer, tools) for number, one in enumerate(conversations)]
    limit = model.config.max_position_embeddings
    for number, ids in enumerate(every):
        if len(ids) > limit:
            raise UserError(f"conversations[{number}] has {len(ids)} tokens; the model has positions for {limit}.")
    out = [0.0] * len(every)
    order = sorted(range(len(every)), key=lambda number: len(every[number]))
    graphdef, state = nnx.split(model)
    for start in range(0, len(order), batch_size):
        some = order[start : start + batch_size]
        length = _BUCKET
        while length < len(every[some[-1]]):
            length *= 2
        tokens = np.zeros((batch_size, length), np.int32)
        last = np.zeros(batch_size, np.int32)
        for row, number in enumerate(some):
            tokens[row, : len(every[number])] = every[number]
            last[row] = len(every[number]) - 1
        rewards = np.asarray(_rewards(graphdef, state, tokens, last))
        for row, number in enumerate(some):
            out[number] = float(rewards[row])
    return out


@functools.partial(jax.jit, static_argnums=0)
def _rewards(graphdef: Any, state: Any, tokens: jax.Array, last: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, state)
    states = model.hidden(tokens).states
    return model.rewards(jnp.take_along_axis(states, last[:, None, None], axis=1))[:, 0]


def _tokens(number: int, conversation: Any, tokenizer: Tokenizer | None, tools: Any) -> list[int]:
    name = f"conversations[{number}]"
    if isinstance(conversation, str | Mapping) or not len(conversation):
        raise UserError(f"{name} must be a list of messages or of token ids, and not empty.")
    if not is_message(conversation[0]):
        return [int(token) for token in conversation]
    if tokenizer is None:
        raise UserError(f"{name} is messages, which need the tokenizer of the model.")
    last = conversation[-1]
    if (last.get("role") if isinstance(last, Mapping) else getattr(last, "role", None)) != "assistant":
        raise UserError(f"{name} does not end with an answer of the assistant.")
    text = tokenizer.apply_chat_template(conversation, tools, add_generation_prompt=False, quoted=True)
    # The template's newline behind the end of a turn is no part of it.
    return tokenizer.encode_quoted(text.removesuffix("\n"))
