"""POST /v1/embeddings, in OpenAI's form, and POST /v1/rerank, in the form that Jina, Cohere and vLLM share.

A request is read batch by batch in the engine's thread, between two steps of the answers that it generates; what is to be
compiled for it is compiled outside of that thread.
"""

import asyncio
import base64
import traceback
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field, StrictBool, StrictStr

from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine, Job, Reader, embedding_job, join, relevance_job
from qwen3_jax.generation.headless import BATCH_TOKENS, Headless
from qwen3_jax.generation.reranking import INSTRUCTION
from qwen3_jax.serving.errors import RETRY_SECONDS, Refused
from qwen3_jax.serving.events import while_connected
from qwen3_jax.serving.guard import Limits
from qwen3_jax.serving.objects import Body, Whole
from qwen3_jax.serving.worker import Stopped, Worker
from qwen3_jax.text import TextError, Tokenizer

MOST_INPUTS = 2048  # of a request, as OpenAI documents it
_RERANK = ("/v1/rerank", "/v2/rerank")  # Cohere's client uses the second

Id = Annotated[Whole, Field(ge=0, lt=2**31)]


def _text(document: Any) -> Any:
    """A document as {"text": ...}, which some clients send, is its text."""
    return document["text"] if isinstance(document, Mapping) and list(document) == ["text"] else document


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    model: StrictStr | None = None
    input: StrictStr | list[StrictStr] | list[Id] | list[list[Id]]
    dimensions: Annotated[Whole, Field(ge=1)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    prompt_name: StrictStr | None = None
    instruction: StrictStr | None = None
    truncate: StrictBool | None = None

    @classmethod
    def _known(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        if fields.get("add_special_tokens") is False:
            raise ValueError("the field 'add_special_tokens' is not supported: send token ids, which get no end token")
        return super()._known(fields)

    @property
    def texts(self) -> list[Any]:
        """One entry per text: itself, or its token ids."""
        one = isinstance(self.input, str) or (self.input and isinstance(self.input[0], int))
        return [self.input] if one else list(self.input)


class RerankRequest(Body):
    """POST /v1/rerank."""

    model: StrictStr | None = None
    query: StrictStr
    documents: list[Annotated[StrictStr, BeforeValidator(_text)]]
    top_n: Annotated[Whole, Field(ge=1)] | None = None
    return_documents: StrictBool | None = None
    instruction: StrictStr | None = None


class Host(Protocol):
    """What the routes need of the server: its checks, and the count of its open requests."""

    name: str
    tokenizer: Tokenizer
    limits: Limits
    worker: Worker

    def check_open(self, model: str | None) -> None: ...
    def opened(self, count: int) -> None: ...
    def count_read(self, tokens: int) -> None: ...


class Encoders:
    """The routes of one server.

    Args:
        host: the server.
        engine: whose model reads texts.
        log_text: log texts as well.
    """

    def __init__(self, host: Host, engine: Engine, log_text: bool):
        self._host, self._engine, self._log_text = host, engine, log_text
        self._open = 0
        self._reader = engine.reader if isinstance(engine, Headless) else Reader(engine.model)

    def add_routes(self, api: FastAPI, **options: Any) -> None:
        """Add the routes with these options."""
        api.add_api_route("/v1/embeddings", self.embed, **options)
        for path in _RERANK:
            api.add_api_route(path, self.rerank, **options)

    def refuse_text(self) -> None:
        """Refuse a request for an answer in text where the model has none."""
        if isinstance(self._engine, Headless):
            kind, route = ("an embedding", "embeddings") if self._engine.embeds else ("a reward", "rerank")
            raise Refused(
                400, f"{self._host.name!r} is {kind} model, which writes no text; use POST /v1/{route}.", param="model"
            )

    async def embed(self, body: EmbeddingRequest, request: Request) -> Response:
        """Embed texts."""
        texts = body.texts
        self._check(body.model, texts, "input")
        model, tokenizer = self._engine.model, self._host.tokenizer
        options: dict[str, Any] = dict(
            prompt_name=body.prompt_name, instruction=body.instruction, dimensions=body.dimensions,
            truncate=bool(body.truncate), name="input", limit=self._engine.max_length,
        )  # fmt: skip
        job, vectors = await self._run(lambda: embedding_job(model, tokenizer, texts, **options), request, body.input)
        data = [
            {"object": "embedding", "index": place, "embedding": _encoded(vector, body.encoding_format)}
            for place, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": job.tokens, "total_tokens": job.tokens}
        return JSONResponse({"object": "list", "data": data, "model": self._host.name, "usage": usage})

    async def rerank(self, body: RerankRequest, request: Request) -> Response:
        """Order documents by their relevance for a query."""
        self._check(body.model, body.documents, "documents")
        model, tokenizer, texts = self._engine.model, self._host.tokenizer, body.documents
        instruction = INSTRUCTION if body.instruction is None else body.instruction
        limit, asked = self._engine.max_length, [body.query, *texts]
        job, scores = await self._run(
            lambda: relevance_job(model, tokenizer, body.query, texts, instruction, limit=limit), request, asked
        )
        order = sorted(range(len(scores)), key=lambda place: -scores[place])[: body.top_n]
        results = [
            {"index": place, "relevance_score": scores[place]}
            | ({"document": {"text": texts[place]}} if body.return_documents else {})
            for place in order
        ]
        usage = {"prompt_tokens": job.tokens, "total_tokens": job.tokens}
        name = f"rerank-{uuid.uuid4().hex}"
        return JSONResponse({"id": name, "model": self._host.name, "results": results, "usage": usage})

    def _check(self, model: str | None, texts: list[Any], field: str) -> None:
        """Refuse what can be refused without tokens."""
        self._host.check_open(model)
        if self._open >= self._host.limits.waiting:
            raise Refused(429, "server at capacity; retry later.", retry=RETRY_SECONDS)
        if model is not None and model != self._host.name:
            reason = f"{model!r} is an adapter; texts are read by the model itself, {self._host.name!r}."
            raise Refused(400, reason, param="model")
        if not texts:
            raise Refused(400, f"{field!r} is empty; give at least one text.", param=field)
        if len(texts) > MOST_INPUTS:
            raise Refused(400, f"{field!r} has {len(texts)} entries; the limit is {MOST_INPUTS}.", param=field)

    async def _run(self, make: Callable[[], Job], request: Request, texts: Any) -> tuple[Job, Any]:
        """Compute a job; write the request's log entry.

        Raises:
            Refused: the server stops, the computation failed, or the time is over.
            UserError: the request cannot be met.
        """
        host, log = self._host, request.scope["state"]["log"]
        host.opened(1)
        self._open += 1
        try:
            job = await asyncio.to_thread(make)
            log |= {"texts": len(job.ids), "prompt_tokens": job.tokens} | ({"input": texts} if self._log_text else {})
            result = await while_connected(request, self._compute(job), host.limits.seconds)
        finally:
            host.opened(-1)
            self._open -= 1
        host.count_read(job.tokens)
        return job, result

    async def _compute(self, job: Job) -> Any:
        batches = list(self._reader.batches(job, self._engine.rows, BATCH_TOKENS))
        values = []
        for batch in batches:
            try:
                await asyncio.to_thread(self._reader.prepare, job.reading, *batch.tokens.shape)
                values.append(await self._host.worker.call(self._reader.read, job.reading, batch))
            except Stopped as error:
                raise Refused(503, f"{error}.", retry=RETRY_SECONDS) from None
            except (UserError, TextError):
                raise
            except Exception as error:  # out of the device's memory
                traceback.print_exc()
                reason = f"the texts could not be computed ({type(error).__name__}); see the server's log."
                raise Refused(500, reason) from error
        return join(job, batches, values)


def _encoded(vector: np.ndarray, form: str) -> Any:
    return vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
