"""Files that come with the package to be used and copied: configs/, examples/, and what notebooks install with.

    configuration_file("configs/quickstart.yaml")     # that file, or the one of the package
    configuration_file("quickstart")                  # the package's

In a checkout they lie at its root; setup.py copies them into a wheel. So the commands of the documentation are the same where
the package was installed without a checkout.
"""

import os
from pathlib import Path

from qwen3_jax.errors import UserError, nearest

_PACKAGE = Path(__file__).parent
FOLDERS = ("configs", "examples")  # what `qwen3 configs --copy` writes


def root() -> Path:
    """Return the folder that holds them."""
    return next((place for place in (_PACKAGE / "shipped", _PACKAGE.parent) if (place / "configs").is_dir()), _PACKAGE)


def shipped_file(name: str | os.PathLike) -> Path:
    """Return a path; of a file of FOLDERS that is not there, as "examples/queries.py", the package's."""
    path = Path(name).expanduser()
    if path.exists() or path.is_absolute() or path.parts[:1] not in [(folder,) for folder in FOLDERS]:
        return path
    own = root() / path
    return own if own.is_file() and ".." not in path.parts else path


def shipped_word(word: str) -> str:
    """Return a word of a command line; where it is a file of FOLDERS that is not there, the package's."""
    return str(shipped_file(word)) if word.startswith(tuple(f"{folder}/" for folder in FOLDERS)) else word


def configuration_file(name: str | os.PathLike) -> Path:
    """Return the file of a configuration: of that path, or of that name among the package's ("posttrain/lora").

    Raises:
        UserError: there is neither.
    """
    if (path := shipped_file(name)).is_file():
        return path
    text, names = os.fspath(name), configuration_names()
    if text in names:
        return root() / "configs" / f"{text}.yaml"
    short = text.removeprefix("configs/").removesuffix(".yaml")
    raise UserError(
        f"the config file {text!r} does not exist.{nearest(short, names)} `qwen3 configs` lists those of the package."
    )


def configuration_names() -> list[str]:
    """Return the names of the package's configurations, as "quickstart" and "pretrain/8b"."""
    folder = root() / "configs"
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
