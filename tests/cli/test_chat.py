"""`infer.py --chat`: what reaches the model turn by turn, and Ctrl-C on a real terminal."""

import contextlib
import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qwen3_jax
from tests.helpers import quick_xla

ROOT = Path(__file__).parents[2]


@pytest.fixture
def talk(infer, folder, monkeypatch):
    """Run a chat over the given lines; return (exit code, out, err, what each call of `stream` was given and gave)."""

    def run(lines, *argv):
        calls, pending = [], iter(lines)
        original = qwen3_jax.stream

        def recording(model, tokenizer, prompts, **options):
            calls.append((prompts[0], options, []))
            for delta in original(model, tokenizer, prompts, **options):
                if delta.result is not None:
                    calls[-1][2].append(delta.result)
                yield delta

        def line(prompt=""):
            try:
                value = next(pending)
            except StopIteration:
                raise EOFError from None
            if isinstance(value, BaseException):
                raise value
            return value

        monkeypatch.setattr(qwen3_jax, "stream", recording)
        monkeypatch.setattr("builtins.input", line)
        return (*infer("--model", folder, "--chat", "--max-new-tokens", 34, "--seed", 4, *argv), calls)

    return run


def test_turns_modes_budget_and_commands(talk):
    lines = [
        "first", "/budget 5", "second", "/no_think", "third", "fourth /think", "  ", "/thnk", "/budget x", "/help",
        "/think", "fifth", "sixth /no_think", "seventh", "/usr/bin/env is a path", "/budget off", "/reset", "eighth",
        KeyboardInterrupt(),
    ]  # fmt: skip
    code, out, err, calls = talk(lines, "--system", "Be kind.", "--temperature", 0.9)
    assert code == 0
    sent = [
        "first", "second", "third", "fourth /think", "fifth", "sixth /no_think", "seventh /think",
        "/usr/bin/env is a path", "eighth",
    ]  # fmt: skip
    assert [prompt[-1]["content"] for prompt, _, _ in calls] == sent
    assert all(prompt[0] == {"role": "system", "content": "Be kind."} for prompt, _, _ in calls)
    modes = [(options.get("enable_thinking"), options.get("thinking_budget")) for _, options, _ in calls]
    budget, none = (None, 5), (None, None)
    assert modes == [none, budget, (False, None), budget, budget, budget, budget, budget, none]
    assert [len(prompt) for prompt, _, _ in calls] == [2, 4, 6, 8, 10, 12, 14, 16, 2]
    for (_, _, results), (later, _, _) in itertools.pairwise(calls[:8]):
        answer = later[-2]
        assert answer["role"] == "assistant"
        assert answer["content"] == results[0].content
        assert answer.get("reasoning_content") == (results[0].thinking or None)
    assert any(results[0].thinking for _, _, results in calls), "no turn thinks: a weak test"
    assert calls[3][2][0].usage.prompt_tokens < sum(r[0].usage.total_tokens for _, _, r in calls[:3])
    for words in ("Did you mean '/think'?", "thinking is off", "got 'x'", "/reset", "new conversation"):
        assert words in err
    for _, _, results in calls:
        assert results[0].content.strip() in out


def test_a_turn_that_cannot_run_is_explained_and_dropped(talk):
    code, _, err, calls = talk(["x " * 2000, "/budget 33", "hello", "/budget off", "hello"])
    assert code == 0
    assert "maximum context length" in err
    assert "room for an answer" in err
    assert [len(prompt) for prompt, _, _ in calls] == [1, 1, 1]


def test_ctrl_c_on_a_terminal(endless):
    main, terminal = pty.openpty()
    wrapper = (  # makes the pseudo-terminal the controlling one, so that Ctrl-C becomes a signal
        "import fcntl, runpy, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [str(ROOT / "infer.py"), "--model", endless, "--chat", "--max-new-tokens", "30000"]
    argv = [sys.executable, "-c", wrapper, *command]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "XLA_FLAGS": quick_xla.FLAGS}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, cwd=ROOT, env=environment, start_new_session=True
    )
    os.close(terminal)
    seen = ""

    def wait(pattern, seconds=120):
        nonlocal seen
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, seen)):
            assert time.monotonic() < end, f"{pattern!r} did not come; seen: {seen[-2000:]!r}"
            if select.select([main], [], [], 0.2)[0]:
                try:
                    seen += os.read(main, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"the terminal closed; seen: {seen[-2000:]!r}") from None
        seen = seen[match.end() :]
        return match.group()

    def send(text):
        os.write(main, text.encode())

    try:
        wait("> $")
        for _ in range(2):  # the second turn has the first one, cut short, in its history
            send("hello there\r")
            wait("hello there\r\n")
            wait(r"\S[\s\S]{200}")  # the answer is under way
            send("\x03")
            wait(r"stopped[\s\S]*> $")
        send("/no_think\r")
        wait(r"thinking is off\.[\s\S]*> $")
        # At the prompt: leave. Later and later, since CPython's readline misses a signal that comes right after its prompt.
        for pause in (0.5, 2, 5, 5):
            time.sleep(pause)
            with contextlib.suppress(OSError):
                send("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
                break
        assert process.returncode == 0
        assert "Traceback" not in seen
    finally:
        process.kill()
        os.close(main)
