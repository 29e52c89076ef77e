"""The engine in this process as a backend of `qwen3_jax.endpoints`: requests go in, replies come out as they finish.

backend = EngineBackend(Engine(model, rows=32), tokenizer, fingerprint)
backend.submit(0, ChatRequest(({"role": "user", "content": "Hi"},), max_new_tokens=64, seed=7))
while ...:
    for number, reply in backend.collect(): ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from qwen3_jax.endpoints import ChatRequest, Reply, Tokens
from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation.answer import Answer, Generation, extend
from qwen3_jax.generation.engine import Engine
from qwen3_jax.generation.request import Constraint, Options, Request, adapter_number, resolve
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.text import ChatTemplateError, Tokenizer

MakeConstraint = Callable[[Mapping[str, Any]], Callable[[], Constraint]]


class EngineBackend:
    """An engine that answers chat requests; nobody else may use it meanwhile.

    Args:
        engine: idle.
        tokenizer: of its model.
        fingerprint: stands for the model in the identity of requests.
        constrain: makes the constraint of a JSON Schema; None refuses requests that have one.
        adapter: the name of one of the adapters that the model was loaded with; None is the model itself.

    Raises:
        UserError: the engine is busy, or its model has no such adapter.
    """

    is_remote = False

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, fingerprint: str, constrain: MakeConstraint | None = None, *,
        adapter: str | None = None,
    ):  # fmt: skip
        if engine.busy:
            raise UserError("the engine is busy with other requests; finish them first.")
        adapter_number(adapter, engine.model)
        self.fingerprint = fingerprint if adapter is None else f"{fingerprint} adapter {adapter}"
        self.slots, self._adapter = engine.rows, adapter
        self._engine, self._tokenizer, self._constrain = engine, tokenizer, constrain
        self._answers: dict[int, Answer] = {}  # by the engine's number
        self._numbers: dict[int, int] = {}  # the engine's number -> the caller's
        self._refused: list[tuple[int, Reply]] = []

    def submit(self, number: int, request: ChatRequest, key: str = "") -> None:
        """Queue a request; one that cannot be met is a "refused" reply of the next `collect`."""
        del key
        try:
            resolved = self._resolve(request)
            own = self._engine.submit(resolved)
        except RequestError as error:
            self._refused.append((number, Reply("refused", reason=error.reason, too_long=error.too_long)))
        except (ChatTemplateError, UserError) as error:
            self._refused.append((number, Reply("refused", reason=str(error))))
        else:
            self._answers[own], self._numbers[own] = Answer(self._tokenizer, resolved), number

    def collect(self, seconds: float | None = None) -> list[tuple[int, Reply]]:
        """Run the engine until a request is finished, or for `seconds`; [] if it has nothing to do."""
        replies, self._refused = self._refused, []
        started = time.monotonic()
        while not replies and self._engine.busy and (seconds is None or time.monotonic() - started < seconds):
            tokens = [(token.number, token) for token in self._engine.step() if token.number in self._answers]
            for own, delta in extend(self._answers, tokens, self._engine.cancel):
                if delta.result is not None:
                    replies.append((self._numbers[own], _reply(delta.result)))
            for own in [own for own, answer in self._answers.items() if answer.result is not None]:
                del self._answers[own], self._numbers[own]
        return replies

    def close(self) -> None:
        """Cancel what is unfinished."""
        for own in self._answers:
            self._engine.cancel(own)
        self._answers, self._numbers, self._refused = {}, {}, []

    def _resolve(self, request: ChatRequest) -> Request:
        constraint = None
        if request.schema is not None:
            if self._constrain is None:
                raise UserError("this engine was given no grammar of JSON schemas.")
            constraint = self._constrain(request.schema)
        options = Options(
            sampling=Sampling(seed=request.seed, stop=request.stop, **dict(request.sampling)),  # type: ignore[arg-type]
            max_new_tokens=request.max_new_tokens, enable_thinking=request.enable_thinking,
            thinking_budget=request.thinking_budget, tools=list(request.tools) or None, constraint=constraint, fit_limit=True,
            adapter=self._adapter,
        )  # fmt: skip
        prompt = list(request.messages) if request.text is None else request.text
        (one,) = resolve(prompt, options, self._engine.model, self._tokenizer, max_length=self._engine.max_length)
        return one


def _reply(result: Generation) -> Reply:
    usage = result.usage
    calls = tuple(
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in result.tool_calls
    )
    cut = result.finish_reason == "length"
    return Reply(
        "truncated" if cut else "ok", result.content, result.thinking, calls,
        Tokens(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.thinking_tokens),
        "the answer reached its limit of tokens" if cut else "", forced_tokens=usage.forced_tokens,
        finish_reason=result.finish_reason,
    )  # fmt: skip
