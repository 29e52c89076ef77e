"""The first hour: documented commands in a terminal, as someone types them who has just arrived.

    python tests/first_hour.py                 # all cases, some ten minutes; its model is QWEN3_MODEL or a short run's
    python tests/first_hour.py --quick         # each kind of check once, in two to four minutes: what .ci/run does
    python tests/first_hour.py serve train     # the cases whose name contains one of these words
    python tests/first_hour.py --slower 5      # five times the limits, on a machine that does other work

A case fails when its command writes nothing for more than 3 s while it works, needs more than 5 s to end after Ctrl-C or
SIGTERM, prints a traceback or a library's log, dies of a signal that was not sent, or ends with another exit code than
documented. Caches are empty, and nothing of the same priority should run. It needs only the standard library.

Both limits follow the speed of the machine, because no command can write before Python has read it: importing JAX and Flax is
timed first, and where it takes longer than 2 s the limits are longer by that ratio. A case in which nothing but a time was
exceeded is run again, up to twice, and counts as it ends then: another process may have been in the way once.
"""

import argparse
import fcntl
import importlib.util
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SILENCE, ENDING = 3.0, 5.0  # seconds, where the imports take no more than
IMPORTS = 2.0
LONGEST = 400.0  # of one command
STOPPED, TERMINATED = {130, -signal.SIGINT}, {143}  # a shell shows 130 for both: the signal may come after the work
DIES = {143, -signal.SIGTERM}  # of SIGTERM, before there is anything to save
# A traceback; a log of absl (libtpu, XLA); a crash.
UNWANTED = re.compile(
    r"Traceback \(most recent call last\)|^[EWF]\d{4} \d\d:\d\d:\d\d|Fatal Python error|Segmentation", re.M
)
QUESTION = "Add these digits one by one and give the last digit of the sum: a7 b3 c9"
PROMPT = r"> \Z"  # of a chat


class Terminal:
    """A command in a pseudo-terminal of its own, and the longest time in which it wrote nothing while it was waited for."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str], longest: float = LONGEST):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        words = shlex.split(command)
        if words[0] == "python":
            words[0] = sys.executable
        elif words[0] == "qwen3":
            words[:1] = [sys.executable, "-m", "qwen3_jax.cli"]
        self.command, self._master, self._longest = command, master, longest
        self.output, self.silence, self.after = "", 0.0, ""
        self.process = subprocess.Popen(
            words, cwd=folder, env=environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)

    def wait(self, until: Callable[[], bool] | str | None = None, seconds: float | None = None) -> bool:
        """Read until a condition holds, a pattern is in the output, or the command ends; False after `seconds`."""
        seconds = self._longest if seconds is None else seconds
        started = last = time.monotonic()
        while True:
            before = self.output
            wrote = self._read()
            now = time.monotonic()
            if now - last > self.silence:
                self.silence, self.after = now - last, before.strip()[-60:]
            last = now if wrote else last
            ended = self.process.poll() is not None
            if ended and not wrote:
                return until is None
            if until is not None and (until() if callable(until) else re.search(until, self.output)):
                return True
            if now - started > seconds:
                return False

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.1)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the command has ended
            time.sleep(0.05)
            return False
        self.output += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))
        return bool(data)

    def type(self, text: str) -> None:
        """Send keys; "\\x03" is Ctrl-C."""
        os.write(self._master, text.encode())

    def end(self, how: str, limit: float) -> float:
        """Press Ctrl-C or send SIGTERM; return the seconds until the command has ended, at most four times the limit."""
        started, silence = time.monotonic(), self.silence
        if how == "Ctrl-C":
            self.type("\x03")
        else:
            self.process.send_signal(signal.SIGTERM)
        self.wait(None, 4 * limit)
        self.silence = silence  # `limit` holds instead
        return time.monotonic() - started

    def close(self) -> None:
        """Kill what is left of the command."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._master)


