"""`qwen3 data filter` on planted faults: recall of each filter, and good answers lost.

    python -m benchmarks.filters
    python -m benchmarks.filters --count 200 --seed 1 --phrasing 2

`tests/helpers/planted_faults.py` makes the texts. "sorted out" counts a fault whichever filter found it; "by its filter"
only the filter of that name.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qwen3_jax.data import Source
from qwen3_jax.data.factory import FilterTask, filter_records
from tests.helpers.planted_faults import KINDS, planted


def measure(folder: Path, count: int, seed: int, phrasing: int = 0) -> dict[str, tuple[int, int, int]]:
    """Return, by kind of fault and for "good": records, records left out, and records left out by the filter of that name."""
    rows, held_out = planted(count, seed, phrasing=phrasing)
    path, validation = folder / "answers.jsonl", folder / "validation.jsonl"
    path.write_text(
        "".join(json.dumps(record | {"n": n}) + "\n" for n, (_, record) in enumerate(rows)), encoding="utf-8"
    )
    validation.write_text("".join(json.dumps({"question": text}) + "\n" for text in held_out), encoding="utf-8")
    task = FilterTask(verifier="number", held_out=(str(validation),))
    filter_records(Source("answers", str(path)), task, folder / "out")
    kept = {json.loads(line)["n"] for file in (folder / "out/records").glob("*") for line in file.open()}
    reasons = {}
    for line in (folder / "out/rejects.jsonl").open():
        value = json.loads(line)
        reasons[int(value["record"].rpartition(":")[2]) - 1] = value
    totals, left_out, named = Counter(), Counter(), Counter()
    for n, (kind, record) in enumerate(rows):
        totals[kind] += 1
        left_out[kind] += n not in kept
        named[kind] += n in reasons and reasons[n]["outcome"] == kind
        if (n in kept) != (kind == "good"):
            print(f"{kind}: {reasons.get(n, {}).get('reason', 'kept')}: {json.dumps(record, ensure_ascii=False)[:400]}")
    return {kind: (totals[kind], left_out[kind], named[kind]) for kind in (*KINDS, "good")}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="records of each fault (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    parser.add_argument(
        "--phrasing", type=int, choices=[0, 1, 2, 3], default=0,
        help="words of the faults: 0 to 2, which the rules were written with, or 3, which they were not (default: 0)",
    )  # fmt: skip
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = measure(Path(folder), args.count, args.seed, args.phrasing)
        seconds = time.perf_counter() - started
    table = Table("kind", "records", "sorted out", "by its filter")
    for kind, (total, left_out, named) in found.items():
        share = "" if kind == "good" else f"{named / total:.1%}"
        table.add_row(kind, str(total), f"{left_out / total:.1%}", share)
    Console().print(table)
    total = sum(one[0] for one in found.values())
    print(f"{total} records in {seconds:.1f} s, {total / seconds:.0f} per second and process")


if __name__ == "__main__":
    main()
