"""One server for all tests that only send requests: a tiny random model that often thinks and calls tools."""

import shutil
from pathlib import Path

import pytest

import qwen3_jax
from tests.helpers import tiny_models
from tests.helpers.served import SMALL, serve


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    qwen3_jax.save(tiny_models.model(0), tiny_models.tokenizer(), folder)
    return folder


@pytest.fixture(scope="package")
def server(tiny_folder, tmp_path_factory):
    with serve(tiny_folder, tmp_path_factory.mktemp("server"), *SMALL) as running:
        yield running
        assert running.process.poll() is None, running.log[-3000:]
        assert "Traceback" not in running.log, running.log[-5000:]
        running.wait_until_idle()


@pytest.fixture(scope="module")
def browser():
    """Playwright's own Chromium, else the system's. It runs an event loop in this thread, which therefore can run no other."""
    import playwright.sync_api

    with playwright.sync_api.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path).exists()
        path = None if own else shutil.which("chromium") or shutil.which("google-chrome")
        if not own and path is None:
            pytest.skip("no Chromium: playwright install chromium, or apt-get install chromium")
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


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
