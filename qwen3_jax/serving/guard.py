"""Checks before the routes: host names, keys, sizes; and one log line per request.

Plain ASGI, because Starlette's middleware classes buffer between a stream and its client.
"""

import hashlib
import hmac
import ipaddress
import json
import re
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.serving.errors import Refused, note
from qwen3_jax.serving.startup import CLEAR

Scope = MutableMapping[str, Any]
OPEN = ("/health", "/ready", "/", "/page/")  # no key needed: probes of load balancers, and the page, which asks for one

KEY_HEADERS = (b"x-api-key", b"api-key")  # of Anthropic's and Azure's clients
# Names of this machine in /etc/hosts of Debian and Fedora; no public name is like them.
_LOCAL = (
    "localhost",
    "localhost.localdomain",
    "localhost6",
    "localhost6.localdomain6",
    "ip6-localhost",
    "ip6-loopback",
)
_FOREIGN = (
    "host name {host!r} is not allowed: start the server with --allow-host {host} if it is a name of this machine "
    "(docs/deployment.md, Front ends in containers)."
)


@dataclass(frozen=True)
class Limits:
    """Upper bounds of what clients may request.

    Attributes:
        body_bytes: size of a request's body.
        messages: messages of a conversation.
        max_tokens: tokens of an answer, a cap for requests that ask for more; None is the engine's max_length.
        n: answers to one request, over all its prompts.
        requests: open requests, queued ones included.
        waiting: queued answers; beyond that, new requests are refused with status 429.
        seconds: time of a request, from its first byte until the client has read all of the answer.
    """

    body_bytes: int = 8 << 20
    messages: int = 2048
    max_tokens: int | None = None
    n: int = 16
    requests: int = 512
    waiting: int = 256
    seconds: float = 3600.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), "limit ", **dict.fromkeys(vars(self), above(0)))


class Guard:
    """The outermost layer of the server.

    Args:
        app: the routes.
        limits: on requests.
        keys: clients must send one of them as `Authorization: Bearer KEY`, or in a header of `KEY_HEADERS`; if empty, keys
            are not checked.
        hosts: accepted host names; "localhost" stands for every name and address of this machine. If empty, they are not
            checked. The check prevents DNS rebinding: a website that points its own name at this machine.
        count: called with (path, status) of each request.
        log: receives a line of JSON per request; None for no log.
    """

    def __init__(
        self, app: Callable[..., Any], limits: Limits, keys: Sequence[str], hosts: Sequence[str],
        count: Callable[[str, int], None], log: TextIO | None = sys.stderr,
    ):  # fmt: skip
        self._app, self._limits, self._count, self._log = app, limits, count, log
        self._hosts = {host_name(host) for host in hosts}
        self._clear = CLEAR if log is not None and log.isatty() else ""
        self._keys = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, size = time.perf_counter(), 0, 0
        entry: dict[str, Any] = {}  # the routes add to it
        scope["state"] = dict(scope.get("state") or {}, log=entry)

        async def checked_receive() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._limits.body_bytes:
                raise self._too_large()
            return message

        async def watched_send(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, checked_receive, watched_send)
        except Refused as error:
            note(scope, error)
            if status == 0:
                response = error.response(scope["path"])
                response.headers["connection"] = "close"  # the body may be unread
                await response(scope, receive, watched_send)
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "unknown")
            self._count(path, status)
            if self._log is not None and path not in ("/health", "/ready", "/metrics"):
                line = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "client": (scope.get("client") or ("?",))[0],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status or "gone",
                    "seconds": round(time.perf_counter() - started, 3),
                }
                text = json.dumps(line | entry, ensure_ascii=True)
                self._log.write(f"{self._clear}{text}\n")  # at once: other threads write there too
                self._log.flush()

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._hosts:
            host = host_name(headers.get(b"host", b"").decode("latin-1"))
            if host not in self._hosts and not ("localhost" in self._hosts and _is_local(host)):
                raise Refused(421, _FOREIGN.format(host=host) if host else "the request names no valid host.")
        path = scope["path"]
        is_open = path in OPEN or path.startswith("/page/")
        if self._keys and not is_open and scope["method"] != "OPTIONS":
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            given = [headers[name] for name in KEY_HEADERS if name in headers]
            given += [key] if scheme.lower() == b"bearer" else []
            # Compare all of them, each in constant time.
            digests = [_digest(each.strip()) for each in given]
            matches = sum(hmac.compare_digest(each, valid) for each in digests for valid in self._keys)
            if not matches:
                text = "the request needs a valid API key, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
                raise Refused(401, text, code="invalid_api_key")
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Refused(415, "the body must be JSON, with 'Content-Type: application/json'.")
            encoding = headers.get(b"content-encoding", b"identity").strip().lower()
            if encoding != b"identity":
                text = f"the body has the encoding {encoding.decode('latin-1')!r}; send it without Content-Encoding."
                raise Refused(415, text)
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._limits.body_bytes:
                raise self._too_large()

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self._limits.body_bytes} bytes.")


def host_name(text: str) -> str:
    """Return the host of a Host header: lower case, without port, brackets and the final dot; "" if it is malformed."""
    text = text.strip().lower()
    bracketed = re.fullmatch(r"\[([0-9a-f:.]+)\](:\d*)?", text)
    if bracketed:
        return bracketed[1]
    if text.count(":") > 1:  # an address without brackets, which only options may have
        return text
    name, colon, port = text.partition(":")
    return "" if "[" in name or (colon and port and not port.isdigit()) else name.removesuffix(".")


def _is_local(host: str) -> bool:
    """Whether a host is this machine, whoever asks. No website can point another's address at it."""
    if host in _LOCAL or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
