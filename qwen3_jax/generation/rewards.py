"""The rewards of conversations under a reward model.

    model, tokenizer = qwen3_jax.load("runs/reward/hf")
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    qwen3_jax.reward(model, tokenizer, [chat])                       # [1.3]

The reward of a conversation is that of its last token, the end of the last turn, as in training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from qwen3_jax.errors import UserError
from qwen3_jax.generation.readout import Job, Reader, checked, last_states, run
from qwen3_jax.generation.request import is_message
from qwen3_jax.model import Qwen3, RewardModel
from qwen3_jax.text import Tokenizer

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
        batch_size: most conversations computed together.

    Raises:
        UserError: the model is not a reward model, or a conversation is empty, too long, or does not end with an answer.
        ChatTemplateError: the chat template refuses the messages.
    """
    if not isinstance(model, RewardModel):
        raise UserError("this model writes text and gives no rewards; train one with method: reward_model.")
    every = [
        checked(model, _tokens(number, one, tokenizer, tools), f"conversations[{number}]")
        for number, one in enumerate(conversations)
    ]
    return run(Job(every, _reward, finish=np.ndarray.tolist), Reader(model), batch_size) if every else []


def _reward(model: Qwen3, states: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array:
    assert isinstance(model, RewardModel)
    return model.rewards(last_states(states, lengths))


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
