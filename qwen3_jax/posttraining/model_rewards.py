"""Scores of a reward model in this process: score = scale * reward + offset, or the logistic function of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qwen3_jax.errors import UserError
from qwen3_jax.generation import reward
from qwen3_jax.model import RewardModel
from qwen3_jax.posttraining.sampled import PartScore, Sampled
from qwen3_jax.text import ChatTemplateError
from qwen3_jax.training.reward_config import RewardPart

_BATCH = 8  # answers at a time


class ModelPart:
    """A part with a reward model, which is loaded once.

    Args:
        part: of the configuration.

    Raises:
        UserError: the folder cannot be read, or holds no reward model.
    """

    def __init__(self, part: RewardPart):
        from qwen3_jax.checkpoint import load

        assert part.reward_model is not None
        try:
            self._model, self._tokenizer = load(part.reward_model, dtype=part.dtype)
        except UserError as error:
            raise UserError(f"rl.rewards, part {part.label!r}: {error}") from None
        if not isinstance(self._model, RewardModel):
            raise UserError(
                f"rl.rewards, part {part.label!r}: {part.reward_model} writes text and gives no rewards; train one with "
                "method: reward_model."
            )
        self._part = part

    def scores(self, samples: Sequence[Sampled]) -> list[PartScore]:
        """One score for each answer, read without its thinking. One that cannot be read costs itself alone."""
        groups: dict[str, list[int]] = {}  # answers whose prompts have the same tools are one batch
        for number, sampled in enumerate(samples):
            groups.setdefault(repr(sampled.record.get("tools")), []).append(number)
        out: dict[int, PartScore] = {}
        for numbers in groups.values():
            tools = samples[numbers[0]].record.get("tools") or None
            chats = [_conversation(samples[number]) for number in numbers]
            try:
                values: list[PartScore] = self._batch(chats, tools)
            except (UserError, ChatTemplateError):
                values = [self._alone(chat, tools) for chat in chats]
            out.update(zip(numbers, values, strict=True))
        return [out[number] for number in range(len(samples))]

    def _batch(self, chats: list[list[Mapping[str, Any]]], tools: Any) -> list[PartScore]:
        values = reward(self._model, self._tokenizer, chats, tools=tools, batch_size=_BATCH)
        return [self._score(value) for value in values]

    def _alone(self, chat: list[Mapping[str, Any]], tools: Any) -> PartScore:
        try:
            return self._batch([chat], tools)[0]
        except (UserError, ChatTemplateError) as error:
            return PartScore(self._part.label, None, "error", f"the reward model cannot read it: {error}"[:300])

    def _score(self, value: float) -> PartScore:
        part = self._part
        score = part.scale * value + part.offset
        if part.sigmoid:
            score = 1 / (1 + math.exp(-score)) if score > -700 else 0.0
        if not math.isfinite(score):
            return PartScore(part.label, None, "error", f"the reward is {value}")
        return PartScore(part.label, score, "scored", f"the reward is {value:.4g}")


def _conversation(sampled: Sampled) -> list[Mapping[str, Any]]:
    last = {key: value for key, value in sampled.generation.message.items() if key != "reasoning_content"}
    return [*sampled.messages, last]
