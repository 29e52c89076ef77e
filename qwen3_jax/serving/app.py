"""The routes. One request: body -> options -> `resolve` -> engine -> deltas -> JSON or server-sent events."""

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation import Delta, Engine, end_tokens, resolve
from qwen3_jax.generation import Request as EngineRequest
from qwen3_jax.generation.answer import Answer, extend
from qwen3_jax.serving.common import EFFORTS, Defaults
from qwen3_jax.serving.embeddings import Encoders
from qwen3_jax.serving.errors import OVERLOADED, RETRY_SECONDS, Refused, add_handlers
from qwen3_jax.serving.events import EventStream, while_connected
from qwen3_jax.serving.grammars import Grammars
from qwen3_jax.serving.guard import Guard, Limits
from qwen3_jax.serving.messages_body import CountTokensRequest, MessagesRequest
from qwen3_jax.serving.messages_reply import MessagesReply
from qwen3_jax.serving.meters import Meters
from qwen3_jax.serving.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from qwen3_jax.serving.replies import ChatReply, Reply, TextReply
from qwen3_jax.serving.responses_body import ResponsesRequest
from qwen3_jax.serving.responses_reply import ResponsesReply
from qwen3_jax.serving.startup import Startup
from qwen3_jax.serving.worker import Stopped, Worker
from qwen3_jax.text import Tokenizer

PAGE = Path(__file__).parent / "page"
_STOP_SECONDS = 3.0  # that the end of the server waits for the engine's current step; a compilation takes longer
_ANY_LENGTH = 1 << 40  # of a prompt that is only counted
_NO_CACHE = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}


