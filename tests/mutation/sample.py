"""Samples mutants of a package and says which the package's default tests catch.

    pip install -e ".[test,mutation]"
    python -m tests.mutation.sample --package data --count 20 --seed 0

Each mutant (tests/mutation/mutants.py says which there are) is written into a private copy of the checkout, and the tests of
tests/<package> that execute its line run there, cheapest first, up to the first failure. The first call with a package runs
its tests once under coverage. Results are JSON lines (--results, by default in --cache), and a call that is interrupted goes
on from there. A mutant that no test executes is "uncovered"; "stopped" says that --cpu-limit ended the run. Look at every
survivor: some change nothing that can be observed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tests.mutation import runs, session
from tests.mutation.tree import Tree


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--package", nargs="+", default=session.PACKAGES, choices=session.PACKAGES, help="whose mutants (default: all)"
    )
    parser.add_argument("--count", type=int, default=20, help="mutants of each package")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    session.add_arguments(parser)
    options = parser.parse_args(arguments)
    results = session.Results(options.results or options.cache / "sampled.jsonl", options.root)
    runs.prepare(options.cache)
    tree = Tree(options.root)
    try:
        for package in options.package:
            _measure(options, tree, package, results)
    finally:
        tree.close()
    results.print_shares()


def _measure(options: argparse.Namespace, tree: Tree, package: str, results: session.Results) -> None:
    from tests.mutation import mutants  # late: needs the extra, which --help does without

    print(f"{package}: {options.count} mutants, seed {options.seed}", flush=True)
    measured = session.Session(options, tree, package)
    files = [str(f.relative_to(tree.folder)) for f in (tree.folder / "qwen3_jax" / package).rglob("*.py")]
    for mutant, _ in zip(mutants.sample(tree.folder, files, options.seed), range(options.count), strict=False):
        key = f"{options.seed}:{mutant.key}"
        if results.known(key):
            continue
        selection = measured.selection(mutant.path, mutant.statement, mutant.scope, mutant.defines)
        outcome = measured.run(mutant.path, mutant.source, selection)
        row = {"key": key, "package": package, "file": mutant.path, "line": mutant.line, "operator": mutant.operator}
        row["diff"] = session.diff((tree.folder / mutant.path).read_text(), mutant.source)
        results.add(row | outcome)
        print(
            f"{outcome['status']:10}{mutant.path}:{mutant.line} {mutant.operator}  {outcome['killed_by'] or ''}",
            flush=True,
        )
        if outcome["status"] in ("survived", "uncovered"):
            print(row["diff"], flush=True)


if __name__ == "__main__":
    main()
