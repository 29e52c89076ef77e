"""The one way to call a verifier: names, settings, thinking sections, processes that are ended, new verifiers."""

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen3_jax import UserError
from qwen3_jax.processes import Pool, TimedOut
from qwen3_jax.verifiers import STATUSES, Verdict, names, register, right, settings_of, verify, verify_all, wrong
from qwen3_jax.verifiers.registry import find
from tests.helpers.isolated import require_isolation

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Settings:
    """Of the verifiers below."""

    seconds: float = 0.5
    mode: str = "good"


def by_mode(answer: str, reference: str, settings: Settings) -> Verdict:
    """A verifier that does what its settings say."""
    if settings.mode == "hang":
        sum(range(10**12))  # no bytecode in between: no signal would end it
    if settings.mode == "raise":
        raise KeyError("x")
    if settings.mode == "exit":
        os._exit(3)
    if settings.mode == "memory":
        bytearray(1 << 45)
    if settings.mode == "print":
        print("noise", flush=True)
    if settings.mode == "pid":
        return right(str(os.getpid()))
    return right("equal") if answer == reference else wrong("not equal")


register("test_by_mode", by_mode, killable=True)
register("test_here", by_mode)


def test_a_verifier_is_a_function_and_a_line():
    assert {"test_by_mode", "test_here"} <= set(names())
    for name in ("test_by_mode", "test_here"):
        assert verify(name, "a", "a") == Verdict(1.0, "right", "equal")
        assert verify(name, "a", "b") == Verdict(0.0, "wrong", "not equal")


def test_what_goes_wrong_in_a_verifier_is_counted_apart():
    def verdict(mode, name="test_by_mode"):
        return verify(name, "a", "a", {"mode": mode})

    assert verdict("hang").status == "timed_out"
    assert verdict("raise") == Verdict(0.0, "error", "the verifier failed: KeyError: 'x'")
    assert verdict("raise", "test_here").status == "error"
    assert verdict("exit") == Verdict(0.0, "error", "the verifier's process ended: exit code 3")
    assert verdict("memory").reason == "the verifier failed: MemoryError: "
    assert verdict("print").status == "right"
    assert verdict("good").status == "right"


def test_one_that_hangs_does_not_hold_the_others():
    began = time.monotonic()
    with ThreadPoolExecutor(3) as threads:
        modes = ["hang", *["good"] * 6]
        verdicts = list(threads.map(lambda mode: verify("test_by_mode", "a", "a", {"mode": mode}), modes))
    assert [verdict.status for verdict in verdicts] == ["timed_out", *["right"] * 6]
    assert time.monotonic() - began < 15


MODULE, JUDGE = "tests.verifiers.test_registry", "qwen3_jax.verifiers.judging:judge"


def by_mode_arguments(mode):
    return {"function": f"{MODULE}:by_mode", "answer": "a", "reference": "a", "settings": {"mode": mode}}


def test_children_are_replaced_after_some_calls():
    call = {"function": JUDGE, "seconds": 9, "arguments": by_mode_arguments("pid")}
    code = f"import sys\nfrom qwen3_jax.processes import worker\nworker.CALLS = 2\nsys.argv[1:] = ['{2 << 30}']\nworker.main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as worker:
        replies = []
        for message in [{"load": MODULE}, *[call] * 5]:
            worker.stdin.write(json.dumps(message) + "\n")
            replies.append(json.loads(worker.stdout.readline()))
        worker.stdin.close()
        assert worker.wait(10) == 0
    assert replies[0] == {"loaded": MODULE}
    children = [reply["value"]["reason"] for reply in replies[1:]]
    assert [children.index(child) for child in children] == [0, 0, 2, 2, 4]


def test_a_pool_ends_its_processes():
    pool = Pool(1)
    with pytest.raises(TimedOut):
        pool.call(JUDGE, by_mode_arguments("hang"), 0.3, load=MODULE)
    workers = [worker._process for worker in list(pool._free.queue) if worker is not None]
    assert len(workers) == 1
    pool.close()
    assert workers[0].poll() == 0


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them():
    code = (
        "from qwen3_jax.verifiers import verify, processes\nverify('regex', 'a', 'a')\n"
        "print(processes._pool._free.queue[-1]._process.pid, flush=True)\n"
        "verify('regex', 'a' * 40, '(a+)+b', {'seconds': 60})"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    worker = int(parent.stdout.readline())
    time.sleep(0.5)
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    alive = [worker, *map(int, children)]
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in alive):
        time.sleep(0.05)
    assert children
    assert not any(Path(f"/proc/{pid}").exists() for pid in alive)


