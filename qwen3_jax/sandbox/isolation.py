"""Which isolation this machine gives.

find_isolation()                # the strongest that works here, found by running a program in it
find_isolation("none")          # limits and an own session alone; only where it is asked for by name
"""

import os
import shutil
import sys
from dataclasses import replace

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.sandbox.commands import KINDS, Isolation, Kind
from qwen3_jax.sandbox.program import Program, SandboxFailed
from qwen3_jax.sandbox.seccomp import filter_program

_WORKING: dict[Kind, Isolation] = {}


def find_isolation(wanted: str = "auto") -> Isolation:
    """The isolation that `wanted` names; "auto": bubblewrap where it is installed, otherwise the kernel's own namespaces.

    Root gets the kernel's namespaces first: the program runs as the host's user nobody there, and as root in bubblewrap.

    Raises:
        UserError: it does not work on this machine (says why), or there is no such name.
    """
    if wanted == "auto":
        kinds: tuple[Kind, ...] = ("bubblewrap", "namespaces") if os.geteuid() else ("namespaces", "bubblewrap")
    elif wanted in KINDS:
        kinds = (wanted,)
    else:
        raise UserError(
            f"isolation is {wanted!r}; it must be auto or one of {', '.join(KINDS)}.{nearest(wanted, KINDS)}"
        )
    failures = []
    for kind in kinds:
        found = _try(kind)
        if isinstance(found, Isolation):
            return found
        failures.append(f"{kind}: {found}")
    raise UserError(
        f"programs that models write can't be isolated on this machine ({'; '.join(failures)}); allow user namespaces "
        'or install bubblewrap; isolation="none" runs them with limits alone.'
    )


def _try(kind: Kind) -> Isolation | str:
    """This kind, found to work by running a program in it; or why it does not."""
    if kind in _WORKING:
        return _WORKING[kind]
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return "it is not installed"
    found: Isolation | str = ""
    for nobody in (True, False) if kind == "namespaces" and os.geteuid() == 0 else (False,):
        found = _trial(Isolation(kind, filter_program() is not None, nobody=nobody))
        if isinstance(found, Isolation):
            _WORKING[kind] = found
            break
    return found


def _trial(isolation: Isolation) -> Isolation | str:
    try:
        outcome = Program("import os\nprint('ok', os.path.exists('/proc/self'))", isolation).wait()
    except SandboxFailed as error:
        return str(error)
    if outcome.stdout not in ("ok True\n", "ok False\n"):
        return f"a first program failed: {outcome.reason}"
    return replace(isolation, counts=outcome.stdout == "ok True\n")