@dataclass
class Hour:
    """The place of all cases, and what went wrong in them.

    Attributes:
        work: an empty folder; commands run in a copy of a checkout's layout below it.
        silence, ending, longest: the limits of silence, of the end after a signal, and of a command, in seconds.
        quick: each kind of check once.
        failures: one line each.
        late: those of them that only say that a limit was exceeded.
        model: the folder of the quickstart's model, absolute or below the checkout.
    """

    work: Path
    silence: float = SILENCE
    ending: float = ENDING
    longest: float = LONGEST
    quick: bool = False
    failures: list[str] = field(default_factory=list)
    late: set[str] = field(default_factory=set)
    model: str = ""

    def __post_init__(self):
        self.checkout = self.work / "checkout"
        self.checkout.mkdir()
        for name in ("train.py", "infer.py", "configs", "examples", "README.md", "docs"):
            (self.checkout / name).symlink_to(ROOT / name)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_", "HF_", "TPU_"))}
        # No cache of an earlier hour, and no network: a hub that refuses connections.
        home = {"HOME": str(self.work / "home"), "HF_ENDPOINT": "http://127.0.0.1:9", "TERM": "xterm-256color"}
        self.environment = kept | home | {"PYTHONPATH": str(ROOT)}
        for name in ("XDG_CACHE_HOME", "COLUMNS", "LINES", "CI", "PYTHONUNBUFFERED"):
            self.environment.pop(name, None)
        (self.work / "home").mkdir()

    def fresh(self, folder: str) -> str:
        """Return a folder below the checkout, with which nothing has been done yet."""
        shutil.rmtree(self.checkout / folder, ignore_errors=True)
        return folder

    def start(self, command: str, **environment: str) -> Terminal:
        """Start a command in the checkout."""
        return Terminal(command, self.checkout, self.environment | environment, self.longest)

    def judge(self, terminal: Terminal, codes: set[int], note: str = "", ending: float = 0.0) -> None:
        """Check a command that has ended, or was asked to end `ending` seconds ago, and print a line about it."""
        code, found, late = terminal.process.poll(), [], []
        unwanted = UNWANTED.search(terminal.output)
        if unwanted:
            found.append(f"printed {terminal.output[unwanted.start() :][:300]!r}")
        if terminal.silence > self.silence:
            late.append(f"silent for {terminal.silence:.1f} s after {terminal.after!r}")
        if ending > self.ending:
            late.append(f"still there {ending:.1f} s after the signal")
        if code not in codes and not (ending > self.ending and code is None):
            found.append(
                f"exit code {code}, not {' or '.join(map(str, sorted(codes)))}: {terminal.output.strip()[-300:]!r}"
            )
        terminal.close()
        line = f"{terminal.command}{f' ({note})' if note else ''}"
        print(
            f"{'FAILED' if found or late else 'ok':6} silent {terminal.silence:4.1f} s, ended in {ending:4.1f} s  {line}",
            flush=True,
        )
        for problem in found + late:
            print(f"       {problem}", flush=True)
        self.failures += [f"{line}: {problem}" for problem in found + late]
        self.late |= {f"{line}: {problem}" for problem in late}

    def run(self, command: str, codes: set[int] | None = None) -> str:
        """Run a command to its end and judge it; return what it wrote."""
        terminal = self.start(command)
        terminal.wait()
        self.judge(terminal, codes or {0})
        return terminal.output

    def stop(
        self, command: str, how: str, when: float | Callable[[], bool] | str, codes: set[int], note: str = ""
    ) -> None:
        """Start a command and end it, after some seconds or when a condition holds. It compiles everything anew."""
        terminal = self.start(command, QWEN3_COMPILE_CACHE="off")
        if isinstance(when, float):
            terminal.wait(lambda: False, when)
        elif not terminal.wait(when) and terminal.process.poll() not in codes:
            self.failures.append(f"{command}: never came to where it should be stopped")
        at = f"{how} after {when:g} s" if isinstance(when, float) else f"{how} {note}"
        self.judge(terminal, codes, at, terminal.end(how, self.ending))


TRAIN = (
    "python train.py --config configs/quickstart.yaml --run_dir {run} --steps=40 --log_every=2 --eval_every=20"
    " --checkpoint_every=20 --optimizer.warmup_steps=10 --budget_curve.budgets=[0,8] --budget_curve.problems=20"
)
COMPILES = r"compiling"  # what a bar or a status line says


def lines_of(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines()) if path.exists() else 0


def train(hour: Hour) -> None:
    """The quickstart, shortened."""
    hour.run(TRAIN.format(run=hour.fresh("runs/quickstart")))
    hour.run("qwen3 report runs/quickstart")


def train_is_stopped(hour: Hour) -> None:
    # Preparing data takes half a minute; quick runs do it once.
    train = TRAIN + (f" --data.cache={hour.work / 'prepared'}" if hour.quick else "")
    for seconds in (2.0,) if hour.quick else (0.5, 2.0, 5.0):
        hour.stop(train.format(run=hour.fresh("runs/early")), "Ctrl-C", seconds, STOPPED)
    if not hour.quick:
        hour.stop(train.format(run=hour.fresh("runs/early")), "SIGTERM", 2.0, DIES)
    hour.stop(train.format(run=hour.fresh("runs/early")), "SIGTERM", COMPILES, DIES, "while it compiles")
    for how, codes in (("Ctrl-C", STOPPED), ("SIGTERM", TERMINATED))[: 1 if hour.quick else 2]:
        folder = hour.checkout / hour.fresh(f"runs/{how}")
        command = train.format(run=f"runs/{how}").replace("--checkpoint_every=20", "--checkpoint_every=1000")
        command = command.replace("--steps=40", "--steps=100000")
        hour.stop(command, how, lambda folder=folder: lines_of(folder / "metrics.jsonl") > 1, codes, "while it trains")
        if not [path for path in folder.glob("checkpoints/*") if path.name.isdecimal()]:
            hour.failures.append(f"{command}: {how} saved no checkpoint")


