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
from tests.helpers import quick_xla, tiny_models
from tests.helpers.fake_endpoint import FAULTS, fake_endpoint

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-c", "import sys; from qwen3_jax.cli.main import main; sys.exit(main())"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": quick_xla.FLAGS}
SAMPLES = 3


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


def recorded(folder: Path) -> dict[str, int]:
    """How often each request's answer stands in the files of a job."""
    times: dict[str, int] = {}
    for file in (folder / "answers").glob("*.log"):
        for line in file.read_bytes().splitlines():
            event = json.loads(line.partition(b"\t")[0][9:]) if line.endswith(b"}") else {}
            if event.get("event") == "answer":
                times[event["key"]] = times.get(event["key"], 0) + 1
    return times


def killed_until_done(command: list[str], folder: Path, kills: int, requests: int, start: float, seed: int) -> str:
    """Run a command again and again, killed `kills` times, and then to its end; return what the last run said.

    A quarter of the kills, among the first half, come at a random time within `start` seconds, the others when a random number
    of the answers is recorded, and up to a tenth of `start` later; all of them before 97% of the answers are recorded.
    """
    rng = random.Random(seed)
    early = set(rng.sample(range(kills // 2), kills // 4))
    marks = iter(sorted(rng.sample(range(requests * 9 // 10), kills - len(early))))
    for kill in range(kills):
        mark = 0 if kill in early else next(marks)
        life = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while life.poll() is None and len(recorded(folder)) < mark:
            time.sleep(0.01)
        until = time.monotonic() + rng.uniform(0, start if kill in early else start / 10)
        while time.monotonic() < until and len(recorded(folder)) < 0.97 * requests:
            time.sleep(0.01)
        assert life.poll() is None, f"it ended with {life.returncode} before kill {kill}, at {mark} answers"
        life.send_signal(signal.SIGKILL)
        life.wait()
    done = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def check_money(endpoint, folder: Path, kills: int) -> None:
    """Compare a job's account with the endpoint's own."""
    cost = json.loads((folder / "cost.json").read_text())
    assert set(recorded(folder).values()) == {1}, "an answer was paid and recorded twice"
    # Every request was answered and its answer recorded once, with the endpoint's counts.
    assert (cost["prompt_tokens"], cost["completion_tokens"]) == endpoint.total(once=True)
    # What the endpoint worked on besides is counted as what it may have cost; no more of it than was in flight or failed.
    doubtful = cost["without_counts"]
    faults = sum(endpoint.faults[what] for what in FAULTS if not what.startswith("HTTP"))
    assert endpoint.repeated <= doubtful["requests"] <= faults + endpoint.repeated + 8 * kills
    most = doubtful["prompt_tokens_at_most"] + doubtful["completion_tokens_at_most"]
    assert endpoint.worked <= cost["prompt_tokens"] + cost["completion_tokens"] + most


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.soak)])
def test_killed_against_an_endpoint_that_fails(kills, tmp_path):
    count = 60 if kills < 10 else 200
    path, out = write_queries(tmp_path, count), tmp_path / "out"
    requests = (count - 1) * SAMPLES  # one query is refused
    with fake_endpoint(faulty=0.3, seconds=0.02, stall_seconds=3.0, answer=answer) as endpoint:
        options = [
            "data", "generate", "--path", str(path), "--model", endpoint.url, "--endpoint-model", "m",
            "--samples", str(SAMPLES), "--max-new-tokens", "40", "--verifier", "number", "--concurrency", "8",
            "--request-timeout", "2", "--retries", "30", "--split-mb", "0.001", "--fingerprint", "fake",
        ]  # fmt: skip
        budget = 150 * requests  # a request reserves 260 tokens, costs 20 to 50; some are lost
        command = [*PROGRAM, *options, "--output", str(out), "--budget-tokens", str(budget)]
        said = killed_until_done(command, out, kills, requests, 3.0, kills)
        check_money(endpoint, out, kills)
        assert endpoint.worked <= budget
        assert "recorded before" in said
        # With a budget that ends it in the middle, in a folder of its own.
        before, budget = endpoint.worked, 6000
        command = [*PROGRAM, *options, "--output", str(tmp_path / "poor"), "--budget-tokens", str(budget)]
        killed_until_done(command, tmp_path / "poor", 2, 20, 3.0, kills)
        assert 0 < endpoint.worked - before <= budget
        assert b"over budget" in outcome(tmp_path / "poor")["rejects.jsonl"]
    # The same bytes from the recorded answers, without the endpoint; and from another that never failed.
    replayed = tmp_path / "replayed"
    shutil.copytree(out / "answers", replayed / "answers")
    shutil.copy(out / "settings.json", replayed)
    assert main([*options, "--output", str(replayed)]) == 0
    assert outcome(replayed) == outcome(out)
    with fake_endpoint(answer=answer) as steady:
        options[options.index(endpoint.url)] = steady.url
        assert main([*options, "--output", str(tmp_path / "steady")]) == 0
        assert outcome(tmp_path / "steady") == outcome(out)
        assert steady.served.keys() == recorded(out).keys() - steady.refused()


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.soak)])
def test_killed_with_the_engine(kills, tmp_path):
    count = 60 if kills > 3 else 20
    path, requests = write_queries(tmp_path, count), 2 * count
    qwen3_jax.save(tiny_models.model(27), tiny_models.tokenizer(), tmp_path / "tiny")
    options = [
        "data", "generate", "--path", str(path), "--model", str(tmp_path / "tiny"), "--samples", "2", "--temperature", "1",
        "--top-k", "0", "--top-p", "1", "--max-new-tokens", "150", "--batch-size", "8", "--split-mb", "0.001",
    ]  # fmt: skip
    if kills > 3:
        options += ["--compile-cache", str(tmp_path / "compiled")]
    for _ in range(
        2 if kills > 3 else 1
    ):  # the first one compiles; kills before the first answer need the time without
        shutil.rmtree(tmp_path / "whole", ignore_errors=True)
        started = time.monotonic()
        whole = subprocess.Popen(
            [*PROGRAM, *options, "--output", str(tmp_path / "whole")],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        while whole.poll() is None and not recorded(tmp_path / "whole"):
            time.sleep(0.01)
        start = time.monotonic() - started
        said = whole.communicate()[1]
        assert whole.returncode == 0, said
    killed_until_done(
        [*PROGRAM, *options, "--output", str(tmp_path / "out")], tmp_path / "out", kills, requests, start, kills
    )
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    cost, first = (json.loads((tmp_path / name / "cost.json").read_text()) for name in ("out", "whole"))
    assert recorded(tmp_path / "out") == recorded(tmp_path / "whole") == dict.fromkeys(recorded(tmp_path / "whole"), 1)
    assert cost["requests"] == first["requests"] == requests, "every answer is recorded once"
    assert cost["completion_tokens"] == first["completion_tokens"]


SCENARIOS = ("first", "read otherwise", "asked otherwise", "other files")


@pytest.mark.parametrize(
    ("name", "every"),
    [pytest.param(name, 2 if name == "first" else 5, marks=pytest.mark.slow) for name in SCENARIOS]
    + [pytest.param(name, 1, marks=pytest.mark.soak) for name in SCENARIOS],
)
def test_ended_at_every_change_of_a_file(name, every, tmp_path):
    program = [sys.executable, "-m", "tests.helpers.crash_everywhere", str(tmp_path), name, str(every)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30 // every
