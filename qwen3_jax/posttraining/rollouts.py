"""Rollouts: answers sampled by the engine in this process, with what the trainer needs of each token.

    rollouts = Rollouts(engine, tokenizer, config.rl.rollouts)
    for draw, answers in rollouts.sample(draws): ...

The distribution is the model's at one temperature, so that the trainer can compute the same: no top-k, top-p or penalties, also
where the checkpoint's generation_config.json has them. Tokens that the budget forced are no actions of the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qwen3_jax.errors import RequestError
from qwen3_jax.generation import Engine, Options, Request, Sampling, resolve
from qwen3_jax.generation.answer import Answer, Generation, Usage
from qwen3_jax.generation.rows import row_size
from qwen3_jax.generation.tokens import Token
from qwen3_jax.model import Qwen3
from qwen3_jax.posttraining.prompts import Draw
from qwen3_jax.posttraining.samples import Sample
from qwen3_jax.posttraining.traces import Trace
from qwen3_jax.progress import Bar
from qwen3_jax.text import ChatTemplateError, Tokenizer
from qwen3_jax.training.rl_config import RolloutConfig

_MOST_ROWS = 256


@dataclass(frozen=True)
class Rollout:
    """One answer.

    Attributes:
        draw: what was asked.
        episode: its number within the group.
        sample: its tokens.
        generation: its text.
        halted: the budget forced the end of its thinking.
        trace: of an episode with an environment, whose last answer `sample` and `generation` are; None of a single answer.
    """

    draw: Draw
    episode: int
    sample: Sample
    generation: Generation
    halted: bool
    trace: Trace | None = None

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples of the episode, in order."""
        return (*(self.trace.earlier if self.trace else ()), self.sample)

    @property
    def tokens(self) -> int:
        """Tokens that were sampled, in all turns; forced ones do not count."""
        if self.trace is not None:
            return self.trace.tokens
        return self.generation.usage.completion_tokens - self.generation.usage.forced_tokens

    @property
    def thinking_tokens(self) -> int:
        """Those of them that are thinking."""
        return self.generation.usage.thinking_tokens if self.trace is None else self.trace.thinking_tokens

    @property
    def is_cut(self) -> bool:
        """Whether a limit of tokens or turns ended it."""
        return self.generation.finish_reason == "length" if self.trace is None else self.trace.is_cut


def engine_for(model: Qwen3, config: RolloutConfig, length: int, *, samples: int | None = None) -> Engine:
    """Return the engine of a run's rollouts. Its cache has one size, so that no program is compiled after the first round.

    Args:
        model: on the serving placement.
        length: tokens of the longest prompt with its answer.
        samples: answers of a round; None is prompts times group_size.
    """
    wanted = config.rows or min(samples or config.prompts * config.group_size, _MOST_ROWS)
    rows = row_size(wanted, wanted)
    cache_tokens: int | Literal["most"] = config.cache_tokens or "most"
    return Engine(
        model, rows=rows, max_length=length, cache_tokens=cache_tokens, cache_type=config.cache_type, offline=True,
        report_experts=model.config.moe_layers > 0,
    )  # fmt: skip


