"""Access, limits, and that no request leaves anything behind."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from qwen3_jax.cli.main import main as qwen3
from qwen3_jax.serving.guard import Limits
from tests.helpers import tiny_models
from tests.helpers.served import ROOT, SMALL, Running, raw_chat, serve

KEY = {"Authorization": "Bearer first"}
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
ENDLESS = {str(tiny_models.tokenizer().im_end_id): -100}
LONG = dict(messages=ASK, max_tokens=600, temperature=1, logit_bias=ENDLESS)  # ends at its limit


def ask(url: str, headers=None, **body) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/chat/completions", json=dict(messages=ASK, max_tokens=4) | body, headers=headers, timeout=60
    )


@pytest.fixture(scope="module")
def guarded(tiny_folder, tmp_path_factory) -> Iterator[Running]:
    """A server with keys and limits."""
    work = tmp_path_factory.mktemp("guarded")
    (work / "keys").write_bytes(b"\xef\xbb\xbf# of two people\r\nfirst\r\nsecond\r\n")  # as editors on Windows write it
    options = (
        *SMALL, "--no-warm-up", "--name", "mine", "--api-keys", str(work / "keys"), "--allow-origin", "https://example.org",
        "--max-body", "20000", "--max-messages", "3", "--max-tokens", "700", "--max-waiting", "8", "--max-n", "4",
    )  # fmt: skip
    with serve(tiny_folder, work, *options, environment={"QWEN3_API_KEYS": "third"}) as running:
        running.key = "first"
        yield running
        assert "Traceback" not in running.log
        assert "What is" not in running.log


def test_keys_hosts_and_origins(guarded):
    url, before = guarded.url, len(guarded.log)
    assert guarded.model == "mine"
    for key in ("first", "second", "third"):
        assert ask(url, {"Authorization": f"Bearer {key}"}).status_code == 200
    for headers in (
        {},
        {"Authorization": "Bearer fourth"},
        {"Authorization": "Basic first"},
        {"Authorization": "Bearer"},
    ):
        refused = ask(url, headers)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{url}/v1/models").status_code == httpx.get(f"{url}/metrics").status_code == 401
    for path in ("/health", "/ready", "/", "/page/chat.js"):
        assert httpx.get(f"{url}{path}").status_code == 200
    assert ask(url, KEY | {"Host": "evil.example"}).status_code == 421
    assert ask(url, KEY | {"Host": "localhost:80"}).status_code == 200
    ours, theirs = (ask(url, KEY | {"Origin": o}) for o in ("https://example.org", "https://evil.example"))
    assert ours.headers["access-control-allow-origin"] == "https://example.org"
    assert "access-control-allow-origin" not in theirs.headers
    preflight = httpx.options(
        f"{url}/v1/chat/completions",
        headers={
            "Origin": "https://example.org", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-api-key,x-stainless-os,anthropic-version",
        },
    )  # fmt: skip
    assert preflight.status_code == 200
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    assert ask(url, {"X-Api-Key": "second"}).status_code == 200
    form = httpx.post(f"{url}/v1/chat/completions", content="{}", headers=KEY | {"Content-Type": "text/plain"})
    assert form.status_code == 415
    # Seven with an answer, four without a key, one for another host, the browser's question and the form.
    lines = guarded.log_entries("/v1/chat/completions", count=14, start=before)
    assert all("reason" in line for line in lines if line["status"] >= 400)
    answered = [line for line in lines if line["method"] == "POST" and line["status"] == 200]
    assert answered
    assert all(line["completion_tokens"] <= 4 and line["prompt_tokens"] > 4 for line in answered)


def test_official_clients_give_their_keys(guarded):
    """OpenAI's as a bearer token, Anthropic's in x-api-key; a wrong key is the error of each."""
    hi = [{"role": "user", "content": "hi"}]
    for key in ("second", "fourth"):
        own = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
        theirs = anthropic.Anthropic(base_url=guarded.url, api_key=key, max_retries=0)
        if key == "second":
            assert own.responses.create(model="mine", input="hi", max_output_tokens=4).usage.output_tokens <= 4
            assert theirs.messages.create(model="mine", messages=hi, max_tokens=4).usage.output_tokens <= 4
            assert theirs.messages.count_tokens(model="mine", messages=hi).input_tokens > 4
            continue
        with pytest.raises(openai.AuthenticationError):
            own.responses.create(model="mine", input="hi")
        with pytest.raises(anthropic.AuthenticationError) as caught:
            theirs.messages.create(model="mine", messages=hi, max_tokens=4)
        assert caught.value.body["error"]["type"] == "authentication_error"
    theirs = anthropic.Anthropic(base_url=guarded.url, api_key="first", max_retries=0)
    with pytest.raises(anthropic.BadRequestError, match="the request has 4 messages; the limit is 3"):
        theirs.messages.create(model="mine", messages=hi * 4, max_tokens=4)


def test_by_default_no_page_of_another_origin_may_ask(server):
    asked = ask(server.url, {"Origin": "https://example.org"})
    assert asked.status_code == 200
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_limits_are_held(guarded):
    url = guarded.url

    def ask_with_key(**body) -> httpx.Response:
        return ask(url, KEY, **body)

    assert ask_with_key(messages=[{"role": "user", "content": "x" * 30_000}]).status_code == 413

    def endless():
        yield b'{"messages": ['
        for _ in range(10_000):
            yield b" " * 100

    headers = KEY | {"Content-Type": "application/json"}
    with contextlib.suppress(httpx.TransportError):  # it may close the connection before all is sent
        assert httpx.post(f"{url}/v1/chat/completions", content=endless(), headers=headers).status_code == 413
    assert "4 messages; the limit is 3" in ask_with_key(messages=ASK * 4).json()["error"]["message"]
    capped = ask_with_key(max_tokens=32_000, logit_bias=ENDLESS).json()  # an upper bound, which the server lowers
    assert (capped["usage"]["completion_tokens"], capped["choices"][0]["finish_reason"]) == (700, "length")
    assert ask_with_key(n=5).status_code == 400
    answers = []
    several = LONG | dict(n=4, max_tokens=300)  # 8 may wait for the 4 rows: three requests fit
    threads = [threading.Thread(target=lambda: answers.append(ask_with_key(**several))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 3
    assert all(int(a.headers["retry-after"]) > 0 for a in answers if a.status_code == 429)
    assert ask_with_key().status_code == 200


def test_a_request_that_takes_too_long_ends(hasty):
    server, limit = hasty
    options = LONG | dict(n=4, max_tokens=900)
    slow = ask(server.url, **options)
    assert slow.status_code == 504
    assert f"longer than {limit} seconds" in slow.json()["error"]["message"]
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json=options | {"stream": True}, timeout=60
    ) as response:
        events = [line for line in response.iter_lines() if line]
    assert f"longer than {limit} seconds" in events[-1]
    assert "data: [DONE]" not in events
    server.wait_until_idle()


def test_texts_are_logged_if_asked_for(hasty):
    server, _ = hasty
    before = len(server.log)
    asked = [{"role": "user", "content": "ünïcödé"}]
    ask(server.url, messages=asked)
    (entry,) = server.log_entries("/v1/chat/completions", count=1, start=before)
    assert entry["prompt"] == asked
    assert len(entry["answers"]) == 1
    assert "\\u00fcn" in server.log[before:]


def test_a_client_that_leaves_frees_its_place(server):
    for stream in (True, False):
        before = time.monotonic()
        body = json.dumps(LONG | dict(n=4, max_tokens=900, stream=stream)).encode()
        with socket.create_connection(server.address) as raw:
            raw.sendall(raw_chat(body))
            if stream:
                assert b"200" in raw.recv(100)
            else:
                while not server.meter("qwen3_answers_running"):
                    assert time.monotonic() < before + 30
        server.wait_until_idle(20)


def test_sigterm_lets_running_answers_finish(tiny_folder, tmp_path):
    with serve(tiny_folder, tmp_path, *SMALL, "--no-warm-up") as running:
        ends_with_whole_answers(running)


def ends_with_whole_answers(running: Running) -> None:
    """Send SIGTERM while answers are streamed: each is the whole one."""
    got = {}

    def stream(seed: int) -> None:
        options = LONG | dict(seed=seed, max_tokens=300)
        with httpx.stream(
            "POST", f"{running.url}/v1/chat/completions", json=options | {"stream": True}, timeout=60
        ) as response:
            got[seed] = [line for line in response.iter_lines() if line]

    expected = {seed: ask(running.url, **LONG | dict(seed=seed, max_tokens=300)).json() for seed in range(6)}
    threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    while running.meter("qwen3_answers_running") < 4:
        assert any(thread.is_alive() for thread in threads), "they ended before four were seen to run at once"
        time.sleep(0.01)
    running.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert running.process.wait(30) in (0, -signal.SIGTERM)
    for seed, events in got.items():
        assert events[-1] == "data: [DONE]"
        content = "".join(json.loads(event[6:])["choices"][0]["delta"].get("content") or "" for event in events[:-1])
        assert content == (expected[seed]["choices"][0]["message"]["content"] or "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "give keys"),
        (["--host", "no.such.host.invalid", "--no-key"], "cannot listen at no.such.host.invalid:0"),
        (["--api-keys", "nowhere"], "--api-keys nowhere does not exist"),
        (["--lookup", "2", "--draft", "x"], "--lookup does not go with --draft"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--max-n", "0"], "'0' is not a whole number of 1 or more"),
        (["--port", "80000"], "'80000' is not a whole number from 0 to 65535"),
        (["--port", "-1"], "'-1' is not a whole number from 0 to 65535"),
        (["--thinking-budget", "-1"], "'-1' is not a whole number of 0 or more"),
        (["--allow-origin", "example.org"], "an origin is a scheme and a host"),
        (["--name", ""], "--name is empty"),
        (["--api-keys", "LATIN"], "is not UTF-8 text"),
        (["--port", "TAKEN"], "cannot listen at 127.0.0.1:TAKEN"),
    ],
)
def test_options_that_serve_refuses(options, words, tmp_path, capsys):
    """Before a model is loaded: there is none in the folder."""
    (tmp_path / "latin").write_bytes("k\xe9y".encode("latin-1"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ["serve", "--model", "nowhere", "--port", "0", *options]
        command = [word.replace("TAKEN", port).replace("LATIN", str(tmp_path / "latin")) for word in command]
        try:
            code = qwen3(command)
        except SystemExit as ended:  # the parser's
            code = ended.code
    assert code == 2
    assert words.replace("TAKEN", port) in capsys.readouterr().err


def test_the_lists_in_the_documentation_are_those_of_the_code():
    from qwen3_jax.serving import fields, messages_body, protocol, responses_body

    text = (ROOT / "docs/serving.md").read_text()
    openai, anthropic = text.index("## OpenAI's Responses"), text.index("## Anthropic's Messages")
    for begin, start, names in (
        (0, "Accepted and ignored", fields.IGNORED), (0, "Refused by name", fields.REFUSED),
        (openai, "Ignored here", fields.RESPONSES.ignored), (openai, "Refused here", fields.RESPONSES.refused),
        (anthropic, "Ignored here", fields.MESSAGES.ignored), (anthropic, "Refused here", fields.MESSAGES.refused),
    ):  # fmt: skip
        paragraph = text[text.index(start, begin) :].partition("\n\n")[0]
        listed = re.findall(r"`(\w+)`", paragraph[paragraph.index(": ") :].partition(";")[0].partition(". `count")[0])
        assert listed == list(names)
    efforts = next(line for line in text.splitlines() if line.startswith("| `reasoning_effort`"))
    for name, budget in protocol.EFFORTS.items():
        assert f"{name} without limit" in efforts if budget is None else f"{name} {budget:,}" in efforts
    for kind, start in (
        (protocol.ChatRequest, 0), (protocol.CompletionRequest, 0), (responses_body.ResponsesRequest, openai),
        (messages_body.CountTokensRequest, openai), (messages_body.MessagesRequest, openai),
    ):  # fmt: skip
        for name in kind.model_fields:
            assert f"`{name}" in text[start:], name


@pytest.mark.parametrize("name", vars(Limits()))
def test_a_limit_of_zero(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})
