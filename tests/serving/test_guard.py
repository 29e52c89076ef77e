"""API keys, host names and body sizes, with ASGI messages instead of a network."""

import asyncio
import io
import json

import pytest

from qwen3_jax.serving.errors import Refused
from qwen3_jax.serving.guard import Guard, Limits

POST = dict(method="POST", path="/v1/chat/completions", headers={"content-type": "application/json"})


async def read_all(scope, receive, send):
    """An app that reads the body and returns it."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    scope["state"]["log"]["size"] = len(body)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def ask(guard=None, pieces=(b"{}",), **request) -> dict:
    """Return status, headers and body of the response."""
    request = POST | request
    guard = guard or Guard(read_all, Limits(body_bytes=10), (), (), lambda *_: None, log=None)
    messages = [
        {"type": "http.request", "body": piece, "more_body": place + 1 < len(pieces)}
        for place, piece in enumerate(pieces)
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(name.encode(), value.encode()) for name, value in request["headers"].items()]
    scope = {"type": "http", "method": request["method"], "path": request["path"], "headers": headers}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["type"] == "http.response.start"
    return {
        "status": sent[0]["status"],
        "headers": {name.decode(): value.decode() for name, value in sent[0]["headers"]},
        "body": b"".join(message["body"] for message in sent[1:]),
    }


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"x" * 10], 200),
        ([b"x" * 11], 413),
        ([b"x" * 5, b"x" * 5], 200),
        ([b"x" * 5, b"x" * 6], 413),
        ([b"x"] * 10, 200),
        ([b"x"] * 11, 413),
        ([b""], 200),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_size_of_a_body_is_that_of_all_its_pieces(pieces, status):
    got = ask(pieces=pieces)
    assert got["status"] == status
    if status == 200:
        assert got["body"] == b"".join(pieces)
    else:
        assert got["headers"]["connection"] == "close"
        error = json.loads(got["body"])["error"]
        assert error == {
            "message": "the request is larger than 10 bytes.", "type": "invalid_request_error", "param": None, "code": None,
        }  # fmt: skip


@pytest.mark.parametrize(("length", "status"), [("10", 200), ("11", 413), ("many", 200)])
def test_a_content_length_beyond_the_limit_is_refused(length, status):
    assert ask(headers=POST["headers"] | {"content-length": length})["status"] == status


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("Application/JSON; charset=utf-8", 200), ("text/plain", 415), ("", 415),
        ("application/jsonl", 415),
    ],
)  # fmt: skip
def test_a_body_must_be_json(kind, status):
    assert ask(headers={"content-type": kind})["status"] == status
    assert ask(method="GET", headers={})["status"] == 200


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("/v1/models", "Bearer one", 200),
        ("/v1/models", "bearer two", 200),
        ("/v1/models", "Bearer  two ", 200),
        ("/v1/models", "Bearer three", 401),
        ("/v1/models", "Basic one", 401),
        ("/v1/models", "one", 401),
        ("/v1/models", "", 401),
        ("/metrics", "", 401),
        ("/page", "", 401),
        ("/pages/x", "", 401),
        ("/page/chat.js", "", 200),
        ("/", "", 200),
        ("/health", "", 200),
        ("/ready", "", 200),
        ("/health/x", "", 401),
    ],
)
def test_who_needs_a_key(path, header, status):
    guard = Guard(read_all, Limits(), ("one", "two"), (), lambda *_: None, log=None)
    got = ask(guard, method="GET", path=path, headers={"authorization": header})
    assert got["status"] == status
    if status == 401:
        assert got["headers"]["www-authenticate"] == "Bearer"
        assert json.loads(got["body"])["error"]["code"] == "invalid_api_key"
    assert ask(guard, method="OPTIONS", path=path, headers={})["status"] == 200  # a browser's preflight request


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "one"}, 200), ({"api-key": " two "}, 200), ({"x-api-key": "three"}, 401), ({"x-api-key": ""}, 401),
        ({"x-api-key": "one", "authorization": "Bearer any"}, 200), ({"x-api-key": "any", "authorization": "Bearer one"}, 200),
        ({"x-api-key": "any", "authorization": "Basic one"}, 401),
    ],
    ids=str,
)  # fmt: skip
def test_keys_in_the_headers_of_other_clients(headers, status):
    guard = Guard(read_all, Limits(), ("one", "two"), (), lambda *_: None, log=None)
    assert ask(guard, headers=POST["headers"] | headers)["status"] == status


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("headers", "pieces", "status", "kind"),
    [
        ({}, [b"{}"], 401, "authentication_error"),
        ({"x-api-key": "one"}, [b"{}"], 200, None),
        ({"x-api-key": "one"}, [b"x" * 11], 413, "request_too_large"),
        ({"x-api-key": "one", "content-type": "text/plain"}, [b"{}"], 415, "invalid_request_error"),
        ({"x-api-key": "one", "host": "evil.example"}, [b"{}"], 421, "invalid_request_error"),
    ],
)
def test_anthropics_routes_have_errors_in_its_form(path, headers, pieces, status, kind):
    guard = Guard(read_all, Limits(body_bytes=10), ("one",), ("localhost",), lambda *_: None, log=None)
    got = ask(guard, pieces, path=path, headers=POST["headers"] | {"host": "localhost"} | headers)
    assert got["status"] == status
    if kind is not None:
        body = json.loads(got["body"])
        assert (body.keys(), body["error"].keys()) == ({"type", "error"}, {"type", "message"})
        assert (body["type"], body["error"]["type"]) == ("error", kind)


@pytest.mark.parametrize(
    ("status", "sent", "kind"),
    [
        (400, 400, "invalid_request_error"), (404, 404, "not_found_error"), (405, 405, "invalid_request_error"),
        (429, 529, "overloaded_error"), (500, 500, "api_error"), (503, 503, "api_error"), (504, 504, "timeout_error"),
    ],
)  # fmt: skip
def test_statuses_of_anthropics_errors(status, sent, kind):
    """A server at capacity is overloaded there; 429 would be the rate limit of one client."""
    response = Refused(status, "no.", retry=2).response("/v1/messages")
    assert response.status_code == sent
    assert json.loads(response.body)["error"] == {"type": kind, "message": "no."}
    assert response.headers["retry-after"] == "2"
    assert Refused(status, "no.").response("/v1/responses").status_code == status


def test_an_encoded_body_is_refused_by_name():
    got = ask(headers=POST["headers"] | {"content-encoding": "gzip"})
    assert got["status"] == 415
    assert "encoding 'gzip'" in json.loads(got["body"])["error"]["message"]
    assert ask(headers=POST["headers"] | {"content-encoding": "identity"})["status"] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LocalHost:80", 200), ("[::1]:8000", 200), ("evil.example", 421), ("evil.example:80", 421),
        ("localhost.evil.example", 421), ("", 421), ("[::1]", 200), ("localhost.:8000", 200), ("localhost.", 200),
        ("127.0.0.1", 200), ("127.1.2.3:8000", 200), ("0.0.0.0:8000", 200), ("[0:0:0:0:0:0:0:1]:8000", 200),
        ("[::ffff:127.0.0.1]", 200), ("chat.localhost:8000", 200), ("10.0.0.1", 421), ("[::2]", 421), ("[::1", 421),
        ("::1]:8000", 421), ("localhost:80:80", 421), ("localhost:http", 421), ("notlocalhost", 421), ("127.0.0.1.evil", 421),
        ("chat.example.org", 200), ("CHAT.example.org.:443", 200), ("host.docker.internal:8000", 421),
        ("ip6-localhost:8000", 200), ("localhost.localdomain", 200), ("localhost.localdomain.org", 421),
    ],
)  # fmt: skip
def test_which_host_names_are_accepted(host, status):
    """This machine under any of its names, and the names that the operator gave, however they are written."""
    guard = Guard(read_all, Limits(), (), ("localhost", "Chat.Example.org:8000"), lambda *_: None, log=None)
    got = ask(guard, headers=POST["headers"] | {"host": host})
    assert got["status"] == status
    if "docker" in host:
        assert "--allow-host host.docker.internal" in json.loads(got["body"])["error"]["message"]


def test_an_operator_who_names_one_host_has_only_that():
    guard = Guard(read_all, Limits(), (), ("chat.example.org",), lambda *_: None, log=None)
    assert ask(guard, headers=POST["headers"] | {"host": "localhost"})["status"] == 421
    assert ask(guard, headers=POST["headers"] | {"host": "chat.example.org"})["status"] == 200


def test_the_log_has_a_line_per_request():
    counted, log = [], io.StringIO()
    guard = Guard(read_all, Limits(body_bytes=10), ("one",), (), lambda *each: counted.append(each), log)
    key = POST["headers"] | {"authorization": "Bearer one"}
    ask(guard, pieces=[b"1234"], headers=key)
    ask(guard)
    ask(guard, pieces=[b"1" * 11], headers=key)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["status"], line.get("size"), line["path"], line["method"]) for line in lines] == [
        (200, 4, POST["path"], "POST"), (401, None, POST["path"], "POST"), (413, None, POST["path"], "POST"),
    ]  # fmt: skip
    reasons = [None, "the request needs a valid API key", "the request is larger than 10 bytes"]
    assert all(why is line.get("reason") or why in line["reason"] for why, line in zip(reasons, lines, strict=True))
    assert all(line["seconds"] >= 0 and line["client"] == "?" for line in lines)
    assert counted == [("unknown", 200), ("unknown", 401), ("unknown", 413)]
