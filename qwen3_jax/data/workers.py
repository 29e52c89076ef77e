"""Work on the splits of a corpus in this process, or on several cores.

    with start_workers(job, 4) as run:
        for shard in run(prepare_split, pieces):
            ...

Workers are spawned, not forked, since this process may hold JAX's threads; they end when this process does, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from qwen3_jax.data.sources import Split
from qwen3_jax.errors import UserError

RunSplits = Callable[..., Iterator[Any]]
_job: Any = None


@contextmanager
def start_workers(job: Any, processes: int) -> Iterator[RunSplits]:
    """Yield run(work, splits, *extra), which gives the result of work(job, number, split, *extra[number]) for every split, in
    order. The job is pickled once for each process.

    Raises:
        UserError: a worker process was killed, most likely because memory ran out.
    """
    if processes <= 1:
        yield lambda work, pieces, *extra: map(work, [job] * len(pieces), range(len(pieces)), pieces, *extra)
        return
    context = multiprocessing.get_context("spawn")
    ends, here = context.Pipe(duplex=False)  # the parent's end is closed when the parent ends, even if it is killed
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(job, ends))

    def run(work: Callable, pieces: Sequence[Split], *extra: Iterable) -> Iterator[Any]:
        with _no_main():  # map starts the processes
            results = pool.map(_do, [work] * len(pieces), range(len(pieces)), pieces, *extra)
        yield from results

    try:
        yield run
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; use fewer --processes or a smaller "
            "--split-mb (a corpus that a training run prepares: prepare it first, by `qwen3 data prepare`)."
        ) from None
    finally:
        here.close()
        pool.shutdown(cancel_futures=True)


def _begin(job: Any, ends: Connection) -> None:
    global _job
    _job = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for every core
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    threading.Thread(target=_end_with_parent, args=(ends,), daemon=True).start()


def _end_with_parent(ends: Connection) -> None:
    """Exit with the parent: a worker that outlived it would write the same files as the process that resumes the work."""
    wait([ends])
    os._exit(1)


def _do(work: Callable, number: int, split: Split, *extra: Any) -> Any:
    return work(_job, number, split, *extra)


@contextmanager
def _no_main() -> Iterator[None]:
    """Keep multiprocessing from running the caller's script again in every worker, which not every script is written for."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