@pytest.mark.parametrize(
    ("module", "package", "use"),
    [
        ("mathematics", "math_verify", lambda module: module.preload()),
        ("ifeval", "langdetect.detector_factory", lambda module: module._detectors.__wrapped__()),
        ("ifeval", "punkt.data", lambda module: module._tokenizers.__wrapped__()),
        ("patterns", "jsonschema", lambda module: module.verify_json("1", {}, module.JsonSettings())),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(module, package, use, monkeypatch):
    loaded = importlib.import_module(f"qwen3_jax.verifiers.{module}")
    getattr(loaded, "_math_verify", functools.cache(lambda: None)).cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r'needs the package .*: pip install "qwen3-jax\[eval\]"'):
        use(loaded)


def test_names_and_settings_are_refused_by_name():
    with pytest.raises(UserError, match=r"there is no verifier 'maths'; .* Did you mean 'math'\?"):
        verify("maths", "1", "1")
    with pytest.raises(
        UserError, match=r"the verifier 'number' has no setting 'tolerence'; .* Did you mean 'tolerance'\?"
    ):
        verify("number", "1", "1", {"tolerence": 1})
    with pytest.raises(UserError, match=r"settings of 'math': seconds is 0\.0; it must be above 0"):
        verify("math", "1", "1", {"seconds": 0})
    with pytest.raises(UserError, match=r"settings of 'regex': field 'whole' has the value 'yes'; expected bool"):
        verify("regex", "1", "1", {"whole": "yes"})
    with pytest.raises(UserError, match=r"settings of the verifier 'math' must be a mapping, got list"):
        verify("math", "1", "1", [1])
    with pytest.raises(UserError, match=r"limits\.memory_mb is 1"):
        settings_of("code", {"limits": {"memory_mb": 1}})
    with pytest.raises(UserError, match=r"settings of 'code': limits: .*memory"):
        settings_of("code", {"limits": {"memory": 1}})
    assert settings_of("code", {"limits": {"memory_mb": 99}}).limits.memory_mb == 99


def test_what_can_not_be_registered_is_refused():
    def inner(answer: str, reference: str, settings: Settings) -> Verdict:
        return right("")

    def bare(answer, reference, settings):
        return right("")

    with pytest.raises(UserError, match="must be a function of a module that can be imported"):
        register("test_inner", inner, killable=True)
    with pytest.raises(UserError, match="there is a verifier 'math' already"):
        register("math", inner)
    with pytest.raises(UserError, match="must annotate its settings with a dataclass"):
        register("test_bare", bare)
    assert not {"test_inner", "test_bare"} & set(names())


def test_an_answer_is_text():
    with pytest.raises(UserError, match="an answer must be text, got list"):
        verify("exact", ["a"], "a")


def test_only_what_follows_the_thinking_section_is_judged():
    assert verify("number", "<think>\nfirst 7\n</think>\n\n5", 5).status == "right"
    assert verify("number", "first 7\n</think>\n\n5", 5, in_thinking=True).status == "right"
    assert verify("number", "first 7\n</think>\n\nnone", 7, in_thinking=True).status == "unparsable"
    unfinished = verify("number", "<think>\nit is 5", 5)
    assert (unfinished.status, unfinished.reason) == (
        "unparsable",
        "the thinking section does not end, so there is no answer",
    )
    assert verify("number", "it is 5", 5, in_thinking=True).status == "unparsable"


def test_many_are_judged_in_order():
    pairs = [(str(number), number // 2 * 2) for number in range(20)]
    assert [verdict.score for verdict in verify_all("number", pairs)] == [1.0, 0.0] * 10


def test_scores_go_with_their_statuses():
    with pytest.raises(ValueError, match=r"score 0\.5 does not go with"):
        Verdict(0.5, "right", "")
    with pytest.raises(ValueError, match=r"score 1\.0 does not go with"):
        Verdict(1.0, "wrong", "")
    with pytest.raises(ValueError, match="is none of"):
        Verdict(0.0, "failed", "")
    assert STATUSES == ("right", "wrong", "unparsable", "timed_out", "error")


REFERENCES = {
    "tool_calls": [],
    "thinking": None,
    "language": "en",
    "length": 5,
    "json": None,
    "choice": "A",
    "number": 1,
    "repetition": None,
    "ifeval": {"instruction_id_list": ["detectable_format:json_format"], "kwargs": [{}]},
    "code": {"assertions": ["assert f()"]},
    "livecodebench": {"public_test_cases": [{"input": "[1]", "output": "1"}], "func_name": "f"},
    "tool_use": {"calls": [], "tools": []},
    "premise": {"premise": False},
    "table": {"format": "csv", "columns": ["a"], "rows": []},
    "checks": [{"verifier": "exact", "reference": "b"}, {"verifier": "language", "reference": "en"}],
}
ELSEWHERE = {"reasoning_gym", "reward"}  # one takes seconds to load, the other asks a model: tests/training
ALL = [name for name in names() if not name.startswith("test_") and name not in ELSEWHERE]
SHORT = [None, "", " \n", "<think>", "</think>", "\x00\ud800"]
LONG = ["aaaaa", "[", "9", "\n", "answer is ", "$", "**", "\\[", "```python\nx\n", "1/", "<tool_call>"]
HERE = [name for name in ALL if not find(name).killable]  # the others are ended in time


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        *((name, answer) for name in ALL for answer in SHORT),
        *((name, text * 20_000) for name in HERE for text in LONG),
        *((name, "the answer is" + " " * 50_000) for name in HERE),
    ],
    ids=lambda value: ascii(value[:15] if value else value),
)
def test_no_answer_raises_or_takes_long(name, answer):
    limits = {"limits": {"seconds": 5}} if name in ("code", "livecodebench") else None
    if limits:
        require_isolation()
    began = time.process_time()
    verdict = verify(name, answer, REFERENCES.get(name, "b"), limits)
    assert time.process_time() - began < 2  # of this process
    assert verdict.status in ("right", "wrong", "unparsable", "timed_out"), verdict
    assert verdict.reason


def test_verifiers_and_sandbox_import_neither_jax_nor_what_they_need_late():
    code = (
        "import sys, qwen3_jax.verifiers, qwen3_jax.sandbox\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'jax', 'math_verify', 'sympy', 'nltk', 'jsonschema', 'torch'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.stdout == "[]\n", done.stderr
