"""Chromium for tests of pages."""

import contextlib
import shutil
from pathlib import Path

import pytest


@contextlib.contextmanager
def chromium():
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