def answer(hour: Hour) -> None:
    hour.run(f'python infer.py --model {hour.model} --prompt "{QUESTION}" --thinking-budget 32 --max-new-tokens 100')
    if not hour.quick:
        hour.run(f'qwen3 run {hour.model} "What is 7 * 8?" --max-new-tokens 40')


def answer_is_stopped(hour: Hour) -> None:
    command = f'python infer.py --model {hour.model} --prompt "{QUESTION}" --max-new-tokens 900'
    for seconds in (0.5,) if hour.quick else (0.5, 2.0, 4.0, 6.0):
        hour.stop(command, "Ctrl-C", seconds, STOPPED | {0})  # 0: it had answered
    hour.stop(command, "SIGTERM", COMPILES, DIES | {0}, "while it compiles")
    # The model thinks "a7:7 b3:0"; one that was trained for 40 steps may write anything, and answer to its end.
    hour.stop(command, "Ctrl-C", r"\w\d:\d", STOPPED | {0}, "while it answers")
    if hour.quick:
        return
    terminal = hour.start(command)
    terminal.wait(lambda: False, 3.0)
    terminal.type("\x03")
    terminal.wait(lambda: False, 0.3)
    hour.judge(terminal, STOPPED | {0}, "Ctrl-C twice", terminal.end("Ctrl-C", hour.ending))


def chat(hour: Hour) -> None:
    terminal = hour.start(f"python infer.py --model {hour.model} --chat --max-new-tokens 60")
    terminal.wait(PROMPT)
    questions = 1 if hour.quick else 2
    for _ in range(questions):
        terminal.type(f"{QUESTION}\r")
        terminal.wait(lambda: False, 0.5)  # the echo ends with a prompt too
        terminal.wait(PROMPT)
    terminal.type("\x04")
    terminal.wait(None, hour.ending)
    hour.judge(terminal, {0}, f"{questions} questions, Ctrl-D")


def serve(hour: Hour) -> None:
    """Warm-up on, to the first answer."""
    command = f"qwen3 serve --model {hour.model} --port 0 --rows 4"
    hour.stop(command, "SIGTERM", COMPILES, DIES | {0}, "while it compiles")
    for how, codes in () if hour.quick else (("Ctrl-C", STOPPED | {0}), ("SIGTERM", DIES | {0})):
        for when in (1.0, 8.0):
            hour.stop(command, how, when, codes)
    terminal = hour.start(command)
    terminal.wait(r"http://[\w.]+:\d+")
    url = re.search(r"http://[\w.]+:\d+", terminal.output)
    if url and terminal.wait(lambda: reply(f"{url[0]}/ready") is not None):
        body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20}
        if reply(f"{url[0]}/v1/chat/completions", body) is None:
            hour.failures.append(f"{command}: no answer once it is ready")
    if not hour.quick and not terminal.wait(r"ready after"):
        hour.failures.append(f"{command}: does not say when it is ready")
    hour.judge(terminal, STOPPED | {0}, "Ctrl-C when it answers", terminal.end("Ctrl-C", hour.ending))


