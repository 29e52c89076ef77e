"""`qwen3 eval`: a run, its continuation, its refusals, comparison and report, on a tiny random model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import quick_xla

ROOT = Path(__file__).parents[2]
TASK = ("--task", "running_sum", "--task-option", "running_sum.problems=4", "--max-new-tokens", 40)
BUDGETS = ("--thinking-budget", 0, 2, "none")
FILES = ("settings.json", "samples.jsonl", "problems.jsonl", "results.json", "report.html")
FLAGS = {"XLA_FLAGS": quick_xla.FLAGS, "PYTHONPATH": str(ROOT)}


def test_a_run_is_written_printed_and_continued(qwen3, folder, tmp_path):
    run = tmp_path / "run"
    code, out, err = qwen3("eval", "--model", folder, *TASK, *BUDGETS, "--batch-size", 8, "--output", run)
    assert code == 0, err
    assert "running_sum" in out
    assert out.splitlines()[-1] == str(run / "report.html")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    keys = [(sample["problem"], sample["budget"]) for sample in samples]
    assert keys == [(str(problem), budget) for problem in range(4) for budget in (0, 2, None)]
    results = json.loads((run / "results.json").read_text())
    assert [row["thinking_budget"] for row in results["rows"]] == [0, 2, None]
    assert all(row["questions"] == 4 for row in results["rows"])
    assert results["settings"]["model"]["dtype"] == "float32"
    # Another batch size, and a part of the samples of before: the same file, byte for byte.
    first = {name: (run / name).read_bytes() for name in FILES[:4]}
    lines = (run / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (run / "samples.jsonl").write_bytes(b"".join(lines[3:8][::-1]) + lines[0][:20])
    code, out, err = qwen3(
        "eval",
        "--model",
        folder,
        *TASK,
        *BUDGETS,
        "--batch-size",
        2,
        "--verifier-threads",
        1,
        "--output",
        run,
        "--json",
    )
    assert code == 0, err
    assert json.loads(out)["rows"] == results["rows"]
    assert {name: (run / name).read_bytes() for name in first} == first
    code, _, err = qwen3("eval", "--model", folder, *TASK, "--thinking-budget", 0, 3, "none", "--output", run)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds another run: its thinking_budgets is [0, 2, null], and [0, 3, null] was asked for" in err
    other = shutil.copytree(run, tmp_path / "other")
    code, out, _ = qwen3("eval", "compare", run, other)
    assert code == 0
    assert out.count("+0.0%") >= 3
    code, out, _ = qwen3("eval", "compare", run, other, "--json")
    assert [json.loads(line)["difference"] for line in out.splitlines()] == [0, 0, 0]
    (other / "report.html").unlink()
    code, out, _ = qwen3("eval", "report", other)
    assert code == 0
    assert (other / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "running_sums"), "there is no task 'running_sums'"),
        (("--task", "running_sum", "running_sum"), "--task names a task twice"),
        (("--task", "running_sum", "--data", "gsm8k=x"), "--data names 'gsm8k', which is no task of this run; they are"),
        (("--task", "running_sum", "--data", "gsm8k"), "--data 'gsm8k' is not NAME=PATH"),
        (("--task", "running_sum", "--task-option", "problems=4"), "--task-option 'problems' is not NAME.FIELD=VALUE"),
        (("--task", "running_sum", "--task-option", "running_sum.problem=4"), "no option 'problem'"),
        ((*TASK, "--thinking-budget", "some"), "'some' is not a whole number of 0 or more, or none"),
        ((*TASK, "--thinking-budget", 4, 4), "the thinking budget 4 is given twice"),
        ((*TASK, "--mode", "non-thinking", "--thinking-budget", 4), "a thinking budget needs the thinking mode"),
        ((*TASK, "--temperature", -1), "sampling option 'temperature' is -1.0"),
        ((*TASK, "--lookup", 2, "--draft", "x"), "--lookup does not go with --draft"),
        ((*TASK, "--concurrency", 2), "--concurrency has no effect on a checkpoint"),
        ((*TASK, "--output", "/nowhere/run"), "the folder /nowhere does not exist"),
        ((*TASK, "--thinking-budget", 500), "task running_sum, problem 0: thinking_budget is 500"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_sentence(qwen3, folder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = qwen3("eval", "--model", folder, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.strip().count("\n") == 0


def test_options_for_checkpoints_are_refused_with_a_server(qwen3):
    for option in (("--batch-size", 2), ("--quantize", "int8"), ("--dtype", "float32"), ("--mesh", "data=1")):
        code, _, err = qwen3("eval", "--model", "http://127.0.0.1:1/v1", *TASK, *option)
        assert code == 2
        assert f"{option[0]} has no effect on a server" in err
    code, _, err = qwen3("eval", "--model", "http://127.0.0.1:1", *TASK, "--retries", 0)
    assert code == 2
    assert "http://127.0.0.1:1/v1 cannot be asked for its model" in err
    code, _, err = qwen3("eval", "--model", "http://127.0.0.1:1", *TASK, "--api-key-env", "NO_SUCH_KEY")
    assert code == 2
    assert "--api-key-env NO_SUCH_KEY: the environment has no such variable" in err


def test_a_model_that_does_not_think_is_measured_without_and_refused_with_thinking(qwen3, folder, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    (plain / "chat_template.jinja").write_text(template)
    (plain / "checksums.sha256").unlink(missing_ok=True)
    code, _, err = qwen3("eval", "--model", plain, *TASK, "--thinking-budget", 2, "--output", tmp_path / "a")
    assert code == 2
    assert "has no think tags in its vocabulary and chat template; leave it out" in err
    code, _, err = qwen3("eval", "--model", plain, *TASK, "--output", tmp_path / "a", "--json")
    assert code == 0, err
    samples = [json.loads(line) for line in (tmp_path / "a/samples.jsonl").read_text().splitlines()]
    assert {sample["mode"] for sample in samples} == {"non-thinking"}


def test_help_needs_no_jax_and_tasks_are_listed(qwen3):
    code = "import sys; from qwen3_jax.cli.main import main; main(sys.argv[1:])"
    spy = f"import atexit; atexit.register(lambda: print('jax' in sys.modules)); {code}"
    for options in (("--help",), ("compare", "--help"), ("--model", "x", "--taks", "y")):
        command = [sys.executable, "-c", f"import sys; {spy}", "eval", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert done.stdout.splitlines()[-1] == "False", done.stderr
    code, out, _ = qwen3("eval", "tasks")
    assert code == 0
    assert any(line.startswith("running_sum ") for line in out.splitlines())


@pytest.mark.slow
def test_a_command_that_is_killed_or_interrupted_continues(folder, tmp_path):
    """SIGINT and SIGKILL in the middle, then to the end; the whole run gives the same file."""
    options = ["--task-option", "running_sum.problems=16", "--thinking-budget", "none", "8", "--max-new-tokens", "60"]
    command = [sys.executable, "-m", "qwen3_jax.cli", "eval", "--model", folder, "--task", "running_sum", *options]

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, "--batch-size", "2", "--output", str(tmp_path / name)], env=os.environ | FLAGS, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    file, counts = tmp_path / "parts/samples.jsonl", []
    for kind in (signal.SIGINT, signal.SIGKILL):
        process = start("parts")
        goal, deadline = (counts[-1] if counts else 0) + 3, time.monotonic() + 240
        while not file.exists() or file.read_bytes().count(b"\n") < goal:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(kind)
        _, err = process.communicate(timeout=120)
        counts.append(file.read_bytes().count(b"\n"))
        if kind == signal.SIGINT:
            assert process.returncode == 130
            assert (
                f"stopped: {counts[-1]} of 32 samples are in {tmp_path / 'parts'}; the same command continues." in err
            )
    assert counts == sorted(set(counts))
    assert counts[-1] < 32
    for name in ("parts", "whole"):
        process = start(name)
        assert process.wait(600) == 0, process.communicate()
    assert file.read_bytes() == (tmp_path / "whole/samples.jsonl").read_bytes()
