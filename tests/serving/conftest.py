"""One server for all tests that only send requests: a tiny random model that often thinks and calls tools."""

import time
from pathlib import Path

import pytest

import qwen3_jax
from tests.helpers import tiny_models
from tests.helpers.browser import chromium
from tests.helpers.served import SMALL, Running, serve


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    # Of the random models one that begins nearly every answer with thinking, and ends much of it.
    qwen3_jax.save(tiny_models.model(27), tiny_models.tokenizer(), folder)
    return folder


@pytest.fixture(scope="package")
def server(tiny_folder, tmp_path_factory):
    name = ("--name", "Qwen3-0.6B")  # that of the documentation
    with serve(tiny_folder, tmp_path_factory.mktemp("server"), *SMALL, *name) as running:
        yield running
        assert running.process.poll() is None, running.log[-3000:]
        assert "Traceback" not in running.log, running.log[-5000:]
        running.wait_until_idle()


@pytest.fixture(scope="package")
def hasty(server, tiny_folder, tmp_path_factory) -> tuple[Running, str]:
    """A server that logs texts, and its limit in seconds: a third of what a long answer takes this machine at the moment."""
    short, endless = dict(max_tokens=2), dict(max_tokens=900, logit_bias={str(tiny_models.tokenizer().im_end_id): -100})

    def ask(of: Running, options: dict) -> int:
        return of.post(
            "/v1/chat/completions", messages=[{"role": "user", "content": "What is 2 + 3?"}], **options
        ).status_code

    started = time.monotonic()
    assert ask(server, endless) == 200
    limit = f"{(time.monotonic() - started) / 3:.2g}"
    options = (*SMALL, "--no-warm-up", "--timeout", limit, "--log-text")
    with serve(tiny_folder, tmp_path_factory.mktemp("hasty"), *options) as running:
        # Compiling takes longer than the limit, and goes on after it.
        assert any(ask(running, short) == 200 for _ in range(20))
        yield running, limit


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def context(browser):
    """The storage of one user."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(60_000)  # milliseconds
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def chat(context, server):
    """The opened page; any error in it fails the test."""
    from tests.helpers.chat_page import Chat

    chat = Chat(context, server.url)
    yield chat
    assert chat.faults == []


@pytest.fixture
def slow_chat(context, server):
    """The opened page and the line to its server, which can be slowed down."""
    from tests.helpers.chat_page import Chat, Line

    with Line(server.address, piece=50).laid() as line:
        chat = Chat(context, line.url)
        yield chat, line
        line.pause = 0.0
        assert chat.faults == []
