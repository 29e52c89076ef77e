"""The routes. One request: check -> prepare (template, tokens, grammar) -> engine -> deltas -> JSON or server-sent events."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine, end_tokens, prepare
from qwen3_jax.generation.answer import Answer
from qwen3_jax.generation.requests import Request as EngineRequest
from qwen3_jax.serving.grammars import Grammars
from qwen3_jax.serving.guard import Guard, Limits, Refused
from qwen3_jax.serving.meters import Meters
from qwen3_jax.serving.protocol import (
    EFFORTS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from qwen3_jax.serving.replies import ChatReply, Reply, TextReply
from qwen3_jax.serving.worker import Stopped, Worker
from qwen3_jax.text import TextError, Tokenizer

PAGE = Path(__file__).parent / "page"
_RETRY_SECONDS = 2  # after a full queue
_FRESH = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
_LAST_SECONDS = 5  # to tell a client why its stream ends


class Server:
    """One model behind HTTP.

    Args:
        engine: runs in a thread of its own as long as the app does.
        tokenizer: the model's.
        name: what clients call the model.
        limits: of requests.
        keys, hosts: see `Guard`.
        origins: web pages of these origins may ask from a browser; none may.
        warm_up: compile everything before /ready says so.
        log_text: the log has prompts and answers too.

    Attributes:
        app: for uvicorn.
        worker: the engine's thread.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        name: str,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        keys: Sequence[str] = (),
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        warm_up: bool = True,
        log_text: bool = False,
    ):
        self.name, self.tokenizer, self.limits = name, tokenizer, limits
        self.worker = Worker(engine)
        self.ready = False
        self._engine, self._warm_up, self._log_text = engine, warm_up, log_text
        self._grammars = Grammars(tokenizer, end_tokens(engine.model, tokenizer))
        self._meters = Meters(self.worker)
        self._open = self._open_answers = 0
        api = FastAPI(title="qwen3-jax", version="1", lifespan=self._lifespan, docs_url=None, redoc_url=None)
        self._add_routes(api)
        wrapped: Any = api
        if origins:
            wrapped = CORSMiddleware(
                api, allow_origins=list(origins), allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
            )  # fmt: skip
        self.app = Guard(wrapped, limits, keys, hosts, self._meters.request)

    # ---- routes ------------------------------------------------------------------------------------------------------

    def _add_routes(self, api: FastAPI) -> None:
        errors: dict[int | str, dict[str, Any]] = {
            status: {"description": text, "content": {"application/json": {}}}
            for status, text in (
                (400, "what is wrong with the request"), (401, "no valid key"), (404, "no such model"), (413, "too large"),
                (415, "not JSON"), (429, "too busy"), (503, "not ready, or going down"), (504, "took too long"),
            )
        }  # fmt: skip
        events: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
        post: dict[str, Any] = dict(methods=["POST"], response_model=None, responses=errors)
        get: dict[str, Any] = dict(methods=["GET"], response_model=None)
        api.add_api_route("/v1/chat/completions", self.chat, **(post | {"responses": errors | events}))
        api.add_api_route("/v1/completions", self.complete, **(post | {"responses": errors | events}))
        api.add_api_route("/v1/models", self.models, **get)
        api.add_api_route("/tokenize", self.tokenize, **post)
        api.add_api_route("/detokenize", self.detokenize, **post)
        api.add_api_route("/health", self.health, **get, responses={503: errors[503]})
        api.add_api_route("/ready", self.is_ready, **get, responses={503: errors[503]})
        api.add_api_route("/metrics", self.metrics, **get, response_class=PlainTextResponse)
        api.add_api_route("/", self.page, **get, include_in_schema=False)
        api.mount("/page", _Fresh(directory=PAGE))
        api.add_exception_handler(Refused, _refuse)
        api.add_exception_handler(RequestValidationError, _invalid)
        api.add_exception_handler(HTTPException, _http)
        for kind in (UserError, TextError, RecursionError):
            api.add_exception_handler(kind, _bad)
        described = api.openapi()
        for schema in described["components"]["schemas"].values():
            if "model" in schema.get("properties", {}):
                schema["properties"]["model"] = {"type": "string", "enum": [self.name]}

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        self._check(body.model, body.n or 1, body.limit)
        if len(body.messages) > self.limits.messages:
            raise Refused(
                400, f"the request has {len(body.messages)} messages; this server takes {self.limits.messages}."
            )

        def plan() -> list[tuple[EngineRequest, Answer]]:
            enable, budget = body.thinking(self.tokenizer.supports_thinking)
            constraint = self._grammars.of_format(body.response_format)
            if body.forced_tools:
                constraint = self._grammars.of_calls(body.forced_tools, body.parallel_tool_calls is not False)
            return prepare(
                self._engine, self.tokenizer, body.messages,
                sampling=body.sampling((body.top_logprobs or 0) if body.logprobs else None),
                max_new_tokens=body.limit, most_new_tokens=self.limits.max_tokens,
                enable_thinking=enable, thinking_budget=budget,
                tools=body.shown_tools, continue_final_message=bool(body.continue_final_message), constraint=constraint,
                raw=body.separate_reasoning is False, one_call=body.parallel_tool_calls is False,
                fit_budget=body.budget is None,
            )  # fmt: skip

        return await self._answer(request, body, ChatReply, plan, body.n or 1, body.messages)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a text or token ids."""
        prompts = body.prompts
        self._check(body.model, (body.n or 1) * len(prompts), body.max_tokens)

        def plan() -> list[tuple[EngineRequest, Answer]]:
            constraint = self._grammars.of_format(body.response_format)
            budget = None if body.budget == -1 else body.budget
            planned = []
            for prompt in prompts:
                planned += prepare(
                    self._engine, self.tokenizer, prompt, sampling=body.sampling(body.logprobs),
                    max_new_tokens=body.max_tokens, most_new_tokens=self.limits.max_tokens,
                    thinking_budget=budget, constraint=constraint, raw=True,
                )  # fmt: skip
            return planned

        return await self._answer(request, body, TextReply, plan, body.n or 1, body.prompt)

    async def models(self) -> dict[str, Any]:
        """The model, and how long its requests may be."""
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "qwen3-jax"}
        extra = {
            "max_model_len": self._engine.max_length,
            "supports_thinking": self.tokenizer.supports_thinking,
            "reasoning_efforts": EFFORTS,
        }
        return {"object": "list", "data": [model | extra]}

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text, or of a conversation as the model would see it."""
        self._check_name(body.model)

        def work() -> list[int]:
            if body.prompt is not None:
                return self.tokenizer.encode(body.prompt)
            template = body.chat_template_kwargs
            enable = body.enable_thinking if template is None else template.enable_thinking
            return self.tokenizer.apply_chat_template(
                body.messages or [],
                tools=None if not body.tools else [tool.shown for tool in body.tools],
                add_generation_prompt=not body.continue_final_message,
                continue_final_message=body.continue_final_message,
                enable_thinking=enable is not False,
                tokenize=True,
            )

        ids = await asyncio.to_thread(work)
        return {"tokens": ids, "count": len(ids), "max_model_len": self._engine.max_length}

    async def detokenize(self, body: DetokenizeRequest) -> dict[str, Any]:
        """Text of token ids."""
        self._check_name(body.model)
        return {"prompt": self.tokenizer.decode(body.tokens)}

    async def health(self) -> dict[str, Any]:
        """Whether the process is worth keeping."""
        self._check_alive()
        return {"status": "ok"}

    async def is_ready(self) -> dict[str, Any]:
        """Whether requests should be sent here."""
        self._check_ready()
        return {"status": "ready", "running": self.worker.running, "waiting": self.worker.waiting}

    async def metrics(self) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self._meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> Response:
        """The chat page."""
        policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"
        headers = {"content-security-policy": policy + "; form-action 'none'; frame-ancestors 'none'"}
        return FileResponse(PAGE / "index.html", headers=headers | {"referrer-policy": "no-referrer"} | _FRESH)

    # ---- one request -------------------------------------------------------------------------------------------------

    def _check(self, name: str | None, answers: int, max_tokens: int | None) -> None:
        """Refuse what no engine needs to be asked about."""
        self._check_name(name)
        self._check_ready()
        if answers > self.limits.n:
            raise Refused(400, f"the request asks for {answers} answers; this server gives {self.limits.n}.", param="n")
        most = self.limits.max_tokens
        if most is not None and max_tokens is not None and max_tokens > most:
            raise Refused(400, f"max_tokens is {max_tokens}; this server gives {most}.", param="max_tokens")
        waiting = max(self._open_answers - self._engine.rows, self.worker.waiting)
        if self._open >= self.limits.requests or waiting >= self.limits.waiting:
            raise Refused(429, "the server has as many requests as it takes; come again.", retry=_RETRY_SECONDS)

    def _check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise Refused(
                404, f"there is no model {name!r} here; this is {self.name!r}.", param="model", code="model_not_found"
            )

    def _check_alive(self) -> None:
        if self.worker.failure is not None:
            raise Refused(503, "the engine has failed; the log says why.")

    def _check_ready(self) -> None:
        self._check_alive()
        if not self.ready:
            raise Refused(503, "the server is compiling; come again.", retry=10)

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        kind: type[Reply],
        plan: Callable[[], list[tuple[EngineRequest, Answer]]],
        samples: int,
        text: Any,
    ) -> Response:
        """Run what was planned; the response streams or not."""
        answers = samples * (1 if isinstance(body, ChatRequest) else len(body.prompts))
        handed_over = False

        def close() -> None:
            self._open -= 1
            self._open_answers -= answers

        self._open += 1
        self._open_answers += answers
        try:
            planned = await asyncio.to_thread(plan)
            reply = kind(self.name, self.tokenizer, [answer for _, answer in planned], samples)
            usage = body.stream_options is not None and body.stream_options.include_usage
            if body.stream_options is not None and not body.stream:
                raise Refused(400, "'stream_options' is for 'stream': true.", param="stream_options")
            run = self._run(reply, [engine_request for engine_request, _ in planned], request, text)
            if body.stream:
                handed_over = True
                return _Events(self._events(reply, run, usage), self.limits.seconds, request, close)
            return await _unless_gone(request, self._whole(reply, run), self.limits.seconds)
        finally:
            if not handed_over:
                close()

    async def _run(
        self, reply: Reply, requests: list[EngineRequest], request: Request, text: Any
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the chunks of each step until all answers are finished."""
        try:
            with self.worker.submit(requests) as ticket:
                while not reply.done:
                    chunks = []
                    for index, token in await ticket.next():
                        answer = reply.answers[index]
                        chunks += reply.add(index, token)
                        if answer.result is not None and token.finish is None:
                            ticket.end(index)
                    yield chunks
            self._meters.count(reply)
        except Stopped as error:
            raise Refused(503, f"{error}.", retry=_RETRY_SECONDS) from None
        finally:
            log = request.scope["state"]["log"]
            log |= {name: count for name, count in reply.usage().items() if isinstance(count, int)}
            log["finish"] = [answer.result.finish_reason if answer.result else "cancelled" for answer in reply.answers]
            if self._log_text:
                log["prompt"] = text
                log["answers"] = [answer.result.text if answer.result else None for answer in reply.answers]

    async def _whole(self, reply: Reply, run: AsyncGenerator[Any, None]) -> Response:
        async with contextlib.aclosing(run):
            async for _ in run:
                pass
        return JSONResponse(reply.whole())

    async def _events(self, reply: Reply, run: AsyncGenerator[Any, None], usage: bool) -> AsyncGenerator[bytes, None]:
        """Server-sent events. The first comes with the first token: what goes wrong before has an HTTP status of its own."""
        opened = False
        async with contextlib.aclosing(run):
            async for chunks in run:
                if not opened:
                    chunks, opened = reply.opening() + chunks, True
                if chunks:
                    yield b"".join(_event(chunk | ({"usage": None} if usage else {})) for chunk in chunks)
        yield (_event(reply.closing()) if usage else b"") + b"data: [DONE]\n\n"

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def prepare_engine() -> None:
            if self._warm_up:
                self._engine.warm_up(constraints=True)
            loop.call_soon_threadsafe(setattr, self, "ready", True)

        self.worker.post(prepare_engine)
        self.worker.start()
        try:
            yield
        finally:
            self.ready = False
            await asyncio.to_thread(self.worker.stop)


class _Fresh(StaticFiles):
    """Files that browsers ask about each time: those of one release go together."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(_FRESH)
        return response


class _Events(Response):
    """A stream that ends with its client, or when its time is over, also if the client reads too slowly."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], seconds: float, request: Request, closed: Callable[[], None]
    ):
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._seconds, self._request, self._closed = events, seconds, request, closed
        self._started = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await _unless_gone(self._request, self._send(send), self._seconds)
        except (Refused, UserError) as error:
            refused = error if isinstance(error, Refused) else Refused(400, str(error))
            if not self._started:
                await (await _refuse(self._request, refused))(scope, receive, send)
            elif refused.status != 499:  # too late for a status
                async with asyncio.timeout(_LAST_SECONDS):
                    await send({"type": "http.response.body", "body": _event(refused.body), "more_body": True})
                    await send({"type": "http.response.body", "body": b""})
        finally:
            self._closed()

    async def _send(self, send: Any) -> None:
        async with contextlib.aclosing(self._events):
            async for piece in self._events:
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _unless_gone(request: Request, work: Any, seconds: float) -> Any:
    """Do the work while the client is there, for so many seconds; else cancel it.

    Raises:
        Refused: 499 (nginx' number) the client has left, 504 the time is over.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done, left = working.done(), leaving.done()
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})
    if done:
        return working.result()
    if left:
        raise Refused(499, "the client has left.")
    raise Refused(504, f"the request took longer than {seconds:g} seconds.")


def _event(of: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(of, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _bad(request: Request, error: Exception) -> Response:
    text = "the request is nested too deeply." if isinstance(error, RecursionError) else str(error)
    return await _refuse(request, Refused(400, text))


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is no JSON, or has a field that cannot be."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "json_invalid")]
    message = first["msg"].removeprefix("Value error, ")
    name = ".".join(place) or None
    text = message if name is None or "'" in message else f"the field {name!r}: {message[:1].lower()}{message[1:]}"
    return await _refuse(request, Refused(400, text if text.endswith((".", "?")) else f"{text}.", param=name))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _refuse(request, Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}."))
