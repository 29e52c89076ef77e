"""An OpenAI-compatible endpoint as a backend: what is sent, and what each kind of reply means."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qwen3_jax.cli.endpoint_options import key_of
from qwen3_jax.endpoints import ChatRequest, Endpoint, EndpointError, Tokens, Transport, prompt_bound
from qwen3_jax.endpoints.pause import LONGEST_PAUSE, pause
from qwen3_jax.endpoints.transport import base_url
from qwen3_jax.errors import UserError
from tests.helpers import tiny_models

ASKED = ChatRequest(({"role": "user", "content": "Hi"},), max_new_tokens=20)


@pytest.fixture
def scripted():
    """A server that gives the reply that is set: (status, body, headers), or a function of the handler."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.do_POST()

        def do_POST(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.seen.append((self.path, dict(self.headers), json.loads(raw) if raw else None))
            if callable(server.reply):
                server.reply(self)
                return
            self.answer()

        def answer(self):
            status, body, headers = server.reply
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(raw)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.seen = []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def completion(message, finish="stop", **usage):
    counts = {"prompt_tokens": 5, "completion_tokens": 7} | usage
    return 200, {"choices": [{"message": message, "finish_reason": finish}], "usage": counts}, {}


def test_a_request_has_the_fields_that_are_set_and_its_key(scripted):
    scripted.reply = completion({"role": "assistant", "content": "Hello"})
    endpoint = Endpoint(scripted.url, "m", api_key="secret", budget_field="thinking_token_budget")
    endpoint.ask(ASKED, "k1")
    path, headers, body = scripted.seen[-1]
    assert path == "/v1/chat/completions"
    assert (headers["Authorization"], headers["Idempotency-Key"]) == ("Bearer secret", "k1")
    assert body == {"model": "m", "messages": list(ASKED.messages), "max_tokens": 20}
    tool = {"type": "function", "function": {"name": "f"}}
    full = ChatRequest(
        ASKED.messages, 20, {"temperature": 0.5, "top_k": 3}, 7, ("x",), False, None, {"type": "object"}, (tool,)
    )  # fmt: skip
    Endpoint(f"{scripted.url}/proxy/v2/chat/completions", "m").ask(full)
    path, headers, body = scripted.seen[-1]
    assert path == "/proxy/v2/chat/completions"
    assert not {"Authorization", "Idempotency-Key"} & headers.keys()
    assert (body["temperature"], body["top_k"], body["seed"], body["stop"]) == (0.5, 3, 7, ["x"])
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["tools"] == [tool]
    endpoint.ask(ChatRequest(ASKED.messages, 20, thinking_budget=8))
    assert scripted.seen[-1][2]["thinking_token_budget"] == 8


@pytest.mark.parametrize(
    ("message", "finish", "outcome", "content", "thinking"),
    [
        ({"content": "Hello"}, "stop", "ok", "Hello", None),
        ({"content": "4", "reasoning_content": "2+2"}, "stop", "ok", "4", "2+2"),
        ({"content": "4", "reasoning": "2+2"}, "stop", "ok", "4", "2+2"),
        ({"content": "<think>\n2+2\n</think>\n\n4"}, "stop", "ok", "4", "2+2"),
        ({"content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}, "tool_calls", "ok", "", None),
        ({"content": "4", "reasoning_content": None, "reasoning": "2+2"}, "stop", "ok", "4", "2+2"),
        ({"content": "Hel"}, "length", "truncated", "Hel", None),
        ({"content": "Hel"}, "error", "truncated", "Hel", None),
        ({"content": "", "refusal": "no"}, "stop", "refused", "", None),
        ({"content": ""}, "content_filter", "refused", "", None),
    ],
)
def test_replies(scripted, message, finish, outcome, content, thinking):
    details = {
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 3, "forced_tokens": 1},
    }
    scripted.reply = completion(message, finish, **details)
    reply = Endpoint(scripted.url, "m").ask(ASKED)
    assert (reply.outcome, reply.content, reply.thinking) == (outcome, content, thinking)
    assert reply.tokens == Tokens(5, 7, 2, 3)
    assert reply.forced_tokens == 1
    assert bool(reply.reason) == (outcome != "ok")
    assert not reply.may_cost


@pytest.mark.parametrize(
    ("reply", "outcome", "may_cost", "reason"),
    [
        ((400, {"error": {"message": "too long"}}, {}), "refused", False, "HTTP 400: too long"),
        ((422, {"detail": "no such field"}, {}), "refused", False, "no such field"),
        ((413, b"<html>", {}), "refused", False, "<html>"),
        ((429, {}, {"Retry-After": "3"}), "unreachable", False, "HTTP 429"),
        ((503, b"", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), "unreachable", False, "HTTP 503"),
        ((500, {"error": "oom"}, {"Retry-After": "soon"}), "unreachable", False, "oom"),
        ((200, b"<html>ok</html>", {}), "unreachable", True, "no chat completion"),
        ((200, {"choices": []}, {}), "unreachable", True, "no chat completion"),
        ((200, {"choices": [{"message": {"content": ["x"]}}]}, {}), "unreachable", True, "not text"),
        (completion({"content": "x", "tool_calls": [{"id": "1"}]}), "unreachable", True, "no chat completion"),
        (completion({"content": "x"}, prompt_tokens=-1), "unreachable", True, "token counts"),
        (completion({"content": "x"}, completion_tokens="7"), "unreachable", True, "token counts"),
        ((200, {"choices": [{"message": {"content": "x"}}]}, {}), "ok", True, ""),
        (completion({"content": "x"}, prompt_tokens=None), "ok", True, ""),
    ],
)  # fmt: skip
def test_failures_are_told_apart_by_whether_another_try_helps_and_what_was_paid(
    scripted, reply, outcome, may_cost, reason
):
    scripted.reply = reply
    got = Endpoint(scripted.url, "m").ask(ASKED)
    assert (got.outcome, got.may_cost) == (outcome, may_cost)
    assert reason in got.reason
    assert got.retry_after == {"3": 3.0, "Wed, 21 Oct 2015 07:28:00 GMT": 0.0}.get(reply[2].get("Retry-After"))


def test_lost_replies_may_have_been_paid_and_no_connection_was_not(scripted):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")
        handler.close_connection = True

    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10000000")
        handler.end_headers()
        for _ in range(40):
            handler.wfile.write(b" " * 70_000)
            time.sleep(0.05)

    endpoint = Endpoint(scripted.url, "m", timeout=0.4)
    for script, reason in ((cut, "broke off"), (trickle, "broke off"), (lambda handler: time.sleep(1), "no reply")):
        scripted.reply = script
        reply = endpoint.ask(ASKED)
        assert (reply.outcome, reply.may_cost) == ("unreachable", True)
        assert reason in reply.reason
    scripted.shutdown()
    scripted.server_close()
    reply = Endpoint(scripted.url, "m", timeout=0.4).ask(ASKED)
    assert (reply.outcome, reply.may_cost) == ("unreachable", False)
    assert "no connection" in reply.reason


def then(*replies):
    """A script of one reply after the other."""
    left = list(replies)

    def reply(handler):
        handler.server.reply = left.pop(0)
        handler.answer()
        handler.server.reply = reply

    return reply


def test_requests_are_sent_again_until_there_is_an_answer(scripted):
    endpoint, at_once = Endpoint(scripted.url, "m"), {"Retry-After": "0"}
    answer = completion({"content": "x"})
    scripted.reply = then((503, {}, at_once), (200, b"?", {}), answer)
    assert endpoint.ask_again(ASKED, 3, first_pause=0.001).outcome == "ok"
    scripted.reply = (503, {}, at_once)
    reply = endpoint.ask_again(ASKED, 2)
    assert (reply.outcome, reply.reason) == ("unreachable", "HTTP 503; asked 2 times")
    stopped = threading.Event()
    stopped.set()
    assert endpoint.ask_again(ASKED, 9, stopped=stopped).reason == "HTTP 503; asked 1 times"
    assert [pause(tries, 7.0) for tries in (1, 5)] == [7.0, 7.0]
    assert pause(99, None) == LONGEST_PAUSE
    assert 1.5 <= pause(3, None, first=0.5) <= 2.5


def test_a_limit_that_the_context_does_not_hold_is_left_out(scripted):
    said = {"error": {"message": "This model's maximum context length is 40 tokens.", "code": None}}
    coded = {"error": {"message": "No.", "code": "context_length_exceeded"}}
    endpoint = Endpoint(scripted.url, "m")
    for body in (said, coded):
        scripted.reply = then((400, body, {}), completion({"content": "x"}))
        assert endpoint.ask(ASKED, "k").content == "x"
        assert [("max_tokens" in each, headers["Idempotency-Key"]) for _, headers, each in scripted.seen[-2:]] == [
            (True, "k"), (False, "k-unlimited"),
        ]  # fmt: skip
        scripted.reply = (400, body, {})
        assert endpoint.ask(ASKED).too_long


def test_texts_are_continued(scripted):
    scripted.reply = (200, {"choices": [{"text": " 5", "finish_reason": "length"}]}, {})
    reply = Endpoint(scripted.url, "m").ask(ChatRequest((), 2, text="2 + 3 ="))
    assert scripted.seen[-1][0] == "/v1/completions"
    assert scripted.seen[-1][2] == {"model": "m", "max_tokens": 2, "prompt": "2 + 3 ="}
    assert (reply.outcome, reply.content, reply.finish_reason) == ("truncated", " 5", "length")


def test_proxies_of_the_environment(scripted, monkeypatch):
    monkeypatch.setenv("http_proxy", scripted.url.replace("//", "//me:secret@"))
    scripted.reply = completion({"content": "x"})
    assert Endpoint("http://models.invalid", "m").ask(ASKED).content == "x"
    path, headers, _ = scripted.seen[-1]
    assert path == "http://models.invalid/v1/chat/completions"
    assert headers["proxy-authorization"].startswith("Basic ")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Endpoint(scripted.url, "m").ask(ASKED)
    assert scripted.seen[-1][0] == "/v1/chat/completions"


def test_what_fails_for_every_request_is_an_error(scripted):
    endpoint = Endpoint(scripted.url, "m")
    for status in (301, 401, 403, 404):
        scripted.reply = (status, {"error": {"message": "model not found"}}, {"Location": "/elsewhere"})
        with pytest.raises(EndpointError, match=rf"does not accept requests for the model 'm' \(HTTP {status}"):
            endpoint.ask(ASKED)
    scripted.reply = completion({"content": "x"})
    assert endpoint.ask(ASKED).outcome == "ok"
    scripted.reply = (403, {"error": {"message": "this prompt is not allowed"}}, {})
    assert endpoint.ask(ASKED).outcome == "refused"
    scripted.reply = (401, {}, {})
    endpoint.submit(0, ASKED)
    with pytest.raises(EndpointError, match=r"\(HTTP 401\)\. No key was sent; --api-key-env NAME sends one\."):
        endpoint.collect(10)
    with pytest.raises(EndpointError, match=r"\(HTTP 401\)\. No key was sent"):
        Endpoint(scripted.url)
    with pytest.raises(EndpointError, match=r"\(HTTP 401\)\.$"):
        Endpoint(scripted.url, api_key="wrong")
    scripted.reply = completion({"content": "x"}, completion_tokens_details={"reasoning_tokens": 50})
    with pytest.raises(EndpointError, match="does not keep the thinking budget"):
        endpoint.ask(ChatRequest(ASKED.messages, 90, thinking_budget=8))


def test_the_key_of_openai_is_sent_to_openai_alone_unless_it_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert key_of("https://api.openai.com/v1", None) == "secret"
    for address in (
        "http://localhost:8000/v1",
        "https://api.openai.com.example.org/v1",
        "https://example.org/api.openai.com",
    ):
        assert key_of(address, None) is None
        assert key_of(address, "OPENAI_API_KEY") == "secret"


def test_addresses_and_models(scripted):
    assert (
        base_url("http://h:1")
        == base_url("http://h:1/")
        == base_url("http://h:1/v1/chat/completions")
        == "http://h:1/v1"
    )
    assert base_url("https://h/openai/v1/completions") == "https://h/openai/v1"
    for wrong in ("h:8000", "ftp://h", "http://", "http://h/v1?x=1"):
        with pytest.raises(UserError, match="no address of a server"):
            Transport(wrong)
    with pytest.raises(UserError, match="must not hold a password"):
        Transport("http://user:secret@h/v1")
    for options in (dict(concurrency=0), dict(timeout=0.0)):
        with pytest.raises(UserError, match="endpoint option"):
            Endpoint(scripted.url, "m", **options)
    only = (200, {"data": [{"id": "only"}]}, {})
    scripted.reply = only
    assert Endpoint(scripted.url).fingerprint == f"{scripted.url}/v1 only"
    scripted.reply = then((503, {}, {"Retry-After": "0"}), (429, {}, {"Retry-After": "0"}), only)  # it is starting
    assert Endpoint(scripted.url).model == "only"
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:1/v1 cannot be asked for its model \(no connection"):
        Endpoint("http://127.0.0.1:1")
    for reply in ((200, {"data": [{"id": "a"}, {"id": "b"}]}, {}), (404, {}, {}), (200, b"x", {})):
        scripted.reply = reply
        with pytest.raises(EndpointError):
            Endpoint(scripted.url)


def test_the_bound_of_a_prompt_holds_for_a_real_template():
    tokenizer = tiny_models.tokenizer()
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    for content in ("Hi", "日本語" * 50, "x" * 1000, '\x00\n\t\\"' * 20):
        for tools in ((), (tool,)):
            request = ChatRequest(
                ({"role": "system", "content": "s"}, {"role": "user", "content": content}), 5, tools=tools
            )
            ids = tokenizer.apply_chat_template(list(request.messages), tools=list(tools) or None, tokenize=True)
            assert len(ids) <= prompt_bound(request)
