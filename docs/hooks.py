"""MkDocs hooks: two pages that lie outside docs/, and links to files that are in the repository but not on the site."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # file -> page of the site
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that GitHub wants at the root."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at pages of the site; a link to another file of the repository becomes the file's path."""
    outside = next((source for source, name in OUTSIDE.items() if name == page.file.src_uri), None)
    folder = PurePosixPath(outside or f"docs/{page.file.src_uri}").parent

    def replace(link: re.Match[str]) -> str:
        label, target, anchor = link[1], normpath(str(folder / link[2])), link[3] or ""
        name = OUTSIDE.get(target) or target.removeprefix("docs/")
        if files.get_file_from_path(name):
            return f"[{label}]({relpath(name, str(PurePosixPath(page.file.src_uri).parent))}{anchor})"
        if not (ROOT / target).exists():
            return link[0]  # MkDocs reports it
        if config.repo_url:
            return f"[{label}]({config.repo_url.rstrip('/')}/blob/main/{target}{anchor})"
        return label if label.strip("`") == target else f"{label} (`{target}`)"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)  # code blocks stay as they are
    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)
