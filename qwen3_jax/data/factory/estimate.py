"""What a job would cost: a sample is asked first, and the total is told as an interval.

The sample consists of units (see `Task`): records, or queries with all their answers, since these share what is asked about the
query. They are those whose 64-bit hashes are smallest, so the sample is the same for the same corpus, and spread over all of
it. Its answers are recorded like all others: the job that follows does not ask them again.

The estimate is the mean of the sampled units times the number of units. Its expectation over samples is what all answers
of the job use: what equal requests share, and what verification and rules leave unasked, is counted as it is. The interval is
Student's, for units drawn without repetition. It knows nothing of what is too rare to occur in the sample.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from qwen3_jax.data.factory.asking import Asking, AskOptions, Usage
from qwen3_jax.data.factory.budget import Limits
from qwen3_jax.data.factory.job import OpenJob, ask
from qwen3_jax.data.factory.work import sample_of
from qwen3_jax.data.records import DataError
from qwen3_jax.endpoints import Backend, Tokens

_INSIDE = 0.95  # probability of an interval


@dataclass(frozen=True)
class Interval:
    """An estimate between the two ends of its 95% interval."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Purpose:
    """What a job asks for one purpose, such as answers, or the labels of one judge.

    Attributes:
        requests: different ones, with those that ask for an invalid answer again.
        prompt, completion: their tokens.
        left_out: records about which nothing is asked, since they are left out before or have what would be asked for.
    """

    requests: Interval
    prompt: Interval
    completion: Interval
    left_out: Interval


@dataclass(frozen=True)
class Estimate:
    """The cost of a whole job.

    Attributes:
        units: what the sample consists of: "records" or "queries".
        records, of_units: number of records and of units in the corpus.
        sampled: units that were asked.
        purposes: by name.
        requests, prompt, completion, total: of the whole job, for all purposes.
        doubtful: tokens, at most, of tries that bring no counts and may be paid; None where there were none.
        usd: dollars for `total`; None without prices.
        failed: share of the sample's requests that failed, by outcome.
        asking: what asking the sample did.
    """

    units: str
    records: int
    of_units: int
    sampled: int
    purposes: dict[str, Purpose]
    requests: Interval
    prompt: Interval
    completion: Interval
    total: Interval
    doubtful: Interval | None
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
    """Ask about `count` units of a job, and tell what all of them would cost.

    Raises:
        DataError: there are no records, or the budget holds none of the sample.
    """
    limits, options = limits or Limits(), options or AskOptions()
    sample = sample_of(opened.job.source, opened.job.task, opened.splits, count)
    job = dataclasses.replace(opened.job, most_unit=sample.most_unit)
    usage: dict[int, Usage] = {}
    asking = ask(dataclasses.replace(opened, job=job), backend, limits, options, usage=usage, visible=visible)
    whole = [used for unit, used in usage.items() if used.records == sample.sizes[unit]]
    if not whole or (asking.over_budget and not any(used.requests for used in whole)):
        raise DataError(f"the budget holds none of the sample: {asking.over_budget}")

    def scaled(value: Callable[[Usage], float]) -> Interval:
        return _scaled([value(used) for used in whole], sample.units)

    names = sorted({name for used in whole for counts in (used.requests, used.left_out) for name in counts})
    prices = None if limits.price_in is None or limits.price_out is None else _prices(limits)
    doubtful = scaled(lambda used: used.doubtful.total)
    return Estimate(
        units=opened.job.task.units, records=sample.records, of_units=sample.units, sampled=len(whole),
        purposes={name: _purpose(name, scaled) for name in names},
        requests=scaled(lambda used: used.requests.total()), prompt=scaled(lambda used: used.prompt.total()),
        completion=scaled(lambda used: used.completion.total()),
        total=scaled(lambda used: used.prompt.total() + used.completion.total()),
        doubtful=doubtful if doubtful.middle else None,
        usd=None if prices is None else scaled(
            lambda used: used.prompt.total() * prices[0] + used.completion.total() * prices[1]),
        failed={name: failed / max(asking.settled, 1) for name, failed in asking.failed.items()}, asking=asking,
    )  # fmt: skip


def _purpose(name: str, scaled: Callable[[Callable[[Usage], float]], Interval]) -> Purpose:
    def of(read: Callable[[Usage], Mapping[str, int] | Counter[str]]) -> Interval:
        return scaled(lambda used: read(used).get(name, 0))

    return Purpose(
        of(lambda used: used.requests), of(lambda used: used.prompt), of(lambda used: used.completion),
        of(lambda used: used.left_out),
    )  # fmt: skip


def _prices(limits: Limits) -> tuple[float, float]:
    """Dollars for a token of a prompt and of an answer."""
    each = limits.dollars(Tokens(1, 0)), limits.dollars(Tokens(0, 1))
    return float(each[0] or Decimal(0)), float(each[1] or Decimal(0))


def _scaled(values: Sequence[float] | np.ndarray, units: int) -> Interval:
    """The sum over all units from those of a sample without repetition; the interval holds at least what the sample used."""
    from scipy import stats

    values = np.asarray(values, np.float64)
    count = len(values)
    middle = float(values.sum()) * units / count
    if count == 1 or count >= units:
        return Interval(middle, middle, middle) if count >= units else Interval(float(values[0]), middle, math.inf)
    error = float(values.std(ddof=1)) / math.sqrt(count) * math.sqrt(1 - count / units) * units
    width = float(stats.t.ppf((1 + _INSIDE) / 2, count - 1)) * error
    return Interval(max(middle - width, float(values.sum())), middle, middle + width)
