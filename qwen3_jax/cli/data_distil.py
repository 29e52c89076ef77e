"""`qwen3 data distil`: a small student learns the labels that a model gave to a sample, and labels the whole corpus.

qwen3 data annotate --path corpus --sample 5000 --model Qwen/Qwen3-8B --output labelled
qwen3 data distil --labelled labelled/records --labels education field --path corpus --output all-labelled
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from qwen3_jax.cli import background
from qwen3_jax.cli.arguments import Parser, whole_number
from qwen3_jax.cli.factory_options import add_input
from qwen3_jax.progress import doing

if TYPE_CHECKING:
    from qwen3_jax.data.factory.student import Student


def add_distil(parser: Parser) -> None:
    """Add the options of `data distil`."""
    parser.add_argument(
        "--labelled", nargs="+", required=True, metavar="PATH", help="records that a model has annotated"
    )
    parser.add_argument("--labels", nargs="+", required=True, metavar="KEY", help="fields of them to be learned")
    add_input(parser)
    add = parser.add_argument_group("training").add_argument
    add(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of the annotated records, to measure (default: 0.1)",
    )
    add("--epochs", type=whole_number(1), default=12, metavar="N", help="passes over the others (default: 12)")
    add("--seed", type=whole_number(0), default=0, metavar="N", help="of weights, order and choice (default: 0)")
    parser.set_defaults(run=_distil)


def _distil(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from qwen3_jax.data import Cleaning, Source
    from qwen3_jax.data.factory.job import finished, open_job, publish
    from qwen3_jax.data.factory.student import LabelTask, label_split, read_labelled
    from qwen3_jax.data.workers import start_workers

    labelled = read_labelled(Source("labelled", args.labelled, text_key=args.text_key), args.labels)

    def train() -> tuple[Student, dict[str, dict[str, float]]]:
        from qwen3_jax.training.student import train_student

        return train_student(labelled, held_out=args.held_out, epochs=args.epochs, seed=args.seed)

    with doing("training the student"):
        student, measured = background.call(train)
    table = Table("label", "F1", "accuracy", "kappa", "documents held out")
    for name, one in measured.items():
        table.add_row(
            name, f"{one['f1']:.3f}", f"{one['accuracy']:.3f}", f"{one['kappa']:.3f}", f"{one['documents']:,}"
        )
    Console().print(table)
    source = Source(
        name="corpus", path=args.path, format=args.format, text_key=args.text_key,
        cleaning=Cleaning(max_malformed=args.max_malformed),
    )  # fmt: skip
    task = LabelTask(student.digest())
    started = time.monotonic()
    with open_job(source, task, args.output, "", max(int(args.split_mb * 2**20), 1)) as opened:
        if opened.is_done:
            done = finished(opened.job.folder)
        else:
            file = opened.job.folder / "student.npz"
            student.save(file)
            with start_workers(opened.job, min(args.processes, len(opened.splits))) as work:
                done = publish(opened, list(work(label_split, opened.splits, [file] * len(opened.splits))))
    rate = done.counts.made / (time.monotonic() - started) / args.processes
    said = f"{done.counts.made:,} records in {done.records}, {rate:,.0f} per second and process; student.npz has the student"
    print(said, file=sys.stderr)
    return background.leave(0)
