"""`qwen3 data filter` on planted faults: recall of each filter, and good answers lost.

    python -m benchmarks.filters
    python -m benchmarks.filters --count 200 --seed 1 --phrasing 4
    python -m benchmarks.filters --phrasing 4 --judge http://localhost:8000/v1 --judge-model Qwen3-8B
    python -m benchmarks.filters --phrasing 4 --judge loopback --judge-errors 0.05

`tests/helpers/planted_faults.py` makes the texts. "sorted out" counts a fault whichever filter found it; "by its filter"
only the filter of that name. Without --judge rules decide. The judge "loopback" is a server in this process that knows what was
planted and errs in a share of its answers: it measures the path of the answers, and says nothing about any model.

The last line is about queries that nobody wrote for this: those of reasoning-gym (extra `reasoning`), each of which has one
answer, so that rules which leave them out are wrong.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qwen3_jax.data import Source
from qwen3_jax.data.factory import FilterTask, filter_records, load_recipe
from qwen3_jax.data.factory.judging import READY
from qwen3_jax.data.factory.queries import without_flag
from qwen3_jax.data.factory.query_rules import general_writing, several_parts
from qwen3_jax.endpoints import Endpoint
from tests.helpers import planted_fresh, planted_last
from tests.helpers.fake_endpoint import fake_endpoint
from tests.helpers.planted_faults import KINDS, Row, planted

FRESH = {5: planted_fresh.MAKERS, 6: planted_last.MAKERS}  # by phrasing


def measure(
    folder: Path, count: int, seed: int, phrasing: int = 0, judge: Callable[[list[Row]], Any] | None = None
) -> dict[str, tuple[int, int, int]]:
    """Return, by kind of fault and for "good": records, records left out, and records left out by the filter of that name.

    Args:
        judge: a context manager of the backend that judges, made of the planted rows; None is rules.
    """
    rows, held_out = planted(count, seed, phrasing=phrasing, makers=FRESH.get(phrasing))
    path, validation = folder / "answers.jsonl", folder / "validation.jsonl"
    path.write_text(
        "".join(json.dumps(record | {"n": n}) + "\n" for n, (_, record) in enumerate(rows)), encoding="utf-8"
    )
    validation.write_text("".join(json.dumps({"question": text}) + "\n" for text in held_out), encoding="utf-8")
    recipes = () if judge is None else tuple(load_recipe(name) for name in READY)
    task = FilterTask(verifier="number", held_out=(str(validation),), judges=recipes)
    with contextlib.nullcontext() if judge is None else judge(rows) as backend:
        filter_records(Source("answers", str(path)), task, folder / "out", backend)
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


def loopback(errors: float) -> Callable[[list[Row]], Any]:
    """A judge that knows what was planted, and errs in this share of its labels."""

    def knows(rows: list[Row], body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        asked = prompt.partition("Query:\n")[2]
        fields = body["response_format"]["json_schema"]["schema"]["properties"]
        kinds = {
            kind
            for kind, record in rows
            if asked.startswith(without_flag(record["messages"][0]["content"]))
            and ("guessed" not in fields or record["messages"][-1]["reasoning_content"][-200:] in asked)
        }
        says = {
            "verifiable": True, "several_parts": "several parts" in kinds, "general_writing": "general writing" in kinds,
            "guessed": "guessed" in kinds, "consistent": "inconsistent" not in kinds,
        }  # fmt: skip
        rng = random.Random(prompt)
        wrong = {name: value ^ (rng.random() < errors) for name, value in says.items() if name in fields}
        return json.dumps(wrong | ({"domain": "other"} if "domain" in fields else {}))

    @contextlib.contextmanager
    def judge(rows: list[Row]) -> Iterator[Endpoint]:
        with fake_endpoint(answer=functools.partial(knows, rows)) as server:
            yield Endpoint(server.url, "loopback")

    return judge


def lost_queries(each: int = 3) -> tuple[int, int]:
    """(Queries of reasoning-gym that the rules leave out, all of them)."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    lost = total = 0
    for name in sorted(DATASETS):
        with contextlib.suppress(Exception):  # some need other packages
            queries = [reasoning_gym.create_dataset(name, size=each, seed=1)[i]["question"] for i in range(each)]
            total += each
            lost += sum(bool(several_parts(query) or general_writing(query)) for query in queries)
    return lost, total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="records of each fault (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    parser.add_argument(
        "--phrasing", type=int, choices=range(7), default=0,
        help="words of the faults: 0 to 3, which the rules were written with, 4, which they were not; 5 has other ways "
        "of making them besides, with which rules were mended; 6 has others again (default: 0)",
    )  # fmt: skip
    parser.add_argument("--judge", metavar="URL|loopback", help="who judges queries and responses (default: rules)")
    parser.add_argument("--judge-model", metavar="NAME", help="the model's name there (default: the one that it has)")
    parser.add_argument("--judge-errors", type=float, default=0.05, help="of the loopback (default: 0.05)")
    args = parser.parse_args()
    judge = None
    if args.judge is not None:
        served = args.judge != "loopback"
        judge = (
            (lambda rows: contextlib.nullcontext(Endpoint(args.judge, args.judge_model)))
            if served
            else loopback(args.judge_errors)
        )
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        found = measure(Path(folder), args.count, args.seed, args.phrasing, judge)
        seconds = time.perf_counter() - started
    table = Table("kind", "records", "sorted out", "by its filter")
    for kind, (total, left_out, named) in found.items():
        share = "" if kind == "good" else f"{named / total:.1%}"
        table.add_row(kind, str(total), f"{left_out / total:.1%}", share)
    Console().print(table)
    total = sum(one[0] for one in found.values())
    print(f"{total} records in {seconds:.1f} s, {total / seconds:.0f} per second and process")
    if judge is None and importlib.util.find_spec("reasoning_gym"):
        lost, all_queries = lost_queries()
        print(f"rules for queries leave out {lost} of {all_queries} queries of reasoning-gym")


if __name__ == "__main__":
    main()
