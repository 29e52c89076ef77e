"""Access, limits, and that no request leaves anything behind."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest

from qwen3_jax.serving.guard import Limits
from tests.helpers import tiny_models
from tests.helpers.served import ROOT, SMALL, raw_chat, serve

ASK = [{"role": "user", "content": "What is 2 + 3?"}]
ENDLESS = {str(tiny_models.tokenizer().im_end_id): -100}
LONG = dict(messages=ASK, max_tokens=600, temperature=1, logit_bias=ENDLESS)  # ends at its limit


def ask(url: str, headers=None, **body) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/chat/completions", json=dict(messages=ASK, max_tokens=4) | body, headers=headers, timeout=60
    )


def test_keys_hosts_and_origins(tiny_folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# of two people\nfirst\nsecond\n")
    options = (
        *SMALL,
        "--api-keys",
        str(keys),
        "--allow-origin",
        "https://example.org",
        "--no-warm-up",
        "--name",
        "mine",
    )
    with serve(tiny_folder, tmp_path, *options, environment={"QWEN3_API_KEYS": "third"}) as server:
        url = server.url
        assert server.model == "mine"
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
        key = {"Authorization": "Bearer first"}
        assert ask(url, key | {"Host": "evil.example"}).status_code == 421
        assert ask(url, key | {"Host": "localhost:80"}).status_code == 200
        ours, theirs = (ask(url, key | {"Origin": o}) for o in ("https://example.org", "https://evil.example"))
        assert ours.headers["access-control-allow-origin"] == "https://example.org"
        assert "access-control-allow-origin" not in theirs.headers
        before = httpx.options(
            f"{url}/v1/chat/completions",
            headers={"Origin": "https://example.org", "Access-Control-Request-Method": "POST"},
        )
        assert before.status_code == 200
        form = httpx.post(f"{url}/v1/chat/completions", content="{}", headers=key | {"Content-Type": "text/plain"})
        assert form.status_code == 415
    assert "What is" not in server.log
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    answered = [line for line in lines if line["method"] == "POST" and line["status"] == 200]
    assert answered
    assert all(line["completion_tokens"] <= 4 and line["prompt_tokens"] > 4 for line in answered)


def test_by_default_no_page_of_another_origin_may_ask(server):
    asked = ask(server.url, {"Origin": "https://example.org"})
    assert asked.status_code == 200
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_limits_are_held(tiny_folder, tmp_path):
    options = (*SMALL, "--max-body", "20000", "--max-messages", "3", "--max-tokens", "700",
               "--max-waiting", "1", "--max-n", "4", "--timeout", "20", "--log-text")  # fmt: skip
    with serve(tiny_folder, tmp_path, *options) as server:
        url = server.url
        assert ask(url, messages=[{"role": "user", "content": "x" * 30_000}]).status_code == 413

        def endless():
            yield b'{"messages": ['
            for _ in range(10_000):
                yield b" " * 100

        json_type = {"Content-Type": "application/json"}
        with contextlib.suppress(httpx.TransportError):  # it may close the connection before all is sent
            assert httpx.post(f"{url}/v1/chat/completions", content=endless(), headers=json_type).status_code == 413
        assert "4 messages; the limit is 3" in ask(url, messages=ASK * 4).json()["error"]["message"]
        assert "max_tokens is 701" in ask(url, max_tokens=701).json()["error"]["message"]
        assert ask(url, n=5).status_code == 400
        assert ask(url, messages=[{"role": "user", "content": "ünïcödé"}]).status_code == 200
        answers = []
        threads = [threading.Thread(target=lambda: answers.append(ask(url, **LONG))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in answers)
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 3
        assert all(int(a.headers["retry-after"]) > 0 for a in answers if a.status_code == 429)
        server.wait_until_idle()
        assert (
            "ünïcödé" in json.loads(next(x for x in server.log.splitlines() if "\\u00fcn" in x))["prompt"][0]["content"]
        )


def test_a_request_that_takes_too_long_ends(tiny_folder, tmp_path):
    with serve(tiny_folder, tmp_path, *SMALL, "--timeout", "0.2") as server:
        options = LONG | dict(n=4, max_tokens=900)
        slow = ask(server.url, **options)
        assert slow.status_code == 504
        assert "longer than 0.2 seconds" in slow.json()["error"]["message"]
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=options | {"stream": True}, timeout=60
        ) as response:
            events = [line for line in response.iter_lines() if line]
        assert "longer than 0.2 seconds" in events[-1]
        assert "data: [DONE]" not in events
        server.wait_until_idle()


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
    with serve(tiny_folder, tmp_path, *SMALL) as server:
        got = {}

        def stream(seed: int) -> None:
            options = LONG | dict(seed=seed, max_tokens=300)
            with httpx.stream(
                "POST", f"{server.url}/v1/chat/completions", json=options | {"stream": True}, timeout=60
            ) as response:
                got[seed] = [line for line in response.iter_lines() if line]

        expected = {seed: ask(server.url, **LONG | dict(seed=seed, max_tokens=300)).json() for seed in range(6)}
        threads = [threading.Thread(target=stream, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        while server.meter("qwen3_answers_running") < 4:
            assert any(thread.is_alive() for thread in threads), "they ended before four were seen to run at once"
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.process.wait(30) in (0, -signal.SIGTERM)
        for seed, events in got.items():
            assert events[-1] == "data: [DONE]"
            content = "".join(
                json.loads(event[6:])["choices"][0]["delta"].get("content") or "" for event in events[:-1]
            )
            assert content == (expected[seed]["choices"][0]["message"]["content"] or "")
        assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "give keys"),
        (["--host", "no.such.host.invalid", "--no-key"], "cannot listen at no.such.host.invalid:0"),
        (["--api-keys", "nowhere"], "--api-keys nowhere cannot be read"),
        (["--lookup", "2", "--draft", "x"], "--lookup does not go with --draft"),
        (["--timeout", "0"], "--timeout is 0"),
        (["--max-n", "0"], "'0' is not a whole number of 1 or more"),
    ],
)
def test_options_that_serve_refuses(options, words, tiny_folder, tmp_path):
    command = [sys.executable, "-m", "qwen3_jax.cli", "serve", "--model", str(tiny_folder), "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(tiny_folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "qwen3_jax.cli", "serve", "--model", str(tiny_folder), "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr


def test_the_lists_in_the_documentation_are_those_of_the_code():
    from qwen3_jax.serving import protocol

    text = (ROOT / "docs/serving.md").read_text()
    for start, names in (("Accepted and ignored", protocol.IGNORED), ("Refused by name", protocol.REFUSED)):
        paragraph = text[text.index(start) :].partition("\n\n")[0]
        assert re.findall(r"`(\w+)`", paragraph) == list(names)
    efforts = next(line for line in text.splitlines() if line.startswith("| `reasoning_effort`"))
    for name, budget in protocol.EFFORTS.items():
        assert f"{name} without limit" in efforts if budget is None else f"{name} {budget:,}" in efforts
    for kind in (protocol.ChatRequest, protocol.CompletionRequest):
        for name in kind.model_fields:
            assert f"`{name}" in text, name


@pytest.mark.parametrize("name", vars(Limits()))
def test_a_limit_of_zero(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: 0})
