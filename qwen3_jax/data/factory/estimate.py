"""What a job would cost: a sample of the records is asked first, and the total is told as an interval.

The sample is those records whose 64-bit hashes are smallest, so it is the same for the same corpus, and spread over all of it.
Its answers are recorded like all others: the job that follows does not ask them again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from qwen3_jax.data.factory.asking import Asking, AskOptions
from qwen3_jax.data.factory.budget import Limits
from qwen3_jax.data.factory.job import OpenJob, ask
from qwen3_jax.data.factory.work import sample_key
from qwen3_jax.data.records import DataError
from qwen3_jax.endpoints import Backend, Tokens

_Z = 1.96  # of a normal distribution, for 95%


@dataclass(frozen=True)
class Interval:
    """A mean with 95% of the probability between two ends."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a whole job.

    Attributes:
        records: of the corpus.
        sampled: that were asked.
        prompt, completion, total: tokens of the whole job.
        usd: dollars; None without prices.
        failed: share of the sample's requests that failed, by outcome.
        asking: what asking the sample did.
    """

    records: int
    sampled: int
    prompt: Interval
    completion: Interval
    total: Interval
    usd: Interval | None
    failed: dict[str, float]
    asking: Asking


def estimate(
    opened: OpenJob,
    backend: Backend,
    count: int,
    limits: Limits | None = None,
    options: AskOptions | None = None,
    *,
    visible: bool | None = None,
) -> Estimate:
    """Ask `count` records of a job, and tell what all of them would cost.

    Raises:
        DataError: there are no records, or the budget holds none of the sample.
    """
    limits, options = limits or Limits(), options or AskOptions()
    most_key, records = sample_key(opened.job.source, opened.splits, count)
    sample = dataclasses.replace(opened, job=dataclasses.replace(opened.job, most_key=most_key))
    asking = ask(sample, backend, limits, options, visible=visible)
    used = np.array(asking.used, np.float64).reshape(-1, 2)
    if not len(used):
        raise DataError(f"the budget holds none of the sample: {asking.over_budget}")
    prices = None
    if limits.price_in is not None and limits.price_out is not None:
        per_token = limits.dollars(Tokens(1, 0)), limits.dollars(Tokens(0, 1))
        prices = used @ np.array([float(price or Decimal(0)) for price in per_token])
    asked = max(sum(asking.failed.values()) + asking.sent + asking.replayed, 1)
    return Estimate(
        records, len(used), _scaled(used[:, 0], records), _scaled(used[:, 1], records), _scaled(used.sum(axis=1), records),
        None if prices is None else _scaled(prices, records),
        {name: failed / asked for name, failed in asking.failed.items()}, asking,
    )  # fmt: skip


def _scaled(values: Sequence[float] | np.ndarray, records: int) -> Interval:
    """The sum over all records from those of a sample without repetition; the interval holds at least what the sample used."""
    values = np.asarray(values, np.float64)
    count = len(values)
    middle = float(values.mean()) * records
    if count == 1 or count >= records:
        return Interval(middle, middle, middle) if count >= records else Interval(float(values[0]), middle, math.inf)
    error = float(values.std(ddof=1)) / math.sqrt(count) * math.sqrt(1 - count / records) * records
    return Interval(max(middle - _Z * error, float(values.sum())), middle, middle + _Z * error)
