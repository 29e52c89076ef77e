"""The repository's URL is stated once, in pyproject.toml, and copied to the files that are read where pyproject.toml is not.

python -m tests.helpers.repository_url https://github.com/ACCOUNT/qwen3-jax      # writes it everywhere
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIES = sorted(
    path
    for pattern in ("notebooks/*.ipynb", "deploy/*", "docs/*.md", "README.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
PLACE = re.compile(r"github(?:\.com)?/([\w.-]+/qwen3-jax)\b")  # of clones, and of Colab's links


def repository_url() -> str:
    """`project.urls.Repository` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["Repository"]


def stated(text: str) -> set[str]:
    """The accounts and names ("ACCOUNT/qwen3-jax") that a text states."""
    return set(PLACE.findall(text))


def write(url: str) -> None:
    """Replace the URL in pyproject.toml and all copies."""
    match = re.fullmatch(r"https://github\.com/([\w.-]+/qwen3-jax)", url)
    if match is None:
        sys.exit(f"{url} is not https://github.com/ACCOUNT/qwen3-jax")
    for path in (ROOT / "pyproject.toml", *COPIES):
        before = path.read_text("utf-8")
        after = PLACE.sub(lambda found: found[0].replace(found[1], match[1]), before)
        if after != before:
            path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1])
