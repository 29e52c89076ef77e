"""The configurations that come with the package: list them, print one, or copy all of them to edit.

    qwen3 configs
    qwen3 configs posttrain/lora
    qwen3 configs --copy work

`--config` of train, plan, scaling and mixture takes their names, and in place of a file that is not there their paths in the
repository: `qwen3 train --config configs/quickstart.yaml` works in an empty folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qwen3_jax.cli.arguments import Parser
from qwen3_jax.cli.exit_codes import guarded
from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import written_whole
from qwen3_jax.paths import local_path
from qwen3_jax.shipped import FOLDERS, configuration_file, configuration_names, root
from qwen3_jax.text_files import read_text


def main(argv: list[str] | None = None, prog: str = "qwen3 configs") -> int:
    """List, print or copy; return the exit code."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("name", nargs="?", help="print this configuration")
    parser.add_argument("--copy", metavar="FOLDER", help="write configs/ and examples/ there; files that differ stay")
    args = parser.parse_args(argv)
    return guarded(prog, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.copy is not None:
        if args.name is not None:
            raise UserError(f"--copy copies all files; leave {args.name!r} out.")
        return _copy(local_path(args.copy, "--copy"))
    if args.name is not None:
        print(read_text(configuration_file(args.name)), end="")
        return 0
    names = configuration_names()
    width = max(map(len, names))
    for name in names:
        first = read_text(configuration_file(root() / f"configs/{name}.yaml")).partition("\n")[0]
        print(f"{name:<{width}}  {first.lstrip('# ')}")
    return 0


def _copy(folder: Path) -> int:
    """Copy the files.

    Raises:
        UserError: a file is there with other contents; nothing has been written.
    """
    sources = [
        file for name in FOLDERS for file in sorted((root() / name).rglob("*")) if file.suffix in (".yaml", ".py")
    ]
    targets = [(file, folder / file.relative_to(root())) for file in sources]
    for file, target in targets:
        if target.exists() and target.read_bytes() != file.read_bytes():
            raise UserError(
                f"{target} is there and differs from the package's; move it away, or copy to another folder."
            )
    for file, target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(target) as temporary:
            temporary.write_bytes(file.read_bytes())
    print(f"{len(targets)} files in {' and '.join(str(folder / name) for name in FOLDERS)}")
    return 0
