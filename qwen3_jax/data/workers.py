"""Work on the splits of a corpus in this process, or on several cores.

    with workers(job, 4) as run:
        for shard in run(prepare_split, pieces):
            ...

Workers are spawned, not forked, since this process may hold JAX's threads; they end when this process does, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from qwen3_jax.data.shards import Job
from qwen3_jax.data.sources import Split
from qwen3_jax.errors import UserError

Run = Callable[..., Iterator[Any]]
_job: Job | None = None


@contextmanager
def workers(job: Job, processes: int) -> Iterator[Run]:
    """Yield run(work, splits, *extra), which gives the result of work(job, number, split, *extra[number]) for every split, in
    order.

    Raises:
        UserError: a process was killed from outside, for want of memory most likely.
    """
    if processes <= 1:
        yield lambda work, pieces, *extra: map(work, [job] * len(pieces), range(len(pieces)), pieces, *extra)
        return
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(job,)
    ) as pool:

        def run(work: Callable, pieces: Sequence[Split], *extra: Iterable) -> Iterator[Any]:
            with _no_main():  # map starts the processes
                results = pool.map(_do, [work] * len(pieces), range(len(pieces)), pieces, *extra)
            yield from results

        try:
            yield run
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, most likely for want of memory; prepare with fewer processes, or smaller splits."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(job: Job) -> None:
    global _job
    _job = job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for every core
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that outlives a killed parent would go on writing beside the one that takes up its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
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
