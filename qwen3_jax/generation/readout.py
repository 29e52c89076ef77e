"""Numbers read from the states of whole texts, batch by batch: what rewards, embeddings and relevance have in common.

    job = embedding_job(model, tokenizer, texts)        # token ids, and what is read
    run(job, Reader(model), batch_size=8)

Texts of like length are computed together, each from its first token to its last, without a cache. They are padded behind
their end, to few sizes; attention is causal, so padding changes nothing, and its states are never read.
"""

import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.model import Qwen3

_BUCKET = 64  # lengths are padded to this times a power of two
MOST_TOKENS = 32_768  # of a batch of several texts: their activations are in memory at once


class Reading(Hashable, Protocol):
    """What is read of the states [R, T, D] of R texts that end before `lengths` [R]: an array [R, ...]. Hashable.

    `starts` [R] is the first token that counts for readings of all tokens.
    """

    def __call__(self, model: Qwen3, states: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array: ...


@dataclass(frozen=True)
class Job:
    """Texts of which something is read.

    Attributes:
        ids: of each text, none of them empty.
        starts: of each text, the first token that counts; None is the first.
        reading: what is read.
        finish: turns what was read, [N, ...], into the result.
    """

    ids: Sequence[Sequence[int]]
    reading: Reading
    starts: Sequence[int] | None = None
    finish: Callable[[np.ndarray], Any] = lambda values: values

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.ids))


@dataclass(frozen=True)
class Batch:
    """Texts that are computed together.

    Attributes:
        places: which texts of the job its first rows are.
        tokens: int32 [R, T].
        starts, lengths: int32 [R]; of rows that are padding 0 and 1.
    """

    places: list[int]
    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray


class Reader:
    """Computes batches with one model, on its devices.

    `prepare` compiles ahead, in any thread; what was not prepared is compiled by `read`.
    """

    def __init__(self, model: Qwen3):
        self.model = model
        self._graphdef, self._state = nnx.split(model)
        self._programs: dict[Any, Any] = {}
        self._lock = threading.Lock()

    def batches(self, job: Job, batch_size: int, most_tokens: int = MOST_TOKENS) -> Iterator[Batch]:
        """Yield a job's batches, the shortest texts first.

        Args:
            job: the texts.
            batch_size: most texts of a batch.
            most_tokens: most tokens of a batch of several texts, with padding.
        """
        order = sorted(range(len(job.ids)), key=lambda place: len(job.ids[place]))
        start = 0
        while start < len(order):
            count = 1
            while start + count < len(order) and count < batch_size:
                if (count + 1) * padded(len(job.ids[order[start + count]])) > most_tokens:
                    break
                count += 1
            places = order[start : start + count]
            yield _batch(job, places, self._rows(count))
            start += count

    def sizes(self, length: int, batch_size: int, most_tokens: int = MOST_TOKENS) -> list[tuple[int, int]]:
        """Return (rows, length) of the smallest and the largest batch of texts of this length; arguments as for `batches`."""
        largest = max(min(batch_size, most_tokens // padded(length)), 1)
        return [(rows, padded(length)) for rows in sorted({self._rows(1), self._rows(largest)})]

    def _rows(self, count: int) -> int:
        """The rows of a batch of `count` texts: a power of two, and a multiple of the parts of the mesh."""
        parts = self.model.execution.placement.parts("batch")
        return -(-_power(count) // parts) * parts

    def prepare(self, reading: Reading, rows: int, length: int) -> None:
        """Compile for batches [rows, length]; nothing to do where that was done."""
        with self._lock:
            if (reading, rows, length) not in self._programs:
                like = jax.ShapeDtypeStruct((rows, length), np.int32), *[jax.ShapeDtypeStruct((rows,), np.int32)] * 2
                self._programs[reading, rows, length] = _read.lower(
                    self._graphdef, reading, self._state, *like
                ).compile()

    def read(self, reading: Reading, batch: Batch) -> np.ndarray:
        """Return what is read of a batch's texts, float32 [len(places), ...]."""
        program = self._programs.get((reading, *batch.tokens.shape))
        inputs = self._state, batch.tokens, batch.starts, batch.lengths
        values = _read(self._graphdef, reading, *inputs) if program is None else program(*inputs)
        return np.asarray(values)[: len(batch.places)]


def run(job: Job, reader: Reader, batch_size: int) -> Any:
    """Compute a job; return its result.

    Raises:
        UserError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    batches = list(reader.batches(job, batch_size))
    return join(job, batches, [reader.read(job.reading, batch) for batch in batches])


def join(job: Job, batches: Sequence[Batch], values: Sequence[np.ndarray]) -> Any:
    """Return the result of a job from what was read of its batches."""
    order = np.concatenate([batch.places for batch in batches])
    return job.finish(np.concatenate(values)[np.argsort(order)])


def checked(
    model: Qwen3, ids: Sequence[int], name: str, param: str | None = None, limit: int | None = None
) -> list[int]:
    """Return token ids that a model can compute whole.

    Raises:
        RequestError: there are none, too many, or one that is not in the vocabulary; named as `name`.
    """
    config = model.config
    if not len(ids):
        raise RequestError(f"{name} has no tokens.", param)
    positions = config.max_position_embeddings
    if len(ids) > positions:
        raise RequestError(
            f"{name} has {len(ids)} tokens; the model has positions for {positions}.", param, too_long=True
        )
    if limit is not None and len(ids) > limit:
        reason = f"{name} has {len(ids)} tokens; the maximum context length is {limit}."
        raise RequestError(reason, param, too_long=True)
    chunks = config.dual_chunk_attention_config
    if chunks is not None and padded(len(ids)) > chunks.chunk:
        reason = (
            f"{name} has {len(ids)} tokens, {padded(len(ids))} with padding; without a cache Dual Chunk Attention takes"
        )
        raise RequestError(f"{reason} {chunks.chunk}: remove dual_chunk_attention_config.", param, too_long=True)
    wrong = next((one for one in ids if not 0 <= one < config.vocab_size), None)
    if wrong is not None:
        raise RequestError(f"{name} has the token {wrong}; ids are from 0 to {config.vocab_size - 1}.", param)
    return [int(one) for one in ids]


def padded(length: int) -> int:
    """Return the length to which a row of this length is padded."""
    return _BUCKET * _power(-(-length // _BUCKET))


def _power(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def _batch(job: Job, places: list[int], rows: int) -> Batch:
    tokens = np.zeros((rows, padded(max(len(job.ids[place]) for place in places))), np.int32)
    starts, lengths = np.zeros(rows, np.int32), np.ones(rows, np.int32)
    for row, place in enumerate(places):
        lengths[row] = len(job.ids[place])
        tokens[row, : lengths[row]] = job.ids[place]
        starts[row] = 0 if job.starts is None else job.starts[place]
    return Batch(places, tokens, starts, lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(graphdef: Any, reading: Reading, state: Any, tokens: Any, starts: Any, lengths: Any) -> jax.Array:
    model = nnx.merge(graphdef, state)
    return reading(model, model.hidden(tokens).states, starts, lengths)


def last_states(states: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return the states [R, D] of the last tokens of texts, of the states [R, T, D]."""
    return jax.numpy.take_along_axis(states, lengths[:, None, None] - 1, axis=1)[:, 0]
