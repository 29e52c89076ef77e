"""Answers from an engine in this process: one stream of requests for all tasks, modes, budgets and samples.

An answer under a budget is that of a larger one until the budget is used up (`generation.budget`). So of the samples that
differ in their budget alone, the one with the largest is generated first. Another one whose budget it did not use up has the
same answer; any other continues behind the thinking that they share and the stop text, most of which is in the prefix cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.evaluation.plan import Item
from qwen3_jax.evaluation.reply import Reply
from qwen3_jax.generation import (
    Engine,
    Generation,
    Options,
    Request,
    Token,
    adapter_number,
    can_continue,
    resolve,
    with_budget,
)
from qwen3_jax.generation.answer import Answer
from qwen3_jax.text import ChatTemplateError, Tokenizer


@dataclass
class _Running:
    """A sample that is asked.

    Attributes:
        item, request: of it.
        shorter: the samples of its family with smaller budgets, which wait for it.
        tokens: all of the answer so far.
        thinking: tokens of its beginning that a larger budget has generated.
    """

    item: Item
    request: Request
    shorter: list[tuple[Item, Request]] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    thinking: Sequence[Token] = ()


class EngineSource:
    """Answers from an engine.

    Args:
        engine: idle.
        tokenizer: of its model.
        identity: what determines its answers: digest of the checkpoint, types.
        share: generate the thinking that several budgets share once. Without it every sample is generated whole.
        adapter: the name of one of the adapters that the model was loaded with, part of the identity; None is the model itself.

    Raises:
        RequestError: the model has no such adapter.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, identity: dict[str, Any] | None = None, *, share: bool = True,
        adapter: str | None = None,
    ):  # fmt: skip
        adapter_number(adapter, engine.model)
        self._engine, self._tokenizer, self._share, self._adapter = engine, tokenizer, share, adapter
        self._identity = (identity or {}) | ({} if adapter is None else {"adapter": adapter})
        self._ready: deque[_Running] = (
            deque()
        )  # continuations come before new families: their beginning is still cached
        self._running: dict[int, tuple[_Running, Answer]] = {}

    @property
    def thinks(self) -> bool:
        """Whether vocabulary and chat template know thinking."""
        return self._tokenizer.supports_thinking

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`."""
        return self._identity

    def answers(self, families: Iterable[list[Item]]) -> Iterator[tuple[Item, Reply]]:
        """See `Source.answers`."""
        waiting = iter(families)
        engine = self._engine
        try:
            while True:
                while engine.waiting < engine.rows:  # the queue holds the next batch, not the whole run
                    if not self._ready:
                        family = next(waiting, None)
                        if family is None:
                            break
                        yield from self._enter(family)
                    else:
                        yield from self._submit(self._ready.popleft())
                if not engine.busy and not self._ready:
                    return
                for token in engine.step():
                    yield from self._add(token.number, token)
        finally:
            for number in self._running:
                engine.cancel(number)
            self._running.clear()
            self._ready.clear()

    def _enter(self, family: list[Item]) -> Iterator[tuple[Item, Reply]]:
        """Queue the samples of a family: the largest budget, and behind it those that share its beginning."""
        first: _Running | None = None
        for item in family:
            try:
                request = self._request(item, first)
            except RequestError as error:
                if not error.too_long:
                    raise UserError(f"the task {item.key.task}, problem {item.key.problem}: {error.reason}") from None
                yield item, Reply.not_asked(error.reason)
                continue
            # 0 allows no thinking at all, also where the prompt is that of the others.
            shares = self._share and first is not None and bool(request.budget)
            if shares and first is not None and replace(request, budget=first.request.budget) == first.request:
                first.shorter.append((item, request))
                continue
            running = _Running(item, request)
            self._ready.append(running)
            first = first or running

    def _request(self, item: Item, first: _Running | None) -> Request:
        """The sample's request; a limit or a budget that the context does not hold is lowered, any other is refused.

        `first` is another sample of the family: only 0 is asked with another prompt.
        """
        problem, budget = item.question.problem, item.budget
        options = Options(
            sampling=item.sampling, max_new_tokens=item.max_new_tokens, enable_thinking=item.enable_thinking,
            thinking_budget=budget, tools=list(problem.tools) or None, thinking_stop_text=item.stop_text, fit_limit=True,
            fit_budget=True, adapter=self._adapter,
        )  # fmt: skip
        prompt: Any = problem.prompt if isinstance(problem.prompt, str) else list(problem.prompt)
        like = first.request if first is not None and budget != 0 and first.item.budget != 0 else None
        try:
            request = self._resolve(prompt, options, like)
            lowered = budget is not None and request.budget is not None and request.budget < budget
            if lowered and request.max_new_tokens == item.max_new_tokens:
                self._resolve(prompt, replace(options, fit_budget=False), like)  # says what is wrong
        except ChatTemplateError as error:
            raise RequestError(f"{str(error).rstrip('.')}.", "messages") from None
        return request

    def _resolve(self, prompt: Any, options: Options, like: Request | None) -> Request:
        rest = self._engine.model, self._tokenizer
        if like is not None:
            return with_budget(like, options, *rest, max_length=self._engine.max_length)
        return resolve(prompt, options, *rest, max_length=self._engine.max_length)[0]

    def _submit(self, running: _Running) -> Iterator[tuple[Item, Reply]]:
        """Give a request to the engine, with the beginning that its answer shares with a larger budget."""
        answer = Answer(self._tokenizer, running.request, deltas=False)
        number = self._engine.submit(running.request, [token.id for token in running.thinking])
        self._running[number] = running, answer
        if not running.thinking:
            return
        stop = [Token(number, token, True, False, None, None) for token in running.request.thinking_tokens.stop]
        answer.begin([*running.thinking, *stop])
        if answer.result is not None:  # a text of the thinking ends it
            yield from self._end(number)

    def _add(self, number: int, token: Token) -> Iterator[tuple[Item, Reply]]:
        """Add a token to its answer; yield what that ends."""
        if number not in self._running:  # generated behind the stop text that ended the answer
            return
        running, answer = self._running[number]
        if running.shorter:
            running.tokens.append(token)
        answer.add(token)
        if answer.result is not None:
            yield from self._end(number)

    def _end(self, number: int) -> Iterator[tuple[Item, Reply]]:
        """Yield an answer that is complete, and the equal ones of smaller budgets."""
        running, answer = self._running.pop(number)
        assert answer.result is not None
        self._engine.cancel(number)  # no effect where its last token was the engine's
        yield running.item, _reply(answer.result, running.request)
        yield from self._shorten(running, answer.result)

    def _shorten(self, longer: _Running, result: Generation) -> Iterator[tuple[Item, Reply]]:
        """The samples with smaller budgets: yield those with the same answer, queue the others."""
        left = _Running(longer.item, longer.request)
        first: _Running | None = None
        for item, request in longer.shorter:
            count = _used_up(longer.tokens, request.budget)
            if count is None:
                yield item, _reply(result, request)
            elif can_continue(request, count):
                self._ready.append(_Running(item, request, thinking=longer.tokens[:count]))
            elif first is None:  # no room for the stop text and an answer: generated whole, and the others behind it
                first = replace(left, item=item, request=request, shorter=[])
                self._ready.append(first)
            else:
                first.shorter.append((item, request))


def _used_up(tokens: Sequence[Token], budget: int | None) -> int | None:
    """How many tokens of an answer it takes to use up a smaller budget; None if the answer does not, or ends with it."""
    if budget is None:
        return None
    used = 0
    for count, token in enumerate(tokens, start=1):
        used += token.thinking
        if token.thinking and used == budget:
            return count if count < len(tokens) else None
    return None


def _reply(result: Generation, request: Request) -> Reply:
    calls = tuple({"name": call.name, "arguments": call.arguments} for call in result.tool_calls)
    usage = result.usage
    return Reply(
        result.text, result.thinking, result.content, calls, result.finish_reason, usage.prompt_tokens,
        usage.completion_tokens, usage.thinking_tokens, usage.forced_tokens, request.thinking, request.max_new_tokens,
        request.budget,
    )  # fmt: skip
