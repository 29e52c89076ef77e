"""Rollouts of many turns: each answer to a prompt is an episode with an environment of its own.

    rollouts = EpisodeRollouts(engine, tokenizer, config.rl.rollouts, EnvironmentSource(config.rl.environment))
    for draw, answers in rollouts.sample(draws): ...

The engine decodes all episodes together; environments answer in threads meanwhile. Where an environment is deterministic, an
episode depends on its draw, its number and the weights alone: seeds are those of the draw, the answer and the turn, not of the
time at which a tool returns. `rollouts.max_new_tokens` is the number of tokens that the model may write in all turns together,
the stop text included; the row (`data.sequence_length`) holds these and what the environment says.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from qwen3_jax.errors import RequestError, UserError, warn
from qwen3_jax.generation import Engine, Options, Request, resolve
from qwen3_jax.generation.answer import Answer, Generation
from qwen3_jax.generation.tokens import Token
from qwen3_jax.posttraining.environment_checks import EnvironmentFailed, checked_start, checked_step
from qwen3_jax.posttraining.environment_source import EnvironmentSource
from qwen3_jax.posttraining.environments import Start, Step
from qwen3_jax.posttraining.jobs import TimeIsUp
from qwen3_jax.posttraining.prompts import Draw
from qwen3_jax.posttraining.rollouts import Rollout, Rollouts, nothing, token_arrays
from qwen3_jax.posttraining.timed_calls import Ended, TimedCalls
from qwen3_jax.posttraining.traces import Ending, Trace
from qwen3_jax.posttraining.transcripts import Transcript, extends, prompt_of, shortened, tokens_behind
from qwen3_jax.progress import Bar
from qwen3_jax.text import ChatTemplateError, Tokenizer
from qwen3_jax.training.rl_config import RlConfig, RolloutConfig

_TO_CLOSE = 5.0  # seconds for the end of environments whose round is given up


def rollouts_for(engine: Engine, tokenizer: Tokenizer, rl: RlConfig, source: EnvironmentSource | None) -> Rollouts:
    """Return what samples answers for a run: episodes where it has an environment."""
    if source is None:
        return Rollouts(engine, tokenizer, rl.rollouts)
    return EpisodeRollouts(engine, tokenizer, rl.rollouts, source)


class EpisodeRollouts(Rollouts):
    """Samples episodes.

    Args:
        engine, tokenizer, config: of `Rollouts`.
        source: makes the environments.

    Raises:
        UserError: the run has several processes, whose engines would not wait for each other's environments.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer, config: RolloutConfig, source: EnvironmentSource):
        super().__init__(engine, tokenizer, config)
        self.source = source
        if jax.process_count() > 1:
            raise UserError("rl.environment runs in one process; start the run without several hosts, or leave it out.")

    def sample(
        self, draws: Sequence[Draw], samples: int | None = None, bar: Bar | None = None
    ) -> Iterator[tuple[Draw, list[Rollout] | str]]:
        """Run all episodes; see `Rollouts.sample`."""
        wave = _Wave(
            self, [_Episode(draw, number) for draw in draws for number in range(samples or self._config.group_size)]
        )
        try:
            yield from wave.run(bar)
        finally:
            wave.close()

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the model."""
        return self._tokenizer

    def begin(self, episode: _Episode, start: Start) -> None:
        """Make the first request of an episode.

        Raises:
            RequestError: the prompt is too long, or an option does not fit it.
            ChatTemplateError: the template refuses it.
        """
        draw = episode.draw
        episode.messages = [*draw.prompt.messages, *start.messages]
        tools = draw.prompt.tools if start.tools is None else start.tools
        episode.options = self.options(draw, tools, samples=1)
        (request,) = resolve(
            episode.messages, episode.options, self.engine.model, self._tokenizer, max_length=self.engine.max_length
        )
        episode.request = dataclasses.replace(request, sample_index=episode.number)
        episode.transcript = Transcript(request.prompt)

    def go_on(self, episode: _Episode, step: Step) -> bool:
        """Make the next request of an episode; False where no token is left for an answer.

        Raises:
            ChatTemplateError: the template refuses what the environment says.
        """
        config, first, transcript = self.source.config, episode.request, episode.transcript
        new = []
        for message in step.messages:
            if message["role"] == "tool":
                text, is_cut = shortened(self._tokenizer, message["content"], config.max_result_tokens)
                message = {**message, "content": text}
                episode.truncated_results += is_cut
            new.append(message)
        thinks = episode.options.enable_thinking is not False
        answered = [*episode.messages, episode.answers[-1].message]
        last = episode.answers[-1].token_ids
        prompt = None
        if config.history == "new_sample" and any(message["role"] != "tool" for message in new):
            prompt = prompt_of(self._tokenizer, [*answered, *new], first.tools, enable_thinking=thinks)
            if extends(self._tokenizer, prompt, transcript.ids):  # the template has kept all
                prompt = None
        if prompt is None:
            transcript.give(tokens_behind(self._tokenizer, answered, new, first.tools, last, enable_thinking=thinks))
        ids = transcript.ids if prompt is None else prompt
        left = min(self._config.max_new_tokens - episode.written, self.engine.max_length - len(ids))
        if left < 1:
            return False
        if prompt is not None:
            transcript.begin(prompt)
        episode.messages = [*answered, *new]
        episode.request = self._next_request(episode, ids, left)
        return True

    def _next_request(self, episode: _Episode, ids: list[int], limit: int) -> Request:
        sampling = dataclasses.replace(episode.options.sampling, seed=seed_of(episode.draw.seed, episode.turns))
        options = dataclasses.replace(episode.options, sampling=sampling, max_new_tokens=limit, tools=None)
        (request,) = resolve(ids, options, self.engine.model, self._tokenizer, max_length=self.engine.max_length)
        first = episode.request
        return dataclasses.replace(
            request, eos=first.eos, tools=first.tools, continues_text=False, sample_index=episode.number
        )  # fmt: skip


def seed_of(seed: int, turn: int) -> int:
    """Return the seed of a turn, counted from 0; that of the first is the draw's."""
    if turn == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(repr((seed, turn)).encode(), digest_size=8).digest(), "big") >> 1


