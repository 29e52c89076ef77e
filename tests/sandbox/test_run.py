"""Programs in the sandbox: what they give back, which isolation is chosen or refused, and what it costs."""

import errno
import os
import resource
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen3_jax import UserError
from qwen3_jax.sandbox import Limits, commands, find_isolation, isolation, run, seccomp
from qwen3_jax.sandbox.program import Program
from tests.sandbox.test_attacks import processes_named


def test_a_program_reads_and_writes_text():
    outcome = run("import sys\nprint(sys.stdin.read()[::-1])\nprint('ü', file=sys.stderr)", stdin="ab\n☃")
    assert (outcome.stdout, outcome.stderr, outcome.ended, outcome.code) == ("☃\nba\n", "ü\n", "exit", 0)
    assert outcome.ok
    assert outcome.cpu_seconds > 0
    assert outcome.memory_kb > 1000


def test_a_program_sees_an_empty_folder_python_and_nothing_else():
    code = (
        "import os, sys, json\nopen('x', 'w').write('1')\n"
        "print(json.dumps([os.getcwd(), sorted(os.listdir()), sorted(os.environ), os.getuid(), sys.argv]))\n"
        "print(sum(len(os.listdir(path)) for path in sys.path if path.endswith('-packages')))"
    )
    for _ in range(2):  # nothing is left of the first
        outcome = run(code)
        assert outcome.stdout == (
            '["/box", ["main.py", "x"], ["HOME", "LANG", "PATH", "PYTHONHASHSEED", "TMPDIR"], 65534, ["main.py"]]\n0\n'
        )


def test_ordinary_programs_find_what_they_use():
    code = (
        "import multiprocessing, subprocess, sys, tempfile, time\n"
        "print(open('/dev/stdin').read(), time.strftime('%Z'))\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "print(subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True, text=True).stdout)\n"
        "if __name__ == '__main__':\n    with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]))\n"
        "exit()"
    )
    outcome = run(code, stdin="in")
    assert outcome.stdout == "in UTC\n5\n\n[1, 2]\n", outcome


def test_what_is_no_text_is_replaced_and_large_input_arrives():
    assert run("import sys\nsys.stdout.buffer.write(b'a\\xff')").stdout == "a\ufffd"
    assert run("print(len(input()))", stdin="x" * 300_000).stdout == "300000\n"
    assert run("print('\ud800')").code == 1  # a lone surrogate in the program is Python's error, not the sandbox's


def test_exit_codes_and_exceptions_are_reasons():
    assert run("raise SystemExit(7)").reason == "it ended with exit code 7"
    assert run("1 / 0").reason == "it ended with exit code 1: ZeroDivisionError: division by zero"
    assert run("def").code == 1


def test_limits_are_checked_by_name():
    with pytest.raises(UserError, match=r"limits\.memory_mb is 1; it must be at least 16"):
        Limits(memory_mb=1)
    with pytest.raises(UserError, match=r"limits\.seconds is inf; it must be above 0 and finite"):
        Limits(seconds=float("inf"))


def test_pages_that_processes_share_count_once():
    forks = "for _ in range(3):\n  if os.fork() == 0:\n    time.sleep(0.3); os._exit(0)\ntime.sleep(0.4)"
    program = f"import os, time\nx = b'x' * (60 << 20)\nif os.fork() == 0: os._exit(0)\n{forks}\nprint(len(x))"
    assert run(program, limits=Limits(memory_mb=128)).stdout == f"{60 << 20}\n"


def test_programs_run_beside_one_another():
    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(lambda number: run("print(int(input()) ** 2)", str(number)), range(12)))
    assert [int(outcome.stdout) for outcome in outcomes] == [number**2 for number in range(12)]


def test_without_isolation_limits_hold_and_no_process_is_left():
    """Only by name. Processes that detach are ended too; the folder goes."""
    mark = f"n{os.getpid()}"
    source = (
        f"import ctypes, os, time\nctypes.CDLL(None).prctl(15, b'{mark}')\nprint(os.getcwd(), flush=True)\n"
        "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)\n{}"
    )
    outcome = run(source.format("time.sleep(0.2)"), isolation="none")
    assert outcome.ok, outcome
    assert not Path(outcome.stdout.strip()).exists()
    assert processes_named(mark) == []
    assert run(source.format("while True: pass"), isolation="none", limits=Limits(seconds=0.5)).ended == "time"
    assert processes_named(mark) == []
    assert "no isolation" in str(find_isolation("none"))


def test_the_isolation_in_force_is_named():
    found = find_isolation()
    assert found.kind in ("bubblewrap", "namespaces")
    assert "namespaces by " in str(found)
    assert "network" in str(found)
    assert found.nobody == (os.geteuid() == 0)
    assert "for each process alone" in str(commands.Isolation("namespaces", True, counts=False))


@pytest.mark.skipif(os.geteuid() != 0, reason="a plain user has no other way")
def test_root_that_knows_no_other_user_is_isolated_as_a_plain_user_is():
    """As in a container that maps one user."""
    as_user = commands.Isolation("namespaces", True, nobody=False)
    outcome = Program("import os\nprint(os.getuid(), os.listdir())\nopen('/etc/passwd')", as_user).wait()
    assert outcome.stdout == "65534 ['main.py']\n"
    assert "No such file" in outcome.reason