class Server:
    """One model behind HTTP, and each of its adapters as a model of its own.

    Args:
        engine: runs in a thread of its own while the app does; the adapters that its model was loaded with are served under
            their names.
        tokenizer: the model's.
        name: of the model, as clients know it.
        limits: on requests.
        keys, hosts: see `Guard`.
        origins: origins whose web pages may send requests from a browser; none by default.
        thinking_budget: of requests that name none; None is unlimited.
        max_thinking_budget: largest budget; a request for more gets this one.
        warm_up: compile every program at the start, the first few of them before requests are accepted.
        log_text: log prompts and answers as well.

    Attributes:
        app: for uvicorn.
        worker: the engine's thread.
        ready: requests are accepted.

    Raises:
        UserError: a thinking budget for a model without thinking, or one above the largest; an adapter of the model's name.
    """

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, name: str, *,
        limits: Limits = Limits(),
        keys: Sequence[str] = (), hosts: Sequence[str] = (), origins: Sequence[str] = (),
        thinking_budget: int | None = None, max_thinking_budget: int | None = None,
        warm_up: bool = True, log_text: bool = False,
    ):  # fmt: skip
        self.name, self.tokenizer, self.limits = name, tokenizer, limits
        self.names = (name, *(() if engine.model.lora is None else engine.model.lora.names))
        if name in self.names[1:]:
            raise UserError(f"the adapter {name!r} has the name of the model; give one of them another name.")
        self.worker = Worker(engine)
        self.ready = False
        self._engine, self._log_text = engine, log_text
        self._defaults = _defaults(tokenizer, limits, thinking_budget, max_thinking_budget)
        programs = engine.programs(constraints=True, prompt_logprobs=True) if warm_up else []
        self._startup = Startup(self.worker, programs, engine.FIRST_PROGRAMS)
        self._grammars = Grammars(tokenizer, end_tokens(engine.model, tokenizer, chat=True))
        self._meters = Meters(self.worker)
        self._encoders = Encoders(self, engine, log_text)
        self._open = self._open_answers = 0
        api = FastAPI(title="qwen3-jax", version="1", lifespan=self._lifespan, docs_url=None, redoc_url=None)
        self._add_routes(api)
        add_handlers(api)
        wrapped: Any = api
        if origins:
            wrapped = CORSMiddleware(
                api, allow_origins=list(origins), allow_methods=["GET", "POST"],
                allow_headers=["*"],  # OpenAI's and Anthropic's clients for browsers send several of their own
                expose_headers=["retry-after"],
            )  # fmt: skip
        self.app = Guard(wrapped, limits, keys, hosts, self._meters.request)

    @property
    def open_requests(self) -> int:
        """Requests that are not answered yet."""
        return self._open

    # ---- routes ------------------------------------------------------------------------------------------------------

    def _add_routes(self, api: FastAPI) -> None:
        errors: dict[int | str, dict[str, Any]] = {
            status: {"description": text, "content": {"application/json": {}}}
            for status, text in (
                (400, "invalid request"), (401, "no valid key"), (404, "no such model"), (413, "too large"),
                (415, "not JSON"), (429, "at capacity"), (503, "not ready, or shutting down"), (504, "time limit exceeded"),
            )
        }  # fmt: skip
        events: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
        post: dict[str, Any] = dict(methods=["POST"], response_model=None, responses=errors)
        get: dict[str, Any] = dict(methods=["GET"], response_model=None)
        api.add_api_route("/v1/chat/completions", self.chat, **(post | {"responses": errors | events}))
        api.add_api_route("/v1/completions", self.complete, **(post | {"responses": errors | events}))
        api.add_api_route("/v1/responses", self.respond, **(post | {"responses": errors | events}))
        anthropic = errors | {OVERLOADED: {**errors[429], "description": "at capacity"}}
        api.add_api_route("/v1/messages", self.message, **(post | {"responses": anthropic | events}))
        api.add_api_route("/v1/messages/count_tokens", self.count_tokens, **(post | {"responses": anthropic}))
        self._encoders.add_routes(api, **post)
        api.add_api_route("/v1/models", self.models, **get)
        # A path, because names of models have slashes; an escaped one arrives as a slash.
        api.add_api_route("/v1/models/{name:path}", self.model, **get, responses={404: errors[404]})
        api.add_api_route("/tokenize", self.tokenize, **post)
        api.add_api_route("/detokenize", self.detokenize, **post)
        api.add_api_route("/health", self.health, **get, responses={503: errors[503]})
        api.add_api_route("/ready", self.is_ready, **get, responses={503: errors[503]})
        api.add_api_route("/metrics", self.metrics, **get, response_class=PlainTextResponse)
        api.add_api_route("/", self.page, **get, include_in_schema=False)
        api.mount("/page", _NoCacheFiles(directory=PAGE))
        described = api.openapi()
        for schema in described["components"]["schemas"].values():
            if "model" in schema.get("properties", {}):
                schema["properties"]["model"] = {"type": "string", "enum": list(self.names)}

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        make = functools.partial(ChatReply, tokenizer=self.tokenizer, wanted=body.stream_options)
        return await self._answer(body, request, make)

    async def complete(self, body: CompletionRequest, request: Request) -> Response:
        """Continue a text or token ids."""
        make = functools.partial(
            TextReply, tokenizer=self.tokenizer, wanted=body.stream_options, prompts=body.prompts if body.echo else (),
            as_ids=bool(body.return_tokens_as_token_ids),
        )  # fmt: skip
        return await self._answer(body, request, make)

    async def respond(self, body: ResponsesRequest, request: Request) -> Response:
        """Answer the items of a conversation, in OpenAI's form for agents."""
        return await self._answer(body.chat(), request, functools.partial(ResponsesReply, asked=body))

    async def message(self, body: MessagesRequest, request: Request) -> Response:
        """Answer a conversation in Anthropic's form."""
        return await self._answer(body.chat(), request, functools.partial(MessagesReply, asked=body))

    async def count_tokens(self, body: CountTokensRequest) -> dict[str, Any]:
        """Count the tokens of the prompt of a conversation in Anthropic's form, however many they are."""
        self._check_name(body.model)
        chat = body.chat()
        options = chat.options(None, self._defaults)
        requests = await asyncio.to_thread(
            resolve, chat.messages, options, self._engine.model, self.tokenizer, max_length=_ANY_LENGTH
        )
        return {"input_tokens": len(requests[0].prompt)}

    async def models(self) -> dict[str, Any]:
        """A list of the model and its adapters."""
        return {"object": "list", "data": [self._described(name) for name in self.names]}

    async def model(self, name: str) -> dict[str, Any]:
        """A model, and the length of its longest request."""
        if not name:  # /v1/models/
            return await self.models()
        self._check_name(name)
        return self._described(name)

    async def tokenize(self, body: TokenizeRequest) -> dict[str, Any]:
        """Token ids of a text, or of a conversation after the chat template."""
        self._check_name(body.model)
        ids = await asyncio.to_thread(body.tokens, self.tokenizer)
        return {"tokens": ids, "count": len(ids), "max_model_len": self._engine.max_length}

    async def detokenize(self, body: DetokenizeRequest) -> dict[str, Any]:
        """Text of token ids."""
        self._check_name(body.model)
        return {"prompt": self.tokenizer.decode(body.tokens)}

    async def health(self) -> dict[str, Any]:
        """Liveness: 503 once the engine has failed."""
        self._check_alive()
        return {"status": "ok"}

    async def is_ready(self) -> dict[str, Any]:
        """Readiness: 503 while the server is starting or shutting down."""
        self._check_ready()
        load = self.worker.load
        return {"status": "ready", "running": load.running, "waiting": load.waiting, "compiling": self._startup.left}

    async def metrics(self) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self._meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page(self) -> Response:
        """The chat page."""
        policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"
        headers = {"content-security-policy": policy + "; form-action 'none'; frame-ancestors 'none'"}
        return FileResponse(PAGE / "index.html", headers=headers | {"referrer-policy": "no-referrer"} | _NO_CACHE)

    def _described(self, name: str) -> dict[str, Any]:
        return {
            "id": name, "object": "model", "created": 0, "owned_by": "qwen3-jax",
            "parent": None if name == self.name else self.name,
            "max_model_len": self._engine.max_length, "supports_thinking": self.tokenizer.supports_thinking,
            "reasoning_efforts": EFFORTS, "thinking_budget": self._defaults.thinking_budget,
            "max_thinking_budget": self._defaults.max_thinking_budget,
        }  # fmt: skip

    # ---- checks ------------------------------------------------------------------------------------------------------

    def _check(self, body: ChatRequest | CompletionRequest) -> None:
        """Refuse what can be refused without rendering the prompt."""
        self._check_name(body.model)
        self._encoders.refuse_text()
        self._check_ready()
        limits = self.limits
        if body.answers > limits.n:
            raise Refused(400, f"the request asks for {body.answers} answers; the limit is {limits.n}.", param="n")
        waiting = max(self._open_answers - self._engine.rows, self.worker.load.waiting)
        if self._open >= limits.requests or waiting >= limits.waiting:
            raise Refused(429, "server at capacity; retry later.", retry=RETRY_SECONDS)
        if isinstance(body, ChatRequest) and len(body.messages) > limits.messages:
            reason = f"the request has {len(body.messages)} messages; the limit is {limits.messages}."
            raise Refused(400, reason, param="messages")
        if body.stream_options is not None and body.stream_options.any and not body.stream:
            raise Refused(400, "'stream_options' needs 'stream': true.", param="stream_options")

    def check_open(self, model: str | None) -> None:
        """Refuse a request while the server is not ready or at capacity, or if it is for another model."""
        self._check_name(model)
        self._check_ready()
        if self._open >= self.limits.requests:
            raise Refused(429, "server at capacity; retry later.", retry=RETRY_SECONDS)

    def opened(self, count: int) -> None:
        """Count requests that are open from now on, or with a negative number answered."""
        self._open += count

    def count_read(self, tokens: int) -> None:
        """Count the tokens of texts that were read for embeddings or relevance."""
        self._meters.count_read(tokens)

    def _check_name(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            text = f"model {name!r} does not exist; this server has {', '.join(map(repr, self.names))}."
            raise Refused(404, text, param="model", code="model_not_found")

    def _check_alive(self) -> None:
        if self.worker.failure is not None:
            raise Refused(503, "the engine has failed; see the server's log.")

    def _check_ready(self) -> None:
        self._check_alive()
        if not self.ready:
            raise Refused(503, f"the server is {self._startup.state}; retry later.", retry=RETRY_SECONDS)

    # ---- one request -------------------------------------------------------------------------------------------------

    async def _answer(
        self, body: ChatRequest | CompletionRequest, request: Request, make: Callable[..., Reply]
    ) -> Response:
        """Answer a request, as a stream or whole; `make` gives the reply in the form of the route."""
        self._check(body)
        handed_over = False

        def close() -> None:
            self._open -= 1
            self._open_answers -= body.answers

        self._open += 1
        self._open_answers += body.answers
        try:
            requests = await asyncio.to_thread(self._resolve, body)
            answers = [Answer(self.tokenizer, each) for each in requests]
            reply = make(model=body.model or self.name, answers=answers, samples=body.n or 1)
            deltas = self._deltas(reply, requests, request, body)
            if body.stream:
                handed_over = True
                return EventStream(_events(reply, deltas), self.limits.seconds, request, close, reply.failed)
            return await while_connected(request, _whole(reply, deltas), self.limits.seconds)
        finally:
            if not handed_over:
                close()

    def _resolve(self, body: ChatRequest | CompletionRequest) -> list[EngineRequest]:
        """Return a request for each answer, prompt by prompt."""
        tokenizer, engine = self.tokenizer, self._engine
        several = body.parallel_tool_calls is not False
        constraint = self._grammars.of(body.response_format, body.forced_tools, body.optional_tools, several=several)
        adapter = body.model if body.model in self.names[1:] else None
        options = dataclasses.replace(body.options(constraint, self._defaults), adapter=adapter)
        requests: list[EngineRequest] = []
        for index, prompt in enumerate(body.prompts):
            try:
                requests += resolve(
                    prompt, options, engine.model, tokenizer, max_length=engine.max_length, prompt_index=index
                )
            except RequestError as error:
                error.prompt = index if len(body.prompts) > 1 else None
                raise
        return requests

    async def _deltas(
        self, reply: Reply, requests: list[EngineRequest], request: Request, body: ChatRequest | CompletionRequest
    ) -> AsyncGenerator[list[tuple[int, Delta]], None]:
        """Yield the (choice, delta) pairs of each step until all answers are finished; write the request's log entry."""
        try:
            with self.worker.submit(requests) as ticket:
                while not reply.done:
                    tokens = await ticket.next()
                    reply.note_first_token()
                    yield list(extend(reply.answers, tokens, ticket.cancel))
            self._meters.count(reply)
        except Stopped as error:
            raise Refused(503, f"{error}.", retry=RETRY_SECONDS) from None
        finally:
            log = request.scope["state"]["log"]
            log |= {name: count for name, count in reply.usage().items() if isinstance(count, int)}
            log["finish"] = [answer.result.finish_reason if answer.result else "cancelled" for answer in reply.answers]
            if self._log_text:
                log["prompt"] = body.messages if isinstance(body, ChatRequest) else body.prompt
                log["answers"] = [answer.result.text if answer.result else None for answer in reply.answers]

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def accept() -> None:
            loop.call_soon_threadsafe(setattr, self, "ready", True)

        self._startup.begin(accept)
        self.worker.start()
        reporting = asyncio.create_task(self._startup.report())
        try:
            yield
        finally:
            self.ready = False
            self._startup.state = "shutting down"
            reporting.cancel()
            await asyncio.to_thread(self.worker.stop, _STOP_SECONDS)


def _defaults(tokenizer: Tokenizer, limits: Limits, budget: int | None, most: int | None) -> Defaults:
    """Return what the server adds to requests, after checking it."""
    supported = tokenizer.supports_thinking
    for name, value in (("thinking_budget", budget), ("max_thinking_budget", most)):
        if value is not None and not supported:
            raise UserError(f"{name} is {value}, but this model does not think; leave it out.")
        if value is not None and value < 0:
            raise UserError(f"{name} is {value}; it must be 0 or more.")
    if budget is not None and most is not None and budget > most:
        raise UserError(f"thinking_budget is {budget}, above max_thinking_budget, which is {most}.")
    return Defaults(supported, limits.max_tokens, budget, most)


async def _whole(reply: Reply, deltas: AsyncGenerator[Any, None]) -> Response:
    async with contextlib.aclosing(deltas):
        async for pairs in deltas:
            for choice, delta in pairs:
                reply.take(choice, delta)
    return JSONResponse(reply.whole())


async def _events(reply: Reply, deltas: AsyncGenerator[list[tuple[int, Delta]], None]) -> AsyncGenerator[bytes, None]:
    """Encode the events. The first is sent with the first token, so that earlier errors have an HTTP status of their own."""
    opened = False
    async with contextlib.aclosing(deltas):
        async for pairs in deltas:
            events = [] if opened else reply.opening()
            opened = True
            for choice, delta in pairs:
                events += reply.events(choice, delta)
            if events:
                yield b"".join(map(reply.encode, events))
    if ending := reply.ending():
        yield ending


class _NoCacheFiles(StaticFiles):
    """Files that browsers revalidate each time, so that they never mix two releases."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers.update(_NO_CACHE)
        return response
