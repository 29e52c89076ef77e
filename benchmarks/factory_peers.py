"""The data factory against bespokelabs-curator and data-designer: one endpoint, one job, one run.

    python -m venv ENV && ENV/bin/pip install bespokelabs-curator        # likewise data-designer, in an environment of its own
    python -m benchmarks.factory_peers --curator ENV/bin/python --designer ENV2/bin/python --rounds 3

Everyone asks the same questions of the endpoint of `benchmarks/counting_endpoint.py`, which takes --seconds for an answer and
counts. Whole jobs alternate. "requests/s" is from the first request to the last reply, as the endpoint sees it; "CPU ms" the
processor time of the whole command, its start included, for each request.

Then every job is killed with -9 when half of the questions are answered, and started again. "repeated" are answers that the
endpoint gave again (those "in flight" at the kill cannot be avoided), "same key" those of them that came with the
Idempotency-Key of the first, "lost" questions without an answer in the result; of the tokens that the endpoint "served", the
last command "reported", and ours says how many it may have been "at most".
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
JOBS = Path(__file__).parent / "factory_jobs"
OURS = "qwen3-jax"
_START = "import sys; from qwen3_jax.cli.main import main; sys.exit(main())"


class Job(NamedTuple):
    """What everyone does.

    Attributes:
        questions: JSON Lines.
        url: of the endpoint.
        concurrency: requests at a time.
        peers: by name, the Python that has it.
    """

    questions: Path
    url: str
    concurrency: int
    peers: dict[str, str]

    @property
    def count(self) -> int:
        """Questions."""
        return len(self.questions.read_text().splitlines())

    def command(self, name: str, folder: Path) -> list[str]:
        """The command line of one contestant."""
        if name != OURS:
            program = JOBS / f"{name}_job.py"
            return [self.peers[name], str(program), str(self.questions), self.url, str(self.concurrency), str(folder)]
        return [
            sys.executable, "-c", _START, "data", "generate", "--path", str(self.questions), "--model", self.url,
            "--endpoint-model", "m", "--mode", "non-thinking", "--max-new-tokens", "128", "--concurrency",
            str(self.concurrency), "--output", str(folder),
        ]  # fmt: skip

    def start(self, name: str, folder: Path) -> subprocess.Popen:
        """Run it in a process group of its own."""
        log = (folder.parent / f"{folder.name}.log").open("ab")
        environment = os.environ | {"PYTHONPATH": str(ROOT) if name == OURS else ""}
        return subprocess.Popen(
            self.command(name, folder),
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder.parent,
            start_new_session=True,
        )


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curator", metavar="PYTHON", help="that has bespokelabs-curator")
    parser.add_argument("--designer", metavar="PYTHON", help="that has data-designer")
    parser.add_argument("--questions", type=int, default=1000, help="of the job (default: 1000)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests at a time (default: 64)")
    parser.add_argument("--seconds", type=float, default=0.1, help="that an answer takes (default: 0.1)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (default: 3)")
    args = parser.parse_args()
    peers = {name: path for name in ("curator", "designer") if (path := getattr(args, name))}
    with tempfile.TemporaryDirectory() as folder, endpoint(args.seconds) as url:
        questions = Path(folder) / "questions.jsonl"
        lines = [json.dumps({"question": f"Q{i}: how much is {i} plus {i}?"}) for i in range(args.questions)]
        questions.write_text("\n".join(lines) + "\n")
        job = Job(questions, url, args.concurrency, peers)
        names = [OURS, *peers]
        work = Path(folder)
        rounds = [{name: whole(job, name, work / f"{name}-{turn}") for name in names} for turn in range(args.rounds)]
        show_rates(args, peers, rounds)
        kills = [
            {name: killed(job, name, work / f"{name}-kill-{turn}") for name in names} for turn in range(args.rounds)
        ]
    show_kills(kills)


def whole(job: Job, name: str, folder: Path) -> dict[str, float]:
    """Run a job to its end; return requests per second, CPU milliseconds for each, and seconds of the command."""
    call(f"{job.url}/reset")
    folder.mkdir()
    started = time.perf_counter()
    process = job.start(name, folder)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    check(process.returncode, name, folder)
    counts = call(f"{job.url}/counts")
    served = sum(counts["served"].values())
    missing = job.count - len(answered(name, folder))
    if missing:
        raise SystemExit(f"{name}: {missing} questions have no answer")
    return {
        "rate": served / counts["seconds"], "cpu": 1000 * (used.ru_utime + used.ru_stime) / served, "seconds": seconds,
        "most": counts["most"],
    }  # fmt: skip


def killed(job: Job, name: str, folder: Path) -> dict[str, Any]:
    """Kill a job when half of its questions are answered, start it again; return what was repeated, lost and reported."""
    call(f"{job.url}/reset")
    folder.mkdir()
    process = job.start(name, folder)
    arrived = at_kill = 0
    while process.poll() is None and at_kill < job.count // 2:
        counts = call(f"{job.url}/counts")
        arrived, at_kill = (sum(counts[name].values()) for name in ("arrived", "served"))
    if process.poll() is not None:
        check(process.returncode, name, folder)
        raise SystemExit(f"{name} had ended before half of its questions were answered")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = job.start(name, folder)
    check(again.wait(), name, folder)
    counts = call(f"{job.url}/counts")
    repeated = sum(times - 1 for times in counts["served"].values())
    prompt, completion, at_most = reported(name, folder)
    served = counts["prompt_tokens"] + counts["completion_tokens"]
    return {
        "answered": at_kill, "in flight": arrived - at_kill, "repeated": repeated, "same key": counts["same_key"],
        "lost": job.count - len(answered(name, folder)), "served": served, "reported": prompt + completion, "at most": at_most,
    }  # fmt: skip


def answered(name: str, folder: Path) -> set[str]:
    """The questions that have an answer in the result."""
    files = sorted((folder / "records").glob("*")) if name == OURS else [folder / "answers.jsonl"]
    rows = [json.loads(line) for file in files if file.exists() for line in file.open()]
    if name == OURS:
        return {row["messages"][0]["content"].partition(":")[0] for row in rows}
    return {row["question"].partition(":")[0] for row in rows if row.get("answer")}


def reported(name: str, folder: Path) -> tuple[int, int, int]:
    """Prompt and completion tokens that the command reports, and the most that it says may have been paid."""
    if name != OURS:
        prompt, completion = json.loads((folder / "tokens.json").read_text())
        return prompt, completion, prompt + completion
    cost = json.loads((folder / "cost.json").read_text())
    doubtful = cost["without_counts"]
    sure = cost["prompt_tokens"], cost["completion_tokens"]
    return *sure, sum(sure) + doubtful["prompt_tokens_at_most"] + doubtful["completion_tokens_at_most"]


def check(code: int, name: str, folder: Path) -> None:
    """End with the log of a command that failed."""
    if code:
        raise SystemExit(f"{name} ended with {code}: {(folder.parent / f'{folder.name}.log').read_text()[-2000:]}")


@contextmanager
def endpoint(seconds: float) -> Iterator[str]:
    """Yield the address of an endpoint in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks/counting_endpoint.py"), "--seconds", str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def call(url: str) -> Any:
    """GET as JSON; the endpoint's own routes lie beside /v1."""
    with urllib.request.urlopen(url.replace("/v1/", "/")) as reply:
        return json.loads(reply.read())


