"""What a user waits for: work in the background, the status line, and Ctrl-C from the first second on."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen3_jax import progress
from qwen3_jax.cli import background
from qwen3_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def test_work_is_done_in_another_thread_and_its_errors_are_raised_here():
    assert background.call(threading.current_thread) is not threading.current_thread()
    assert background.call(threading.current_thread) is background.call(threading.current_thread)
    with pytest.raises(KeyError, match="mine"):
        background.call(lambda: {}["mine"])
    assert list(background.iterate(iter(range(5)), lambda: False)) == [0, 1, 2, 3, 4]

    def failing():
        yield 1
        raise UserError("no more.")

    items = background.iterate(failing(), lambda: False)
    assert next(items) == 1
    with pytest.raises(UserError, match="no more"):
        next(items)
    assert background.leave(7) == 7


def test_a_stop_is_heard_while_an_item_is_computed_and_the_iterator_is_closed():
    going, closed = threading.Event(), threading.Event()

    def items():
        try:
            yield 1
            going.wait(20)
            yield 2
        finally:
            closed.set()

    got = []
    started = time.monotonic()
    for item in background.iterate(items(), lambda: bool(got)):
        got.append(item)
    assert time.monotonic() - started < 10
    assert not closed.is_set()
    going.set()
    assert background.call(lambda: closed.is_set())  # jobs are done in order
    assert got == [1]


def test_the_status_line_names_the_innermost_work_and_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "_REDRAW_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.02)

    def seen(text: str) -> bool:
        pattern, end = re.escape(text) + r" \.\.\. \d+ s", time.monotonic() + 10
        while not (found := re.search(pattern, sys.stderr.getvalue())) and time.monotonic() < end:
            time.sleep(0.01)
        return found is not None

    with progress.status_line(visible=True), progress.doing("loading weights"):
        assert seen("loading weights")
        with progress.doing("compiling prefill, 512 tokens"):
            assert seen("compiling prefill, 512 tokens")
            with progress.no_status():
                before = sys.stderr.getvalue()
                time.sleep(0.1)
                assert sys.stderr.getvalue() == before
                assert before.endswith("\x1b[J")
    assert sys.stderr.getvalue().endswith("\x1b[J")
    with progress.status_line(visible=False), progress.doing("nothing"):
        time.sleep(0.1)
    assert not seen_at_once("nothing")


def seen_at_once(text: str) -> bool:
    return text in sys.stderr.getvalue()


@pytest.mark.parametrize("presses", [1, 3])
def test_ctrl_c_is_heard_while_the_command_starts(endless, presses):
    """On a terminal, in the first seconds: JAX is imported, weights are read. One line, no traceback, no crash."""
    main, terminal = pty.openpty()
    argv = [sys.executable, str(ROOT / "infer.py"), "--model", endless, "--prompt", "Hi", "--max-new-tokens", "30000"]
    process = subprocess.Popen(argv, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT)
    os.close(terminal)
    try:
        seen = b""
        while b"starting JAX" not in seen:  # the status line is the first thing on the terminal
            seen += os.read(main, 4096)
        pressed = time.monotonic()
        for _ in range(presses):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.wait(60) == 130
        assert time.monotonic() - pressed < 15  # under 3 s on an idle machine
        seen += os.read(main, 65536)
    finally:
        process.kill()
        os.close(main)
    assert b"infer.py: stopped." in seen
    assert b"Traceback" not in seen


def test_the_version(qwen3):
    code, out, err = qwen3("--version")
    assert (code, err) == (0, "")
    assert out.startswith("qwen3-jax ")
