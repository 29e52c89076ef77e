"""The commands that run a program in each kind of isolation, and what it sees of this machine."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["bubblewrap", "namespaces", "none"]
KINDS: tuple[Kind, ...] = ("bubblewrap", "namespaces", "none")
BOX = "/box"
LAUNCHER = Path(__file__).with_name("launch.py")
_LAUNCHER_INSIDE = "/launch.py"
_DEVICES = ("null", "zero", "full", "random", "urandom")


@dataclass(frozen=True)
class Isolation:
    """What keeps a program from the rest of the machine.

    Attributes:
        kind: "bubblewrap", "namespaces" (the kernel's, without a helper) or "none".
        seccomp: whether system calls are filtered.
        counts: whether memory and processes of all that a program starts are counted together; not where a container hides
            parts of its /proc. Then the kernel's limits for each process are left.
        nobody: whether the program is the host's user nobody, otherwise the user that starts it. Root can do that, if all users
            are known where it runs.
    """

    kind: Kind
    seccomp: bool
    counts: bool = True
    nobody: bool = False

    def __str__(self) -> str:
        filtered = "seccomp filter" if self.seccomp else "no seccomp filter"
        filtered += "" if self.counts else ", memory limited for each process alone"
        if self.kind == "none":
            return f"no isolation: the program sees files and network as its user does; limits, {filtered}"
        by = "bubblewrap" if self.kind == "bubblewrap" else "the kernel"
        user = "nobody" if self.nobody else "the user that starts it"
        return (
            f"namespaces by {by} (user, mount, process, network, IPC, host name, cgroup), as {user}, limits, {filtered}"
        )


@functools.cache
def python() -> str:
    """The interpreter that runs programs: this one's, outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def visible_files() -> dict[str, Any]:
    """What a program sees of this machine: Python and the C library, nothing that was installed besides, not this package.

    Returns:
        `visible`, folders and files; `links`, (target, link); `hidden`, folders among the visible.
    """
    prefix = os.path.realpath(sys.base_prefix)
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}  # not those of a virtual environment
    standard = {os.path.realpath(sysconfig.get_path(name, vars=base)) for name in ("stdlib", "platstdlib")}
    wanted = ["/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache", f"{prefix}/lib", *sorted(standard), python()]
    links = []
    for name in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(name):
            links.append((os.readlink(name), name))
        else:
            wanted.append(name)
    visible: list[str] = []
    for path in sorted(filter(os.path.exists, wanted), key=len):
        if not any(_is_below(path, other) for other in visible):
            visible.append(path)
    package = str(Path(__file__).resolve().parents[2])  # the project, or where it is installed
    hidden = {package}
    for folder in {*standard, *(f"{root}/python3" for root in visible)}:
        hidden |= {f"{folder}/site-packages", f"{folder}/dist-packages"}
    hidden = {path for path in hidden if os.path.isdir(path) and any(_is_below(path, root) for root in visible)}
    links += [(f"/proc/self/fd/{number}", f"/dev/{name}") for number, name in enumerate(("stdin", "stdout", "stderr"))]
    links += [("/proc/self/fd", "/dev/fd"), (BOX, "/dev/shm")]
    links += [] if any(_is_below(path, "/tmp") for path in visible) else [(BOX, "/tmp")]  # Python may lie there
    return {"visible": visible, "links": links, "hidden": sorted(hidden)}


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def command(kind: Kind, plan_file: int, file_mb: int) -> list[str]:
    """The command that starts launch.py.

    Args:
        plan_file: the descriptor of its plan, which it inherits.
        file_mb: size of the working folder in MiB.
    """
    folder = "/" if kind == "bubblewrap" else str(LAUNCHER.parent)
    code = f"import sys; sys.path.append({folder!r}); import launch; launch.main()"  # imported, it is compiled once
    launch = [python(), "-I", "-S", "-c", code, str(plan_file)]
    return launch if kind != "bubblewrap" else [*_bubblewrap(file_mb), "--", *launch]


def _bubblewrap(file_mb: int) -> list[str]:
    """bwrap(1) with the same view of the machine that launch.py builds."""
    files = visible_files()
    arguments = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--die-with-parent", "--new-session",
        "--clearenv", "--cap-drop", "ALL", "--hostname", "sandbox",
    ]  # fmt: skip
    for path in files["visible"]:
        arguments += ["--ro-bind", path, path]
    for path in files["hidden"]:
        arguments += ["--tmpfs", path, "--remount-ro", path]
    for device in _DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for target, link in files["links"]:
        arguments += ["--symlink", target, link]
    arguments += ["--proc", "/proc", "--size", str(file_mb << 20), "--tmpfs", BOX, "--chdir", BOX]
    return [*arguments, "--ro-bind", str(LAUNCHER), _LAUNCHER_INSIDE, "--remount-ro", "/"]


def start(arguments: Sequence[str], stdin: int, keep: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start it in a session of its own, without this process's environment or working folder."""
    return subprocess.Popen(
        arguments,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=keep,
        env={},
        cwd="/",
        start_new_session=True,
    )