def reply(url: str, body: dict | None = None) -> bytes | None:
    """The body of an answer with status 200, or None."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
            return answer.read()
    except OSError:
        return None


def data(hour: Hour) -> None:
    tokenizer = hour.fresh("tokenizer")
    if hour.quick:
        (hour.checkout / hour.fresh("corpus")).mkdir()
        for page in (ROOT / "docs").glob("*.md"):
            (hour.checkout / "corpus" / f"{page.stem}.txt").write_text(page.read_text("utf-8"), "utf-8")
        source, label = "corpus/*.txt", "--domain docs"
    else:
        hour.run(f"python examples/collect_corpus.py --output {hour.fresh('corpus')} --domains code docs --max-mb 1")
        source, label = "corpus/*.jsonl", "--domain-key domain"
    hour.run(f"qwen3 tokenizer train --input '{source}' --vocab-size 2000 --output {tokenizer}")
    prepare = (
        f"qwen3 data prepare --path corpus --tokenizer tokenizer --output {hour.fresh('prepared/machine')} {label}"
    )
    for how, codes in (("Ctrl-C", STOPPED), ("SIGTERM", DIES))[: 1 if hour.quick else 2]:
        hour.stop(prepare + " --duplicates near", how, 1.5, codes | {0})
    hour.run(prepare + " --duplicates near")
    hour.run("qwen3 data show prepared/machine --row 4096")


def plan(hour: Hour) -> None:
    command = "qwen3 plan --config configs/scale/qwen3-0.6b.yaml --topology v5e:2x2"
    if importlib.util.find_spec("libtpu") is None:
        hour.run(command, {2})
        return
    hour.stop(command, "Ctrl-C", COMPILES, STOPPED, "while it compiles")
    if hour.quick:
        return
    hour.run(command)
    for how, codes in (("Ctrl-C", STOPPED), ("SIGTERM", DIES)):
        hour.stop("python train.py --config configs/scale/qwen3-0.6b.yaml --plan v5e:2x2", how, COMPILES, codes)


def help_and_mistakes(hour: Hour) -> None:
    """What is printed without any work, and commands in the wrong order: one sentence, exit code 2."""
    helped = (
        "python train.py --help",
        "qwen3 --version",
        "qwen3 --help",
        "qwen3 serve --help",
        "qwen3 data prepare --help",
    )
    for command in helped[: 2 if hour.quick else None]:
        hour.run(command)
    mistakes = (
        "python infer.py --model Qwen/Qwen3-0.6B --prompt Hello",  # without a network
        "python train.py --config configs/pretrain/laptop.yaml",
        "qwen3 serve --model runs/none/hf",
        "python infer.py --model runs/none/hf --prompt Hello",
        "qwen3 report runs/none",
        "qwen3 convert runs/none out --to hf",
        "qwen3 data show prepared/none",
        "qwen3 data prepare --path none --tokenizer none --output prepared/none",
        "python train.py --config configs/none.yaml",
        "qwen3 plan --config configs/scale/qwen3-0.6b.yaml --topology v5e:2",
    )
    for command in mistakes[: 3 if hour.quick else None]:
        hour.run(command, {2})


CASES = (help_and_mistakes, train, train_is_stopped, answer, answer_is_stopped, chat, serve, data, plan)
NEED_A_MODEL = (answer, answer_is_stopped, chat, serve)


def slowness(environment: dict[str, str]) -> float:
    """How much longer than IMPORTS this machine takes to import JAX and Flax; 1 for a faster one. The better of two times."""
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import jax, flax.nnx"], env=environment, check=True)
        seconds.append(time.monotonic() - started)
    return max(1.0, min(seconds) / IMPORTS)


def run_case(hour: Hour, case: Callable[[Hour], None]) -> None:
    """Run a case; up to twice more, while nothing but a limit of time was exceeded."""
    before = list(hour.failures)
    case(hour)
    for _ in range(2):
        new = hour.failures[len(before) :]
        if not new or not hour.late.issuperset(new):
            return
        print(f"-- {case.__name__} again, since only times were exceeded", flush=True)
        hour.failures = list(before)
        case(hour)


def main(words: list[str]) -> int:
    """Run the cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names of cases (default: all cases)")
    parser.add_argument("--quick", action="store_true", help="each kind of check once")
    parser.add_argument("--slower", type=float, default=1.0, metavar="N", help="multiply both limits")
    args = parser.parse_args(words)
    # A shell ignores Ctrl-C in what it starts in the background, and commands would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = [case for case in CASES if not args.words or any(word in case.__name__ for word in args.words)]
    if not chosen:
        print(
            f"no case has one of these words; the cases are {', '.join(case.__name__ for case in CASES)}",
            file=sys.stderr,
        )
        return 2
    model = os.environ.get("QWEN3_MODEL")
    if args.quick and model and not args.words:
        chosen.remove(train)  # which made the model
    if not model and set(chosen) & set(NEED_A_MODEL) and train not in chosen:
        chosen.insert(0, train)
    with tempfile.TemporaryDirectory() as work:
        hour = Hour(Path(work), quick=args.quick, model=str(Path(model).absolute()) if model else "runs/quickstart/hf")
        ratio = slowness(hour.environment) * args.slower
        hour.silence, hour.ending, hour.longest = SILENCE * ratio, ENDING * ratio, LONGEST * ratio
        started, load = time.monotonic(), os.getloadavg()[0]
        print(f"limits: {hour.silence:.1f} s of silence, {hour.ending:.1f} s to end", flush=True)
        if load > 1.5:
            print(f"other work is running (a load of {load:.1f}): these times say little", flush=True)
        for case in chosen:
            print(f"-- {case.__name__} ({time.monotonic() - started:.0f} s)", flush=True)
            run_case(hour, case)
        print(
            f"{len(hour.failures)} failures in {time.monotonic() - started:.0f} s",
            *hour.failures,
            sep="\n  ",
            flush=True,
        )
        return 1 if hour.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
