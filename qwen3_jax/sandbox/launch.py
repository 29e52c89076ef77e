"""The process that isolates one program and watches it. It runs by itself, with the standard library alone:

    python -I -S -c "...; launch.main()" FD        FD: a file that holds the plan, marshalled; see program.py

It imports little: its start is most of what a short program costs.

With namespaces it is three processes: this one, outside; the first of the new process namespace, which builds the file system,
watches memory and processes, and reports; and the program. The end of the first ends every process of its namespace (kernel).
"""

import ctypes
import marshal
import os
import resource
import select
import signal
import sys

NOBODY = 65534
BOX = "/box"
INTERVAL = 0.02  # seconds between two looks at memory and processes

_CLONE_NEW = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_MOUNT_SETATTR, _AT_RECURSIVE = 442, 0x8000
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_libc = ctypes.CDLL(None, use_errno=True)


def main():
    with open(int(sys.argv[1]), "rb") as file:
        plan = marshal.load(file)
    _die_with_parent()
    if os.getppid() != plan["parent"] and plan["isolation"] != "bubblewrap":
        os._exit(1)
    try:
        if plan["isolation"] == "namespaces":
            _enter_namespaces(plan)
        else:
            _supervise(plan)
    except OSError as error:
        _report(plan, failed=str(error))
        os._exit(1)


def _enter_namespaces(plan):
    _new_user_namespace(plan["as_root"])
    alive, outside = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(outside)
        _die_with_parent()
        if select.select([alive], [], [], 0)[0]:  # the end of the process outside came before that
            os._exit(1)
        try:
            _build_root(plan)
            _supervise(plan)
        except OSError as error:
            _report(plan, failed=str(error))
        os._exit(1)
    os.close(plan["report"])
    for descriptor in (0, 1, 2, *plan["keep"]):
        os.close(descriptor)  # their end says that the program has ended
    os.waitpid(first, 0)
    os._exit(0)