def test_where_nothing_isolates_it_refuses_and_says_why(monkeypatch):
    why = {"bubblewrap": "it is not installed", "namespaces": "unshare: Operation not permitted"}
    works = isolation._try
    monkeypatch.setattr(isolation, "_try", lambda kind: why.get(kind) or works(kind))
    with pytest.raises(UserError) as error:
        run("print(1)")
    assert "bubblewrap: it is not installed" in str(error.value)
    assert "namespaces: unshare: Operation not permitted" in str(error.value)
    assert 'isolation="none"' in str(error.value)
    assert run("print(1)", isolation="none").ok


def test_a_kind_that_does_not_work_here_or_is_unknown_is_refused(monkeypatch):
    monkeypatch.setattr(isolation.shutil, "which", lambda name: None)
    monkeypatch.delitem(isolation._WORKING, "bubblewrap", raising=False)
    with pytest.raises(UserError, match="bubblewrap: it is not installed"):
        find_isolation("bubblewrap")
    with pytest.raises(UserError, match=r"isolation is 'namespace'; .* Did you mean 'namespaces'"):
        find_isolation("namespace")


def test_a_plain_user_gets_bubblewrap_where_it_is_installed_and_root_the_kernels_namespaces(monkeypatch):
    monkeypatch.setattr(isolation, "_try", lambda kind: commands.Isolation(kind, True))
    for user, kind in ((0, "namespaces"), (1000, "bubblewrap")):
        monkeypatch.setattr(isolation.os, "geteuid", lambda user=user: user)
        assert find_isolation().kind == kind


def test_bubblewraps_command_hides_what_the_kernels_namespaces_hide():
    command = commands.command("bubblewrap", 9, 16)
    joined = " ".join(command)
    for option in (
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
        "--cap-drop ALL",
        "--proc /proc",
    ):
        assert option in joined
    assert "--size 16777216 --tmpfs /box --chdir /box" in joined
    assert joined.endswith("import launch; launch.main() 9")
    writable = [command[place + 1] for place, word in enumerate(command) if word in ("--bind", "--dev-bind")]
    assert writable == [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    shown = {command[place + 1] for place, word in enumerate(command) if word == "--ro-bind"}
    assert shown == {*commands.visible_files()["visible"], str(commands.LAUNCHER)}
    assert joined.index("--tmpfs /box") < joined.index("--remount-ro / --")


def test_site_packages_and_the_project_are_never_visible():
    files = commands.visible_files()
    project = str(Path(__file__).resolve().parents[2])
    assert (
        not any(project == path or project.startswith(path + "/") for path in files["visible"])
        or project in files["hidden"]
    )
    for folder in {*sys.path} - {""}:
        below = any(folder.startswith(path + "/") for path in files["visible"])
        assert not below or not folder.endswith("site-packages") or folder in files["hidden"]


def run_filter(code, machine, number, first=0, second=0):
    """The action of a BPF program on one system call."""
    data = struct.pack("<iIQQQ", number, seccomp._AUDIT_ARCH[machine], 0, first, second)
    program = list(struct.iter_unpack("<HBBI", code))
    place = value = 0
    while True:
        operation, true, false, operand = program[place]
        place += 1
        if operation == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif operation == 0x06:
            return operand
        else:
            holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
            place += true if holds else false


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_refuses_what_it_names_and_nothing_else(machine, column):
    code = seccomp.assemble(machine)
    allow, refuse = 0x7FFF0000, 0x00050000
    for numbers in seccomp._REFUSED.values():
        assert run_filter(code, machine, numbers[column]) == refuse | errno.EPERM
    assert run_filter(code, machine, 435) == refuse | errno.ENOSYS  # clone3
    clone, socket, ioctl = seccomp._CLONE[column], seccomp._SOCKET[column], seccomp._IOCTL[column]
    assert run_filter(code, machine, clone, 0x3D0F00) == allow  # a thread
    assert run_filter(code, machine, clone, 0x10000000 | 17) == refuse | errno.EPERM  # a user namespace
    assert run_filter(code, machine, socket, 1) == allow
    assert run_filter(code, machine, socket, 2) == refuse | errno.EAFNOSUPPORT
    assert run_filter(code, machine, ioctl, 0, 0x5412) == refuse | errno.EPERM
    assert run_filter(code, machine, ioctl, 0, 0x5401) == allow
    for number in (0, 1, 3, 59, 63, 64, 93, 222, 231):  # read, write, close, execve, mmap, exit on one or the other
        assert run_filter(code, machine, number) == allow
    other = "aarch64" if machine == "x86_64" else "x86_64"
    assert run_filter(seccomp.assemble(other), machine, 0) == 0x80000000
    if machine == "x86_64":
        assert run_filter(code, machine, 0x40000000) == refuse | errno.ENOSYS


@pytest.mark.slow
def test_five_hundred_programs_a_minute_on_two_cores():
    """In processor time, which other work on the machine does not change: 0.24 s for each at that rate."""
    find_isolation()
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with ThreadPoolExecutor(2) as threads:
        outcomes = list(threads.map(lambda number: run("print(int(input()) ** 2)", str(number)), range(200)))
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - began
    assert [int(outcome.stdout) for outcome in outcomes] == [number**2 for number in range(200)]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{cpu / 200 * 1000:.0f} ms of processor time each; {200 / seconds * 60:.0f} programs a minute")
    assert cpu / 200 < 0.24
