"""The table of imports in docs/architecture.md, written from the one that tests/test_architecture.py checks.

python -m tests.helpers.architecture_page      # writes the table anew
"""

from pathlib import Path

from tests.test_architecture import ALL_MAY_IMPORT, MAY_IMPORT

PAGE = Path(__file__).parents[2] / "docs/architecture.md"
BEGIN = "<!-- imports: written by tests/helpers/architecture_page.py -->"
END = "<!-- end of imports -->"


def with_table(page: str) -> str:
    """The page with its table written anew from `MAY_IMPORT`."""
    rows = ["| package | may import |", "|---|---|"]
    for package in sorted(MAY_IMPORT, key=lambda name: (len(MAY_IMPORT[name]), name)):
        rows.append(f"| `{package}` | {_names(MAY_IMPORT[package])} |")
    rows.append(f"| every package | {_names(ALL_MAY_IMPORT)} |")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n" + "\n".join(rows) + f"\n\n{END}{after}"


def _names(packages: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(packages)) or "nothing"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
