"""Errors of requests, in OpenAI's form: an HTTP status, a sentence, the field at fault and a code."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.text import TextError

RETRY_SECONDS = 2  # when the server is at capacity
_FIELDS = {"max_new_tokens": "max_tokens", "prompt": None}  # options of `generate` that have another name here, or none


class Refused(HTTPException):
    """A request that is answered with an error.

    (A subclass of Starlette's exception: FastAPI passes those on unchanged while it reads a body.)
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        headers = {} if retry is None else {"retry-after": str(retry)}
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
            return cls(400, str(error), param=_FIELDS.get(error.param or "", error.param), code=code)
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


async def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and not isinstance(error, Refused):  # such as an unknown path
        error = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}.")
    return Refused.of(error).response


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is not JSON, or has an invalid field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "json_invalid")]
    message = first["msg"].removeprefix("Value error, ")
    name = ".".join(path) or None
    text = message if name is None or "'" in message else f"the field {name!r}: {message[:1].lower()}{message[1:]}"
    return Refused(400, text if text.endswith((".", "?")) else f"{text}.", param=name).response
