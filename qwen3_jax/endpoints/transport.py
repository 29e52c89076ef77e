"""HTTP to a server with OpenAI's API: one try of one request, and what its failure means for whoever pays.

    transport = Transport("http://localhost:8000/v1", api_key=None, connections=16, timeout=600)
    reply = transport.post("/chat/completions", body)          # status, body, Retry-After

Threads share it. Nothing is tried again here: the caller decides when, and counts what it costs.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import time
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import urllib3

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.endpoints.pause import pause
from qwen3_jax.errors import UserError

_CONNECT_SECONDS = 10.0
_MOST_BYTES = 64 * 2**20  # of a reply
CHAT, TEXT = "/chat/completions", "/completions"
_MODEL_TRIES = 4  # of the question for a server's model: it may be starting


class EndpointError(UserError):
    """The endpoint cannot be used: a wrong address, key or model."""


class NoConnection(Exception):
    """The request was not sent."""


class LostReply(Exception):
    """The request was sent, and no whole reply came back."""


class HttpReply(NamedTuple):
    """A whole reply.

    Attributes:
        status: of HTTP.
        body: as it came.
        retry_after: seconds after which the server asks to be tried again, or None.
    """

    status: int
    body: bytes
    retry_after: float | None = None

    @property
    def message(self) -> str:
        """What the body of a failed request says, in one short line."""
        text, error = self.body[:2000].decode("utf-8", "replace"), self._error
        if error is not None:
            text = str((error.get("message", error) if isinstance(error, Mapping) else error) or "")
        return " ".join(text.split())[:300].rstrip(".")

    @property
    def code(self) -> str:
        """The code of the error, in OpenAI's form; "" where there is none."""
        error = self._error
        return str(error.get("code") or "") if isinstance(error, Mapping) else ""

    @property
    def _error(self) -> Any:
        """What stands in the body's "error", or in the fields that servers have instead; None if it is no JSON object."""
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(self.body)
            if isinstance(value, Mapping):
                return value.get("error", value.get("message", value.get("detail", value)))
        return None


class Transport:
    """Connections to one server, kept open.

    Args:
        url: as OpenAI's `base_url`; "/v1" is added to an address without a path, and a route at its end is taken off.
        api_key: sent as a bearer token; None sends none.
        connections: that are kept open.
        timeout: seconds for one whole reply.

    Raises:
        UserError: not an http address, or a setting out of bounds.
    """

    def __init__(self, url: str, *, api_key: str | None = None, connections: int = 16, timeout: float = 600.0):
        check_bounds(
            dict(concurrency=connections, timeout=timeout), "endpoint option ", concurrency=whole(1),
            timeout=above(0, finite=True),
        )  # fmt: skip
        self.url, self.timeout = base_url(url), timeout
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._pool = _pool(self.url, connections)

    def post(self, route: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> HttpReply:
        """Send a JSON object; return the reply, whatever its status.

        Raises:
            NoConnection: nothing was sent.
            LostReply: it broke off, or took longer than the time limit.
        """
        return self._send("POST", route, json.dumps(body).encode("utf-8", "replace"), headers or {})

    def key_hint(self, status: int, option: str = "--api-key-env NAME") -> str:
        """What to add to an error of this HTTP status: how to send a key, where none was sent; `option` is what sends one."""
        return (
            f" No key was sent; {option} sends one." if status == 401 and "Authorization" not in self._headers else ""
        )

    def only_model(self, option: str = "--endpoint-model", key_option: str = "--api-key-env NAME") -> str:
        """The name of the server's model.

        Args:
            option: what names a model, for errors.
            key_option: what sends a key, for errors.

        Raises:
            EndpointError: it cannot be asked, or has several.
        """
        reply, failure = None, ""
        for tried in range(1, _MODEL_TRIES + 1):
            try:
                reply = self._send("GET", "/models", None, {})
            except NoConnection as error:
                failure = str(error)
                break
            except LostReply as error:
                failure = str(error)
            else:
                failure = "" if reply.status == 200 else f"HTTP {reply.status}: {reply.message}".rstrip(": ")
                if reply.status != 429 and reply.status < 500:
                    break
            if tried < _MODEL_TRIES:
                time.sleep(pause(tried, None if reply is None else reply.retry_after))
        if failure or reply is None:
            hint = "" if reply is None else self.key_hint(reply.status, key_option)
            raise EndpointError(f"{self.url} cannot be asked for its model ({failure}).{hint}")
        try:
            names = [str(model["id"]) for model in json.loads(reply.body)["data"]]
        except (ValueError, KeyError, TypeError):
            names = []
        if len(names) != 1:
            has = f"has {len(names)} models" + (f" ({', '.join(names[:8])})" if names else "")
            raise EndpointError(f"{self.url} {has}; name one with {option}.")
        return names[0]

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()

    def _send(self, method: str, route: str, body: bytes | None, headers: Mapping[str, str]) -> HttpReply:
        deadline = time.monotonic() + self.timeout
        is_sent = False
        try:
            response = self._pool.request(
                method, self.url + route, body=body, headers={**self._headers, **headers}, preload_content=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(_CONNECT_SECONDS, self.timeout), read=self.timeout),
            )  # fmt: skip
            is_sent = True
            raw = _read(response, deadline)
        except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
            raise NoConnection(f"no connection ({_line(error)})") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise LostReply(f"{'the reply broke off' if is_sent else 'no reply'} ({_line(error)})") from None
        return HttpReply(response.status, raw, _seconds(response.headers.get("Retry-After")))


def _pool(url: str, connections: int) -> urllib3.PoolManager:
    """Connections to a server, through the proxy that the environment names for it (HTTPS_PROXY, NO_PROXY)."""
    options: dict[str, Any] = dict(num_pools=1, maxsize=connections, retries=False)
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is None or urllib.request.proxy_bypass(parts.netloc):
        return urllib3.PoolManager(**options)
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    headers = None
    if found.username is not None:
        login = f"{unquote(found.username)}:{unquote(found.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
    address = f"{found.scheme}://{found.netloc.rpartition('@')[2]}"
    return urllib3.ProxyManager(address, proxy_headers=headers, **options)


def is_address(model: str) -> bool:
    """Whether --model names a server rather than a checkpoint."""
    return model.startswith(("http://", "https://"))


def base_url(url: str) -> str:
    """The address below which the routes lie.

    Raises:
        UserError: not an http address.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UserError(f"{url!r} is no address of a server, such as http://localhost:8000/v1.")
    if parts.username is not None or parts.password is not None:
        raise UserError(
            "the address of a server must not hold a password, which would be written into files; give a key."
        )
    path = parts.path.rstrip("/")
    for route in (CHAT, TEXT):
        path = path.removesuffix(route)
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _read(response: Any, deadline: float) -> bytes:
    """The whole body, which may not trickle in for longer than the time limit."""
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in response.stream(2**16):
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > deadline:
                raise TimeoutError("it took longer than the time limit")
            if size > _MOST_BYTES:
                raise OSError(f"it is larger than {_MOST_BYTES} bytes")
    except BaseException:
        response.close()
        raise
    response.release_conn()
    return b"".join(pieces)


def _seconds(after: str | None) -> float | None:
    """The Retry-After header: seconds, or a date."""
    if after is None:
        return None
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
