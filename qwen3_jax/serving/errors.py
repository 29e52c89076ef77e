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
_TEXT = "the model reads and writes text only"
_OLLAMA, _LLAMA = "this is not Ollama's API", "this is not llama.cpp's own API"
_SGLANG = "this is not TGI's or SGLang's own API"
_MESSAGES = "Anthropic's Messages API is not available yet"
_EMBEDDINGS, _RANKS = "use POST /v1/embeddings", "use POST /v1/rerank"
_NO_JOBS = "this server has no batch jobs; `qwen3 infer` works through a file"
# Routes of other servers -> why they and those below them are not here, and what to use.
ELSEWHERE = {
    "/v1/responses": f"the Responses API is not available yet; {_CHAT}",
    "/v1/conversations": f"the Responses API is not available yet; {_CHAT}",
    "/v1/assistants": f"this server keeps no assistants; {_CHAT}",
    "/v1/threads": f"this server keeps no conversations; {_CHAT}",
    "/v1/realtime": _TEXT,
    "/v1/messages": f"{_MESSAGES}; {_CHAT}, or a proxy that translates",
    "/v1/messages/count_tokens": f"{_MESSAGES}; use POST /tokenize",
    "/v1/complete": "this is not Anthropic's API; use POST /v1/completions",
    "/v1/score": _RANKS,
    "/v2/embed": _EMBEDDINGS,
    "/v1/moderations": "this server moderates nothing",
    "/v1/images": _TEXT,
    "/v1/audio": _TEXT,
    "/v1/videos": _TEXT,
    "/v1/files": "this server keeps no files",
    "/v1/vector_stores": "this server keeps no files",
    "/v1/batches": _NO_JOBS,
    "/v1/fine_tuning": "this server trains nothing; train.py does",
    "/v1/load_lora_adapter": "start a server with the merged weights",
    "/v1/engines": "use GET /v1/models",
    "/openai": f"this is not Azure's API; {_CHAT}",
    "/api/chat": f"{_OLLAMA}; {_CHAT}",
    "/api/generate": f"{_OLLAMA}; use POST /v1/completions",
    "/api/tags": f"{_OLLAMA}; use GET /v1/models",
    "/api/show": f"{_OLLAMA}; use GET /v1/models",
    "/api/ps": f"{_OLLAMA}; use GET /v1/models",
    "/api/version": f"{_OLLAMA}; use GET /v1/models",
    "/api/embed": f"{_OLLAMA}; {_EMBEDDINGS}",
    "/api/embeddings": f"{_OLLAMA}; {_EMBEDDINGS}",
    "/api/pull": f"{_OLLAMA}; `qwen3 serve --model ID` downloads a model",
    "/completion": f"{_LLAMA}; use POST /v1/completions",
    "/props": f"{_LLAMA}; use GET /v1/models",
    "/slots": f"{_LLAMA}; use GET /metrics",
    "/infill": "the model was not trained to fill in the middle",
    "/apply-template": f"{_LLAMA}; use POST /tokenize with messages",
    "/embedding": f"{_LLAMA}; {_EMBEDDINGS}",
    "/embed": f"{_SGLANG}; {_EMBEDDINGS}",
    "/generate": f"{_SGLANG}; use POST /v1/completions",
    "/generate_stream": f"{_SGLANG}; use POST /v1/completions",
    "/get_model_info": f"{_SGLANG}; use GET /v1/models",
    "/version": "use GET /openapi.json",
    "/ping": "use GET /health",
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
        part = prefix + path
        while part not in ELSEWHERE and part:
            part = part.rpartition("/")[0]
        if part:
            return ELSEWHERE[part]
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