def show_rates(args: argparse.Namespace, peers: dict[str, str], rounds: list[dict]) -> None:
    """Print the medians."""

    def middle(name: str, what: str) -> float:
        return statistics.median(one[name][what] for one in rounds)

    title = f"{args.questions} questions, {args.concurrency} at a time, {args.seconds} s each; medians of {args.rounds}"
    table = Table("", "requests/s", "ratio", "CPU ms", "whole command, s", "most at a time", title=title)
    for name in (OURS, *peers):
        rate = middle(name, "rate")
        table.add_row(
            name + (f" {version(peers[name], name)}" if name in peers else ""), f"{rate:.0f}",
            f"{rate / middle(OURS, 'rate'):.2f}x", f"{middle(name, 'cpu'):.2f}", f"{middle(name, 'seconds'):.1f}",
            f"{middle(name, 'most'):.0f}",
        )  # fmt: skip
    Console(width=120).print(table)
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    load = os.getloadavg()[0]
    print(
        f"{cpu.partition(': ')[2]}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}",
        flush=True,
    )


def show_kills(kills: list[dict]) -> None:
    """Print the kills one by one."""
    keys = ("answered", "in flight", "repeated", "same key", "lost", "served", "reported", "at most")
    table = Table("killed", *keys)
    for one in kills:
        for name, row in one.items():
            table.add_row(name, *(f"{row[key]:,}" for key in keys))
    Console(width=120).print(table)


def version(python: str, name: str) -> str:
    """Of a peer."""
    package = {"curator": "bespokelabs-curator", "designer": "data-designer"}[name]
    program = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
