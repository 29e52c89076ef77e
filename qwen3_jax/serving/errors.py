"""Errors of requests: an HTTP status, a sentence, the field at fault and a code; in Anthropic's form on its routes."""

from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qwen3_jax.errors import RequestError, UserError, nearest
from qwen3_jax.serving.fields import MESSAGES_NAMES, RESPONSES_NAMES, reworded
from qwen3_jax.text import TextError

RETRY_SECONDS = 2  # when the server is at capacity, or compiles
_FIELDS = {"max_new_tokens": "max_tokens", "prompt": None}  # options of `generate` that have another name here, or none
_LOGGED = 300  # characters of a reason in the log
_CHAT = "use POST /v1/chat/completions"
_TEXT = "the model reads and writes text only"
_OLLAMA, _LLAMA = "this is not Ollama's API", "this is not llama.cpp's own API"
_SGLANG = "this is not TGI's or SGLang's own API"
_EMBEDDINGS, _RANKS = "use POST /v1/embeddings", "use POST /v1/rerank"
_NO_JOBS = "this server has no batch jobs; `qwen3 infer` works through a file"
OVERLOADED = 529  # Anthropic's status of a server at capacity; 429 is its rate limit of one client
_ANTHROPIC = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
# Routes of other servers -> why they and those below them are not here, and what to use.
ELSEWHERE = {
    "/v1/responses": "this server keeps no responses; POST /v1/responses gives one, from all the items so far",
    "/v1/responses/input_tokens": "use POST /tokenize",
    "/v1/responses/compact": "this server compacts nothing; ask for a summary in a request",
    "/v1/conversations": "this server keeps no conversations; use POST /v1/responses with all the items so far",
    "/v1/assistants": f"this server keeps no assistants; {_CHAT}",
    "/v1/threads": f"this server keeps no conversations; {_CHAT}",
    "/v1/realtime": _TEXT,
    "/v1/messages": "use POST /v1/messages",
    "/v1/messages/batches": _NO_JOBS,
    "/v1/complete": "use POST /v1/messages",
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
    def of(cls, error: Exception, path: str = "") -> "Refused":
        """Return the refusal for an error of the layers below, with the names that fields have on a route."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, RequestError):
            code = "context_length_exceeded" if error.too_long else None
            names = MESSAGES_NAMES if speaks_anthropic(path) else RESPONSES_NAMES if path == "/v1/responses" else {}
            text = reworded(str(error).replace("max_new_tokens", "max_tokens"), names)
            param = _FIELDS.get(error.param or "", error.param)
            return cls(400, text, param=names.get(param or "", param), code=code)
        return cls(400, "the request is nested too deeply." if isinstance(error, RecursionError) else str(error))

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON body, in the form of the route."""
        if speaks_anthropic(path):
            kind = _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": self.detail}}
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self, path: str) -> Response:
        """The whole response."""
        status = OVERLOADED if self.status == 429 and speaks_anthropic(path) else self.status
        return JSONResponse(self.body(path), status, headers=self.headers)


def speaks_anthropic(path: str) -> bool:
    """Whether a route is one of Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def add_handlers(api: FastAPI) -> None:
    """Answer every error of a request in the form of its route."""
    for kind in (HTTPException, UserError, TextError, RecursionError):
        api.add_exception_handler(kind, _refuse)
    api.add_exception_handler(RequestValidationError, _invalid)


def note(scope: MutableMapping[str, Any], refused: Refused) -> None:
    """Write the reason of a refusal into the request's log entry."""
    scope["state"]["log"]["reason"] = refused.detail[:_LOGGED]


def _answered(request: Request, refused: Refused) -> Response:
    note(request.scope, refused)
    return refused.response(request.url.path)


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and not isinstance(error, Refused):
        detail = f"{error.detail}"
        if error.status_code == 404:
            detail = _missing(request)
        elif error.status_code == 405 and error.headers:
            detail = f"the method is {error.headers.get('Allow', 'another one')}"
        error = Refused(error.status_code, f"{request.method} {request.url.path}: {detail}.", headers=error.headers)
    return _answered(request, Refused.of(error, request.url.path))


def _missing(request: Request) -> str:
    """Say why there is no such route, and what to use."""
    path = request.url.path.rstrip("/")
    routes = [route.path for route in request.app.routes if "{" not in route.path and len(route.path) > 1]
    if f"/v1{path}" in routes:
        return f"there is no such route. Did you mean '/v1{path}'?"
    for prefix in ("", "/v1"):
        part = prefix + path
        while part not in ELSEWHERE and part:
            part = part.rpartition("/")[0]
        if part:
            return ELSEWHERE[part]
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
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):  # it names the place itself
        return _answered(request, Refused.of(cause, request.url.path))
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
