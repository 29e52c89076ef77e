"""Programs that attack the sandbox. Each prints "right" where it succeeds; its reason must match the pattern beside it.

python -m tests.sandbox.attacks      # tries all, and prints the verdicts as JSON; the test runs it as a plain user
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMITS = {"seconds": 5.0, "memory_mb": 128, "processes": 16, "file_mb": 4, "output_kb": 64}
SHORT = {**LIMITS, "seconds": 1.0}

ATTACKS = {  # name: the program, what its reason says
    "fork bomb": (
        "import os, time\nfor _ in range(99):\n  if os.fork() == 0: time.sleep(9)\nprint('right')",
        "16 processes|128 MiB",
    ),
    "fork bomb that goes on": (
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "longer|processes|128 MiB",
    ),
    "threads": (
        "import threading, time\n"
        "for _ in range(99): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint('right')",
        "16 processes",
    ),
    "memory bomb": ("x = []\nfor _ in range(900): x.append(b'x' * (1 << 20))\nprint('right')", "128 MiB"),
    "memory at once": ("x = bytearray(1 << 40)\nprint('right')", "MemoryError"),
    "memory of several": (
        "import os, time\nfor _ in range(3): os.fork()\nx = b'x' * (40 << 20)\ntime.sleep(2)\nprint('right')",
        "128 MiB",
    ),
    "memory in a shared mapping": (
        "import mmap\nx = mmap.mmap(-1, 300 << 20)\nfor _ in range(300): x.write(b'x' * (1 << 20))\nprint('right')",
        "128 MiB",
    ),
    "memory in files": ("for i in range(99): open(f'f{i}', 'wb').write(b'x' * (1 << 20))\nprint('right')", "No space"),
    "memory without a name": ("import os\nos.memfd_create('x')\nprint('right')", "not permitted"),
    "endless loop": ("while True: pass", "processor time|longer"),
    "sleep": ("import time\ntime.sleep(99)\nprint('right')", "longer than 1 s"),
    "output without end": ("while True: print('right')", "wrote more than"),
    "errors without end": ("import sys\nwhile True: sys.stderr.write('x' * 999)", "wrote more than"),
    "internet": ("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)\nprint('right')", "not supported"),
    "network of this machine": (
        "import socket\nsocket.socket().connect(('127.0.0.1', 9))\nprint('right')",
        "not supported",
    ),
    "reading the project": (f"print(open({str(ROOT / 'pyproject.toml')!r}).read())\nprint('right')", "No such file"),
    "importing the verifiers": ("import qwen3_jax.verifiers\nprint('right')", "No module named"),
    "reading users": ("print(open('/etc/passwd').read())\nprint('right')", "No such file"),
    "reading the environment": ("import os\nassert 'QWEN3_SECRET' in os.environ\nprint('right')", "AssertionError"),
    "reading the environment of others": (
        "import glob\nassert any('QWEN3_SECRET' in open(f).read() for f in glob.glob('/proc/*/environ'))\nprint('right')",
        "denied|AssertionError",
    ),
    "seeing other processes": ("import os\nassert os.path.exists('/proc/99')\nprint('right')", "AssertionError"),
    "writing to Python": ("import os\nopen(os.__file__, 'a')\nprint('right')", "Read-only|denied"),
    "writing to the root": ("open('/x', 'w')\nprint('right')", "Read-only|denied"),
    "killing the parent": (
        "import os\nfor pid in (os.getppid(), 1, -1):\n  try: os.kill(pid, 9)\n  except OSError: pass\nraise SystemExit(3)",
        "exit code 3|watched it",
    ),
    "looking into the parent": ("print(open('/proc/1/mem', 'rb').read(1))\nprint('right')", "denied|rror"),
    "tracing": (
        "import ctypes\nassert ctypes.CDLL(None).ptrace(16, 1, None, None) == 0\nprint('right')",
        "AssertionError",
    ),
    "mounting": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x10020000) == 0\nprint('right')", "AssertionError"),
    "becoming root": ("import os\nos.setuid(0)\nprint('right')", "not permitted|Invalid argument"),
    "writing a report": (
        "import os\nfor n in range(3, 64):\n  try: os.write(n, b'{}')\n  except OSError: pass\nraise SystemExit(4)",
        "exit code 4",
    ),
    "crash": ("import ctypes\nctypes.string_at(0)\nprint('right')", "signal 11"),
    "outliving the run": (
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    time.sleep(1)\n"
        "    print('right', flush=True)\nos._exit(0)",
        "not 'right'",
    ),
}
TIMED = {"fork bomb that goes on", "endless loop", "sleep"}


def program(name: str, mark: str) -> str:
    """The attack, by processes that this machine shows under the name `mark`."""
    return f"import ctypes\nctypes.CDLL(None).prctl(15, {mark!r}.encode())\n{ATTACKS[name][0]}"


def attempt(name: str, mark: str, isolation: str):
    """The verdict of an attack as an answer that should print "right"."""
    from qwen3_jax.verifiers import verify

    settings = {"isolation": isolation, "limits": SHORT if name in TIMED else LIMITS}
    return verify("code", program(name, mark), {"tests": [{"input": "", "output": "right\n"}]}, settings)


if __name__ == "__main__":
    verdicts = {name: attempt(name, "attack", sys.argv[1]) for name in ATTACKS}
    print(json.dumps({name: [verdict.status, verdict.reason] for name, verdict in verdicts.items()}))
