"""The data factory killed with -9 at random moments: what it promises of answers, money and output.

Recorded answers give the same bytes. An answer that was recorded is never asked again; what was in flight at a kill may have
been paid and is counted at most; so the counts of the endpoint lie between what is reported and what may have been spent.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qwen3_jax
from qwen3_jax.cli.main import main
from tests.helpers import tiny_models
from tests.helpers.fake_endpoint import fake_endpoint

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-c", "import sys; from qwen3_jax.cli.main import main; sys.exit(main())"]
BUDGET = 200_000


def write_queries(folder: Path, count: int) -> Path:
    path = folder / "queries.jsonl"
    special = {7: "REFUSE ", 11: "REPEAT "}
    lines = [
        json.dumps({"question": f"{special.get(i, '')}What is {i} + {i}?", "answer": str(2 * i)}) for i in range(count)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def outcome(folder: Path) -> dict[str, bytes]:
    """What a job made; its cost and the answers differ with what was lost on the way."""
    files = [*sorted((folder / "records").glob("*")), folder / "rejects.jsonl"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def answer(body: dict) -> str:
    number = body["messages"][-1]["content"].split()[-1].rstrip("?")
    return f"<think>\n{number} and {number}\n</think>\n\nIt is {2 * int(number) if body['seed'] % 3 else 5000}."


def killed_until_done(command: list[str], kills: int, seconds: float, rng: random.Random) -> tuple[int, str]:
    """Run a command again and again, killing it at random moments until it was killed `kills` times, and then to its end;
    return the kills and what the last run said."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = 0
    while True:
        life = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            said = life.communicate(timeout=rng.uniform(0, seconds) if killed < kills else 300)[1]
        except subprocess.TimeoutExpired:
            life.send_signal(signal.SIGKILL)
            life.communicate()
            killed += 1
            continue
        assert life.returncode == 0, said
        return killed, said


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_against_an_endpoint_that_fails(kills, tmp_path):
    path = write_queries(tmp_path, 60 * max(kills // 6, 1))
    with fake_endpoint(faulty=0.3, seconds=0.02, stall_seconds=3.0, answer=answer) as endpoint:
        options = [
            "data", "generate", "--path", str(path), "--model", endpoint.url, "--endpoint-model", "m", "--samples", "3",
            "--max-new-tokens", "40", "--verifier", "number", "--concurrency", "8", "--request-timeout", "2", "--retries", "30",
            "--split-mb", "0.001", "--budget-tokens", str(BUDGET), "--fingerprint", "fake",
        ]  # fmt: skip
        command = [*PROGRAM, *options, "--output", str(tmp_path / "out")]
        killed, said = killed_until_done(command, kills, 4.0, random.Random(kills))
        assert killed == kills
        cost = json.loads((tmp_path / "out/cost.json").read_text())
        # Every request was answered and its answer recorded once, with the endpoint's counts.
        assert (cost["prompt_tokens"], cost["completion_tokens"]) == endpoint.total(once=True)
        # What the endpoint served besides is counted as what it may have cost; no more of it than was in flight or failed.
        doubtful = cost["without_counts"]
        faults = sum(endpoint.faults[what] for what in ("stall", "garbage", "cut off", "no reply"))
        assert endpoint.repeated <= doubtful["requests"] <= faults + endpoint.repeated + 8 * kills
        prompt, completion = endpoint.total()
        assert prompt <= cost["prompt_tokens"] + doubtful["prompt_tokens_at_most"]
        assert completion <= cost["completion_tokens"] + doubtful["completion_tokens_at_most"]
        assert prompt + completion <= BUDGET
        assert "recorded before" in said
    # The same bytes from the recorded answers, without the endpoint; and from another that never failed.
    replayed = tmp_path / "replayed"
    shutil.copytree(tmp_path / "out/answers", replayed / "answers")
    shutil.copy(tmp_path / "out/settings.json", replayed)
    assert main([*options, "--output", str(replayed)]) == 0
    assert outcome(replayed) == outcome(tmp_path / "out")
    with fake_endpoint(answer=answer) as steady:
        options[options.index(endpoint.url)] = steady.url
        assert main([*options, "--output", str(tmp_path / "steady")]) == 0
        assert outcome(tmp_path / "steady") == outcome(tmp_path / "out")
        assert steady.served.keys() == endpoint.served.keys()


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.soak)])
def test_killed_with_the_engine(kills, tmp_path):
    path = write_queries(tmp_path, 60)
    qwen3_jax.save(tiny_models.model(27), tiny_models.tokenizer(), tmp_path / "tiny")
    options = [
        "data", "generate", "--path", str(path), "--model", str(tmp_path / "tiny"), "--samples", "2", "--temperature", "1",
        "--top-k", "0", "--top-p", "1", "--max-new-tokens", "150", "--batch-size", "8", "--split-mb", "0.001",
        "--compile-cache", str(tmp_path / "compiled"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(2):  # the first one compiles
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
        started = time.monotonic()
        whole = subprocess.run(
            [*PROGRAM, *options, "--output", str(tmp_path / "whole")], env=environment, capture_output=True, text=True
        )
        assert whole.returncode == 0, whole.stderr
        took = time.monotonic() - started
    command = [*PROGRAM, *options, "--output", str(tmp_path / "out")]
    killed, _ = killed_until_done(command, kills, took, random.Random(kills))
    assert killed <= kills
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    cost, first = (json.loads((tmp_path / name / "cost.json").read_text()) for name in ("out", "whole"))
    assert cost["requests"] == first["requests"] == 120, "every answer is recorded once"
    assert cost["completion_tokens"] == first["completion_tokens"]