def _new_user_namespace(as_root):
    """Enter new namespaces. The program becomes nobody: to the kernel the host's nobody if root started this, else its user."""
    user, group, main = os.getuid(), os.getgid(), os.getpid()
    if not as_root:
        _call(_libc.unshare, _CLONE_NEW)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
        return
    ready, go = os.pipe()
    helper = os.fork()
    if helper == 0:  # maps of several users are written from outside
        os.close(go)
        for name in ("uid_map", "gid_map") if os.read(ready, 1) else ():
            _write(f"/proc/{main}/{name}", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
        os._exit(0)
    _call(_libc.unshare, _CLONE_NEW)
    os.write(go, b".")
    if os.waitpid(helper, 0)[1]:
        raise PermissionError("the users of a new namespace could not be set")
    os.close(ready)
    os.close(go)


def _build_root(plan):
    """A file system of its own: Python and the C library, read-only; an empty working folder; the least of /dev and /proc."""
    os.umask(0o022)
    flags = _MS_NOSUID | _MS_NODEV
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", flags, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    _call(_libc.syscall, _PIVOT_ROOT[os.uname().machine], b"/tmp", b"/tmp/old")
    os.chdir("/")
    for source in plan["visible"]:
        _bind(source)
    for target, link in plan["links"]:
        os.makedirs(os.path.dirname(link), exist_ok=True)
        os.symlink(target, link)
    for device in ("null", "zero", "full", "random", "urandom"):
        _bind(f"/dev/{device}", device=True)
    for folder in plan["hidden"]:
        if os.path.isdir(folder):
            _mount("tmpfs", folder, "tmpfs", flags | _MS_RDONLY, "size=4k,mode=755")
    os.mkdir("/proc")
    try:
        _mount("proc", "/proc", "proc", flags | _MS_NOEXEC)
    except PermissionError:
        os.chmod("/proc", 0o555)  # stays empty, in a container that hides parts of its own /proc
    os.mkdir(BOX)
    _mount("tmpfs", BOX, "tmpfs", flags, f"size={plan['limits']['file_mb']}m,nr_inodes=4096,mode=700")
    _call(_libc.umount2, b"/old", 2)  # MNT_DETACH
    os.rmdir("/old")
    _mount(None, "/", None, flags | _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    _call(_libc.sethostname, b"sandbox", ctypes.c_size_t(7))
    os.chown(BOX, NOBODY, NOBODY)


def _bind(path, device=False):
    source = f"/old{path}"
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    _mount(source, path, None, _MS_BIND | _MS_REC)
    attributes = (ctypes.c_uint64 * 4)(*(_MS_NOSUID | _MS_NOEXEC if device else 1 | _MS_NOSUID | _MS_NODEV, 0, 0, 0))
    _call(_libc.syscall, _MOUNT_SETATTR, -100, path.encode(), _AT_RECURSIVE, attributes, ctypes.c_size_t(32))


def _supervise(plan):
    """Start the program, watch it, report how it ended, and end all that it left. Does not return."""
    _prctl(_PR_SET_DUMPABLE, 0)  # the program can't look into this process
    _prctl(_PR_SET_SUBREAPER, 1)
    os.umask(0o022)
    os.chdir(plan["box"])
    for name, text in plan["files"].items():
        _write(name, text)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    failure, tell = os.pipe()  # the second is closed by exec
    program = os.fork()
    if program == 0:
        try:
            _become_program(plan, tell)
        except BaseException as error:
            os.write(tell, f"{type(error).__name__}: {error}".encode()[:1000])
        finally:
            os._exit(127)
    for descriptor in (0, 1, 2, tell, *plan["keep"]):
        os.close(descriptor)
    failed = os.read(failure, 1000).decode()
    if failed:
        raise OSError(failed)
    _report(plan, started=True)
    status, limit = _watch(program, plan)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = usage.ru_utime + usage.ru_stime
    _report(plan, status=status, limit=limit, cpu=cpu, memory_kb=usage.ru_maxrss)
    if plan["isolation"] != "namespaces":  # there the kernel does
        _end_the_rest(plan)
    os._exit(0)


def _become_program(plan, tell):
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    for name in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(name, signal.SIG_DFL)
    kept = sorted({2, tell, *plan["keep"]})
    for low, high in zip(kept, [*kept[1:], 65536], strict=True):
        os.closerange(low + 1, high)
    if plan["isolation"] == "namespaces" and plan["as_root"]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _set_limits(plan)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if plan["filter"] is not None:
        _install_filter(plan["filter"])
    os.execve(plan["command"][0], plan["command"], plan["environment"])


def _set_limits(plan):
    limits, mega = plan["limits"], 1 << 20
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: (limits["memory_mb"] + 256) * mega,
        resource.RLIMIT_FSIZE: limits["file_mb"] * mega,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if plan["isolation"] == "namespaces":  # elsewhere it would count all processes of the user
        wanted[resource.RLIMIT_NPROC] = limits["processes"] + (0 if plan["as_root"] else 2)
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        above = kind == resource.RLIMIT_CPU and (
            hard == resource.RLIM_INFINITY or value < hard
        )  # first SIGXCPU, then SIGKILL
        resource.setrlimit(kind, (value, value + above))


def _watch(program, plan):
    """Wait for the program; returns its wait status, and the name of the limit that it was killed for or None."""
    limit = None
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, INTERVAL)
        pid = -1
        while pid:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == program:  # what it left counts too: it may have ended between two looks
                return status, limit or _exceeded(plan)
        stopped = select.select([plan["control"]], [], [], 0)[0]  # its other end is closed, or its owner has ended
        limit = limit or ("stopped" if stopped else _exceeded(plan))
        if limit:
            _kill_all(plan)


def _exceeded(plan):
    """The name of a limit that all processes together exceed, or None. No answer where /proc is not there."""
    most, memory, exact, tasks = plan["limits"]["memory_mb"] << 10, 0, 0, 0
    pids = _others(plan)
    for pid in pids:
        try:
            memory += _kilobytes(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:"))
            tasks += len(os.listdir(f"/proc/{pid}/task"))
        except (OSError, ValueError):
            continue  # it has ended
    if memory > most:  # pages that several processes share are in each of their counts
        for pid in pids:
            try:
                exact += _kilobytes(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
            except ProcessLookupError:
                continue  # it has ended
            except (OSError, ValueError):
                if os.path.isdir(f"/proc/{pid}"):  # it is not to be read
                    exact = memory
                    break
    if exact > most:
        return "memory"
    return "processes" if tasks > plan["limits"]["processes"] else None


def _kilobytes(file, names):
    """The sum of some lines of a file of /proc; 0 of a process that has ended and is not waited for."""
    return sum(int(line.split()[1]) for line in _read(file).splitlines() if line.startswith(names))


def _kill_all(plan):
    for pid in _others(plan):
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _others(plan):
    """The processes of the program: all in a process namespace of their own, otherwise the descendants of this one."""
    if plan["isolation"] == "none":
        return _descendants()
    if not os.path.isdir("/proc/1"):
        return []
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]


def _descendants():
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(_read(f"/proc/{name}/stat").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(name))
    reached, waiting = [], [os.getpid()]
    while waiting:
        below = children.get(waiting.pop(), [])
        reached += below
        waiting += below
    return reached


def _end_the_rest(plan):
    """Kill what the program left. Orphans become children of this process (PR_SET_CHILD_SUBREAPER), however they detached."""
    while _others(plan):
        _kill_all(plan)
        try:
            while os.waitpid(-1, 0):
                pass
        except ChildProcessError:
            pass


def _install_filter(code):
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(Program(len(code) // 8, code)))


def _die_with_parent():
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _report(plan, **fields):
    """One line of JSON, without the module: its import costs more than all the rest here."""
    texts = []
    for name, value in fields.items():
        if isinstance(value, str):
            plain = "".join(char if " " <= char <= "~" and char not in '\\"' else "?" for char in value)
            texts.append(f'"{name}": "{plain}"')
        else:
            texts.append(f'"{name}": {"null" if value is None else "true" if value is True else value}')
    os.write(plan["report"], ("{" + ", ".join(texts) + "}\n").encode())


def _read(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _write(path, text):
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(text)


def _mount(source, target, kind, flags, options=None):
    _call(
        _libc.mount, *(text and text.encode() for text in (source, target, kind)), flags, options and options.encode()
    )


def _prctl(option, *arguments):
    _call(_libc.prctl, option, *arguments, *([0] * (4 - len(arguments))))


def _call(function, *arguments):
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    if function(*converted) < 0:
        number = ctypes.get_errno()
        words = [
            getattr(function, "__name__", "system call"),
            *(value.decode() for value in arguments if isinstance(value, bytes)),
        ]
        raise OSError(number, f"{' '.join(words)}: {os.strerror(number)}")
