"""Errors of requests, in OpenAI's form: an HTTP status, a sentence, the field at fault and a code."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qwen3_jax.errors import RequestError, UserError, nearest
from qwen3_jax.text import TextError

RETRY_SECONDS = 2  # when the server is at capacity, or compiles
_FIELDS = {"max_new_tokens": "max_tokens", "prompt": None}  # options of `generate` that have another name here, or none
_LOGGED = 300  # characters of a reason in the log
_CHAT = "use POST /v1/chat/completions"
# Routes of other servers -> why they are not here, and what to use.
ELSEWHERE = {
    "/v1/responses": f"the Responses API is not available yet; {_CHAT}",
    "/v1/messages": f"Anthropic's Messages API is not available yet; {_CHAT}, or a proxy that translates",
    "/v1/messages/count_tokens": "Anthropic's Messages API is not available yet; use POST /tokenize",
    "/v1/embeddings": "a model that generates text gives no embeddings",
    "/v1/rerank": "a model that generates text ranks nothing",
    "/v1/moderations": "this server moderates nothing",
    "/v1/images/generations": "the model reads and writes text only",
    "/v1/audio/transcriptions": "the model reads and writes text only",
    "/v1/audio/speech": "the model reads and writes text only",
    "/v1/files": "this server keeps no files",
    "/v1/batches": "this server has no batch jobs; `qwen3 infer` works through a file",
    "/api/chat": f"this is not Ollama's API; {_CHAT}",
    "/api/generate": "this is not Ollama's API; use POST /v1/completions",
    "/api/tags": "this is not Ollama's API; use GET /v1/models",
    "/completion": "this is not llama.cpp's own API; use POST /v1/completions",
    "/generate": "this is not TGI's or SGLang's own API; use POST /v1/completions",
}


class Refused(HTTPException):
    """A request that is answered with an error.

    (A subclass of Starlette's exception: FastAPI passes those on unchanged while it reads a body.)
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None,
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        headers = dict(headers or {}) | ({} if retry is None else {"retry-after": str(retry)})
        if status == 401:
            headers["www-authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.status, self.code, self.param = status, code, param

    @classmethod
    def of(cls, error: Exception) -> "Refused":
        """Return the refusal for an error of the layers below."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, RequestError):
            code = "context_length_exceeded" if error.too_long else None
            text = str(error).replace("max_new_tokens", "max_tokens")
            return cls(400, text, param=_FIELDS.get(error.param or "", error.param), code=code)
        return cls(400, "the request is nested too deeply." if isinstance(error, RecursionError) else str(error))

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, in OpenAI's form."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        """The whole response."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def add_handlers(api: FastAPI) -> None:
    """Answer every error of a request in OpenAI's form."""
    for kind in (HTTPException, UserError, TextError, RecursionError):
        api.add_exception_handler(kind, _refuse)
    api.add_exception_handler(RequestValidationError, _invalid)


def note(scope: MutableMapping[str, Any], refused: Refused) -> None:
    """Write the reason of a refusal into the request's log entry."""
    scope["state"]["log"]["reason"] = refused.detail[:_LOGGED]


def _answered(request: Request, refused: Refused) -> Response:
    note(request.scope, refused)
    return refused.response


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and not isinstance(error, Refused):
        detail = f"{error.detail}"
        if error.status_code == 404:
            detail = _missing(request)
        elif error.status_code == 405 and error.headers:
            detail = f"the method is {error.headers.get('Allow', 'another one')}"
        error = Refused(error.status_code, f"{request.method} {request.url.path}: {detail}.", headers=error.headers)
    return _answered(request, Refused.of(error))


def _missing(request: Request) -> str:
    """Say why there is no such route, and what to use."""
    path = request.url.path.rstrip("/")
    for prefix in ("", "/v1"):
        if prefix + path in ELSEWHERE:
            return ELSEWHERE[prefix + path]
    routes = [route.path for route in request.app.routes if "{" not in route.path and len(route.path) > 1]
    return f"there is no such route.{nearest(path, routes)} GET /openapi.json lists them"


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is not JSON, or has an invalid field."""
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first.get("type") == "json_invalid":
        text = f"the body is not valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}."
        return _answered(request, Refused(400, text))
    path = _path(first, error.body)
    # What else a field of several types may be.
    same = [other["msg"] for other in others if _path(other, error.body) == path]
    messages = [message.removeprefix("Value error, ") for message in dict.fromkeys([first["msg"], *same])]
    name = ".".join(map(str, path)) or None
    text = messages[0]
    if name is not None:
        text = f"the field {name!r}: {', or '.join(message[:1].lower() + message[1:] for message in messages)}"
    return _answered(request, Refused(400, text if text.endswith((".", "?")) else f"{text}.", param=name))


def _path(error: dict[str, Any], body: Any) -> list[str | int]:
    """Return the place of an error in the body, without the names of types that pydantic appends."""
    path: list[str | int] = []
    for part in error["loc"][1:]:
        is_there = part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        if is_there or (isinstance(body, dict) and error.get("type") == "missing"):
            path.append(part)
        if not is_there:
            break
        body = body[part]
    return path