class Rollouts:
    """Samples answers.

    Args:
        engine: idle; its weights are those that answer.
        tokenizer: of its model.
        config: temperature, group size, most tokens.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, config: RolloutConfig):
        self.engine, self._tokenizer, self._config = engine, tokenizer, config

    def requests(self, draw: Draw, samples: int | None = None) -> list[Request]:
        """Return a request for each answer to a prompt.

        Raises:
            RequestError: the prompt is too long, or an option does not fit it.
            ChatTemplateError: the template refuses it.
        """
        options = self.options(draw, draw.prompt.tools, samples or self._config.group_size)
        messages = list(draw.prompt.messages)
        return resolve(messages, options, self.engine.model, self._tokenizer, max_length=self.engine.max_length)

    def options(self, draw: Draw, tools: Sequence[Mapping[str, Any]], samples: int) -> Options:
        """Return how a prompt is asked.

        Args:
            tools: that the model may call.
            samples: answers to it.
        """
        config = self._config
        sampling = Sampling(
            temperature=config.temperature, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=draw.seed, logprobs=0,
            sampled_logprobs=True, n=samples,
        )  # fmt: skip
        thinks = self._tokenizer.supports_thinking
        return Options(
            sampling=sampling, max_new_tokens=config.max_new_tokens, tools=list(tools) or None,
            enable_thinking=draw.mode == "thinking" if thinks else None, thinking_budget=draw.budget, fit_limit=True,
            fit_budget=True,
        )  # fmt: skip

    def sample(
        self, draws: Sequence[Draw], samples: int | None = None, bar: Bar | None = None
    ) -> Iterator[tuple[Draw, list[Rollout] | str]]:
        """Answer every prompt; yield each with its answers, in the order in which groups are finished.

        A prompt that cannot be asked comes with the reason, a sentence.

        Args:
            samples: answers to each prompt; None is `group_size`.
            bar: advances with every finished answer.
        """
        running: dict[int, _Running] = {}
        groups: dict[int, list[Rollout]] = {}
        waiting: dict[int, int] = {}
        for draw in draws:
            try:
                requests = self.requests(draw, samples)
                numbers = [self.engine.submit(request) for request in requests]
            except (RequestError, ChatTemplateError) as error:
                yield draw, str(error)
                continue
            groups[draw.number], waiting[draw.number] = [], len(requests)
            for episode, (number, request) in enumerate(zip(numbers, requests, strict=True)):
                running[number] = _Running(draw, episode, Answer(self._tokenizer, request, deltas=False))
        try:
            while self.engine.busy:
                for token in self.engine.step():
                    one = running[token.number]
                    one.add(token)
                    if token.finish is None:
                        continue
                    del running[token.number]
                    groups[one.draw.number].append(one.rollout())
                    waiting[one.draw.number] -= 1
                    if bar is not None:
                        bar.advance()
                    if not waiting[one.draw.number]:
                        yield one.draw, sorted(groups.pop(one.draw.number), key=lambda rollout: rollout.episode)
        finally:
            for number in running:
                self.engine.cancel(number)


class _Running:
    """An answer while it grows."""

    def __init__(self, draw: Draw, episode: int, answer: Answer):
        self.draw, self.episode, self.answer = draw, episode, answer
        self._thinking: list[bool] = []

    def add(self, token: Token) -> None:
        self.answer.add(token)
        self._thinking.append(token.thinking)

    def rollout(self) -> Rollout:
        """Return the finished answer."""
        generation, request = self.answer.result, self.answer.request
        assert generation is not None
        arrays = token_arrays(self.answer, self._thinking)
        sample = Sample(
            prompt=np.asarray(request.prompt, np.int32), **arrays, group=self.draw.number, episode=self.episode
        )
        return Rollout(self.draw, self.episode, sample, generation, not arrays["learned"].all())


def token_arrays(answer: Answer, thinking: Sequence[bool]) -> dict[str, Any]:
    """Return the arrays of a finished answer that are fields of `Sample`.

    Args:
        answer: finished, with log probabilities.
        thinking: [N], whether each token was sampled and counted against the budget.
    """
    generation = answer.result
    assert generation is not None
    assert generation.logprobs is not None
    forced = np.asarray(generation.forced_mask, bool)
    behaviour = [math.nan if one.sampled is None else one.sampled for one in generation.logprobs]
    return dict(
        tokens=np.asarray(generation.token_ids, np.int32), learned=~forced,
        banned=banned_places(answer.request, forced, thinking), behaviour=np.asarray(behaviour, np.float32),
        experts=answer.experts,
    )  # fmt: skip


def nothing() -> Generation:
    """Return an answer without tokens: of an episode that failed before its first."""
    return Generation("", None, "", (), [], [], [], "stop", Usage(0, 0, 0, 0))


def banned_places(request: Request, forced: np.ndarray, thinking: Sequence[bool]) -> np.ndarray:
    """Return where `<think>` could not be sampled, because the budget was used up before, bool [N]; see `BudgetState.forbid`.

    Args:
        request: of the answer.
        forced: bool [N], tokens of the stop text.
        thinking: [N], whether each token was sampled and counted against the budget.
    """
    if request.budget is None or request.thinking_tokens.start < 0:
        return np.zeros(len(forced), bool)
    counts = np.cumsum(np.asarray(thinking, np.int64))
    used = np.concatenate([[0], counts[:-1]])
    return ~forced & (used >= request.budget)


def about_of(rollout: Rollout) -> dict[str, Any]:
    """Return what people want to see of an answer, JSON values."""
    generation, draw, trace = rollout.generation, rollout.draw, rollout.trace
    messages = draw.prompt.messages if trace is None else trace.messages
    about: dict[str, Any] = {
        "source": draw.prompt.source, "prompt_id": draw.prompt.id, "messages": [dict(one) for one in messages],
        "mode": draw.mode, "budget": draw.budget, "thinking": generation.thinking, "content": generation.content,
        "tool_calls": [{"name": call.name, "arguments": call.arguments} for call in generation.tool_calls],
        "finish_reason": generation.finish_reason, "tokens": rollout.tokens, "thinking_tokens": rollout.thinking_tokens,
        "halted": rollout.halted,
    }  # fmt: skip
    if trace is not None:
        about["environment"] = {
            "ending": trace.ending, "turns": trace.turns, "calls": trace.calls, "failed_calls": trace.failed_calls,
            "truncated_results": trace.truncated_results, "reward": trace.reward,
            "infos": list(trace.infos),
        }  # fmt: skip
    return about