class _Episode:
    """An episode that is not finished."""

    options: Options
    request: Request
    transcript: Transcript

    def __init__(self, draw: Draw, number: int):
        self.draw, self.number = draw, number
        self.environment: Any = None
        self.messages: list[Any] = []
        self.answers: list[Generation] = []
        self.infos: list[Any] = []
        self.reward: float | None = None
        self.failed_calls = self.truncated_results = 0
        self.seconds = 0.0
        self.is_halted = False
        self._answer: Answer | None = None
        self._thinking: list[bool] = []

    @property
    def turns(self) -> int:
        """Answers so far."""
        return len(self.answers)

    @property
    def written(self) -> int:
        """Tokens of all answers."""
        return sum(len(one.token_ids) for one in self.answers)

    def add(self, token: Token, tokenizer: Tokenizer) -> Generation | None:
        """Take the next token of an answer; return the answer with its last."""
        if self._answer is None:
            self._answer, self._thinking = Answer(tokenizer, self.request, deltas=False), []
        self._answer.add(token)
        self._thinking.append(token.thinking)
        if token.finish is None:
            return None
        arrays = token_arrays(self._answer, self._thinking)
        self.transcript.answer(**arrays)
        self.is_halted |= not arrays["learned"].all()
        generation, self._answer = self._answer.result, None
        assert generation is not None
        self.answers.append(generation)
        return generation

    def take(self, step: Step, seconds: float) -> None:
        """Note what the environment said, apart from its messages."""
        self.seconds += seconds
        self.failed_calls += step.failed
        if step.reward is not None:
            self.reward = (self.reward or 0.0) + step.reward
        if step.info:
            self.infos.append(step.info)

    def rollout(self, ending: Ending, reason: str) -> Rollout:
        """Return the episode."""
        if not self.answers:
            transcript = Transcript([])
        else:
            transcript = self.transcript
        *earlier, last = transcript.samples(self.draw.number, self.number)
        usages = [one.usage for one in self.answers]
        trace = Trace(
            ending, reason, tuple(self.messages), tuple(earlier), self.reward,
            tokens=sum(usage.completion_tokens - usage.forced_tokens for usage in usages),
            thinking_tokens=sum(usage.thinking_tokens for usage in usages), turns=self.turns,
            calls=sum(len(one.tool_calls) for one in self.answers), failed_calls=self.failed_calls,
            truncated_results=self.truncated_results, seconds=self.seconds, infos=tuple(self.infos),
        )  # fmt: skip
        generation = self.answers[-1] if self.answers else nothing()
        return Rollout(self.draw, self.number, last, generation, self.is_halted, trace)


