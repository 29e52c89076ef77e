"""What the documentation tells a reader to type (code blocks; commands in blocks, running text and configurations); links."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
_COMMAND = re.compile(r"(?:python|qwen3|pip|mkdocs) ")
_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]*\b|folder|model\.gguf|\.\.\.")  # FILE, RUN, DIR|ID: a form, not a command
_OTHERS = (
    "sglang",
    "sgl_jax",
    "convert_hf_to_gguf",
    "mlx_lm",
    "xprof",
    "pre-commit",
    "pytorch.org",
)  # of other projects


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> dict[str, list[list[str]]]:
    """The commands of every page and configuration, as words; a command that stands in several places is listed once."""
    lines = [(page.name, line) for page in PAGES for block in blocks(page, "bash") for line in _joined(block)]
    for page in PAGES:  # blocks of other programs' commands, in which ours stand
        launches = re.findall(r"python train\.py[^'#\n]*", "\n".join(blocks(page, "sh")))
        lines += [(page.name, line.strip().replace("CONFIG", "configs/quickstart.yaml")) for line in launches]
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        inline = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose) if _COMMAND.match(text)]
        lines += [(page.name, text) for text in inline if len(text.split()) > 2 and not _PLACEHOLDER.search(text)]
    for config in CONFIGS:
        comments = [
            line.removeprefix("#").strip() for line in config.read_text("utf-8").splitlines() if line.startswith("# ")
        ]
        lines += [(config.name, line) for line in _joined("\n".join(comments)) if _COMMAND.match(line)]
    first: dict[str, str] = {}
    for where, line in lines:
        if not any(word in line for word in _OTHERS):
            first.setdefault(line, where)
    pages: dict[str, list[list[str]]] = {}
    for line, where in first.items():
        pages.setdefault(where, []).append(shlex.split(line))
    return pages


def _joined(text: str) -> list[str]:
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [re.split(r"\s{2,}#", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def links(page: Path) -> list[str]:
    """Targets of a page's links within the repository, code left out."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\((?!https?://)([^)\s]+)\)", prose)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
