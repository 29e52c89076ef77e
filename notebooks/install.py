"""Make the project importable in the running kernel and install what it needs; the first cell of each notebook calls it.

In a checkout that is the checkout. A fresh editable install is seen by new processes only, so it also goes to the front of
`sys.path`: no restart. Where the package is installed without a checkout, this file lies in it, and only packages are added.
"""

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)
NAME = "qwen3-jax"
CHECKOUT = (ROOT / "pyproject.toml").is_file()


def install(*extras: str) -> Path:
    """Install the project with these extras into this kernel's Python, if it or a package that it needs is not there yet.

    Returns:
        The folder for `runs/`: the checkout, or the current folder.

    Raises:
        RuntimeError: this Python is too old, or pip failed (it has printed why).
    """
    if sys.version_info < OLDEST_PYTHON:
        raise RuntimeError(f"this kernel runs Python {sys.version.split()[0]}; {NAME} needs 3.11 or later.")
    if CHECKOUT and str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    missing = list(dict.fromkeys(_missing(extras)))
    if missing:
        source = f"{NAME} from {ROOT}" if CHECKOUT else "packages"
        print(f"installing {source} (the first time this takes minutes): {', '.join(missing)}", flush=True)
        before = _versions()
        if CHECKOUT:
            _pip("install", "-q", "-e", f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT))
        else:
            _pip("install", "-q", *missing)
        importlib.invalidate_caches()
        _say_what_needs_a_restart(before)
    print(f"{NAME} is ready: {ROOT}")
    return ROOT if CHECKOUT else Path.cwd()


def _missing(extras: tuple[str, ...]) -> Iterator[str]:
    """Yield the requirements of the project that are not met."""
    if not CHECKOUT:
        for extra in ("", *extras):
            yield from _unmet(importlib.metadata.requires(NAME) or [], extra)
        return
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    try:
        importlib.metadata.version(project["name"])
    except importlib.metadata.PackageNotFoundError:
        yield project["name"]
    optional = project["optional-dependencies"]
    yield from _unmet([*project["dependencies"], *(text for extra in extras for text in optional[extra])])


def _unmet(requirements: list[str], extra: str = "") -> Iterator[str]:
    from packaging.requirements import Requirement  # ipykernel needs packaging

    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        requirement.marker = None
        try:
            found = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield str(requirement)
            continue
        if not requirement.specifier.contains(found.version, prereleases=True):
            yield str(requirement)
        for inner in requirement.extras:  # jax[tpu]: what jax lists for the extra `tpu`
            yield from _unmet([text for text in found.requires or () if "extra" in text], inner)


def _pip(*arguments: str) -> None:
    if importlib.util.find_spec("pip") is None:  # environments that uv makes
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True)
    command = [sys.executable, "-m", "pip", *arguments]
    if subprocess.run(command).returncode:
        raise RuntimeError(f"{' '.join(command)} failed; its message is above.")


def _versions() -> dict[str, str]:
    return {found.name: found.version for found in importlib.metadata.distributions() if found.name}


def _say_what_needs_a_restart(before: dict[str, str]) -> None:
    """Name packages that pip replaced after this kernel had imported them."""
    after = _versions()
    changed = {name for name, version in before.items() if after.get(name, version) != version}
    modules = importlib.metadata.packages_distributions()
    used = sorted(changed & {name for module in list(sys.modules) for name in modules.get(module, ())})
    if used:
        print(f"restart the kernel and run this cell again: {', '.join(used)} changed while in use.", flush=True)