class _Wave:
    """The episodes of one call of `sample`."""

    def __init__(self, rollouts: EpisodeRollouts, episodes: list[_Episode]):
        self._rollouts, self._episodes = rollouts, episodes
        self._engine, self._source = rollouts.engine, rollouts.source
        self._calls = TimedCalls(min(self._source.config.concurrency, max(len(episodes), 1)), "environment")
        self._open = set(range(len(episodes)))
        self._closed: set[int] = set()
        self._running: dict[int, int] = {}  # number of a request -> that of its episode
        self._results: dict[int, list[Rollout]] = {}
        self._missing: dict[int, int] = {}
        self._ready: list[tuple[Draw, list[Rollout] | str]] = []
        self._bar: Bar | None = None
        for episode in episodes:
            self._missing[episode.draw.number] = self._missing.get(episode.draw.number, 0) + 1

    def run(self, bar: Bar | None) -> Iterator[tuple[Draw, list[Rollout] | str]]:
        """Run all episodes; yield the groups that are finished."""
        self._bar = bar
        for number, episode in enumerate(self._episodes):
            self._calls.start(("reset", number), _Reset(self._source, episode), self._source.seconds(0))
        while self._open:
            assert self._engine.busy or self._calls.open
            for ended in self._calls.ended(wait=not self._engine.busy):
                self._handle(ended)
            if self._engine.busy:
                for token in self._engine.step():
                    self._take(token)
            yield from self._ready
            self._ready = []
        self._warn()
        while self._calls.open:  # environments that are being closed
            self._calls.ended(wait=True)

    def close(self) -> None:
        """Cancel the unfinished episodes of a round that is abandoned."""
        for number in self._running:
            self._engine.cancel(number)
        for number in list(self._open):
            self._open.discard(number)
            self._end_environment(number, _TO_CLOSE)
        deadline = time.monotonic() + _TO_CLOSE
        while self._calls.open and time.monotonic() < deadline:
            self._calls.ended(wait=False)
            time.sleep(0.01)
        self._calls.stop()

    def _handle(self, ended: Ended) -> None:
        kind, number = ended.tag
        if number not in self._open:
            if kind == "reset":  # its prompt was refused meanwhile
                self._end_environment(number, self._source.seconds(0))
            return
        episode = self._episodes[number]
        limit = self._source.config.seconds_per_episode
        try:
            if isinstance(ended.value, BaseException):
                raise ended.value
            if episode.seconds + ended.seconds > limit:
                raise TimeIsUp
            if kind == "reset":
                episode.seconds += ended.seconds
                self._begin(number, checked_start(ended.value))
            else:
                self._go_on(number, checked_step(ended.value), ended.seconds)
        except TimeIsUp:
            episode.seconds += ended.seconds
            took = f"{ended.seconds:.1f} s for a call, {episode.seconds:.1f} s for the episode"
            self._finish(number, "timed_out", f"the environment took too long: {took}")
        except EnvironmentFailed as error:
            self._finish(number, "error", str(error))
        except Exception as error:
            self._finish(number, "error", f"the environment failed: {type(error).__name__}: {error}"[:500])
        except BaseException as error:
            if error is not ended.value:  # of this thread: Ctrl-C
                raise
            self._finish(number, "error", f"the environment failed: {type(error).__name__}: {error}"[:500])

    def _begin(self, number: int, start: Start) -> None:
        episode = self._episodes[number]
        try:
            self._rollouts.begin(episode, start)
            self._submit(number)
        except (RequestError, ChatTemplateError) as error:
            self._refuse(episode.draw, str(error))

    def _go_on(self, number: int, step: Step, seconds: float) -> None:
        episode = self._episodes[number]
        episode.take(step, seconds)
        if step.done:
            self._finish(number, "done")
        elif episode.turns >= self._source.config.max_turns:
            self._finish(number, "turns")
        elif self._rollouts.go_on(episode, step):
            self._submit(number)
        else:
            self._finish(number, "tokens")

    def _submit(self, number: int) -> None:
        self._running[self._engine.submit(self._episodes[number].request)] = number

    def _take(self, token: Token) -> None:
        number = self._running[token.number]
        episode = self._episodes[number]
        generation = episode.add(token, self._rollouts.tokenizer)
        if generation is None:
            return
        del self._running[token.number]
        if generation.finish_reason == "length":
            self._finish(number, "tokens")
            return
        limit = min(
            self._source.seconds(len(generation.tool_calls)),
            max(self._source.config.seconds_per_episode - episode.seconds, 0.1),
        )
        self._calls.start(("step", number), _Step(episode, generation), limit)

    def _finish(self, number: int, ending: Ending, reason: str = "") -> None:
        self._open.discard(number)
        episode = self._episodes[number]
        draw = episode.draw
        self._end_environment(number, self._source.seconds(0))
        self._results.setdefault(draw.number, []).append(episode.rollout(ending, reason))
        self._missing[draw.number] -= 1
        if self._bar is not None:
            self._bar.advance()
        if not self._missing[draw.number]:
            self._ready.append((draw, sorted(self._results[draw.number], key=lambda rollout: rollout.episode)))

    def _refuse(self, draw: Draw, reason: str) -> None:
        """Give up all episodes of a prompt that cannot be asked."""
        for number, episode in enumerate(self._episodes):
            if episode.draw is draw and number in self._open:
                self._open.discard(number)
                self._end_environment(number, self._source.seconds(0))
        for request, number in list(self._running.items()):
            if number not in self._open:
                self._engine.cancel(request)
                del self._running[request]
        self._ready.append((draw, reason))

    def _end_environment(self, number: int, seconds: float) -> None:
        environment = self._episodes[number].environment
        if environment is not None and number not in self._closed:
            self._closed.add(number)
            self._calls.start(("close", number), environment.close, seconds)

    def _warn(self) -> None:
        lost = [one for some in self._results.values() for one in some if one.trace is not None and one.trace.is_lost]
        if lost:
            first = lost[0].trace
            assert first is not None
            every = len(self._episodes)
            warn(f"rl.environment: {len(lost):,} of {every:,} episodes are lost; the reason of one: {first.reason}")


class _Reset:
    """The call that makes and resets an environment."""

    def __init__(self, source: EnvironmentSource, episode: _Episode):
        self._source, self._episode = source, episode

    def __call__(self) -> Any:
        self._episode.environment = self._source.make()
        draw = self._episode.draw
        return self._episode.environment.reset(copy.deepcopy(dict(draw.prompt.record)), draw.seed)


class _Step:
    """The call that gives an answer to an environment."""

    def __init__(self, episode: _Episode, generation: Generation):
        self._environment, self._message = episode.environment, generation.message

    def __call__(self) -> Any:
        return self._environment.step(self._message)
