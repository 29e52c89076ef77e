"""Continuous batching: many requests share one model and one cache, and each comes and goes by itself.

    engine = Engine(model, rows=32)
    number = engine.submit(Request(prompt=(151644, 872, ...), sampling=Sampling(temperature=0), max_new_tokens=256))
    while engine.busy:
        for token in engine.step():                         # schedule -> run -> postprocess
            token.number, token.id, token.finish

Invariant: what a request gets depends on its prompt, settings and seed alone, not on what else runs, on how its prompt was
cut, on whether it had to make room or on which of its tokens were guessed (up to the rounding of differently shaped products).

Nothing is compiled after `warm_up`, whatever comes: every shape is one of a few.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from qwen3_jax.errors import UserError
from qwen3_jax.generation import program
from qwen3_jax.generation.clock import Clock
from qwen3_jax.generation.program import MAX_EOS, Output, Progress, Settings, size_of
from qwen3_jax.generation.requests import Job, Request, Stats, Token, job_of
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.generation.scheduler import Decode, Prefill, Scheduler
from qwen3_jax.generation.speculation import DraftModel, PromptLookup, Speculation
from qwen3_jax.kernels import CacheType, free_memory, page_size
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import progress_bar

_LEAST_TOKENS = 16  # of a prompt's part: shorter ones are filled up
_FIRST_TOKENS = 512  # per row, of a cache that grows
_PREFILL_ROWS = 8  # texts whose prompts are computed together


class Engine:
    """A model that answers many requests at once.

    Args:
        model: on any mesh.
        rows: requests that decode together; over the mesh axes of the batch it is divided, rounded up.
        cache_tokens: tokens that the cache holds, of all requests together; also divided. With None it starts small and doubles
            whenever it is full, up to `rows` requests of `max_length` or what memory there is; every time is compiled anew.
        max_length: tokens of the longest request, prompt and answer; None is the model's context.
        prefill_chunk: tokens of prompts computed at a time; between two chunks running requests get a token.
        decode_steps: tokens that running requests generate between two looks at what waits.
        prefix_cache: share the keys and values of equal beginnings.
        speculation: guess tokens and check several at a time.
        cache_type: "int8" or "fp8" keys and values, with a scale for each token and head; None is the compute type.
        slots_per_page: tokens per page; None is what suits the platform.

    Attributes:
        rows: as given, rounded up to what the mesh and the compiled sizes have.
        max_length: tokens of the longest request.
        stats: what has been done.

    Raises:
        UserError: an option that cannot be, by name.
    """

    def __init__(
        self,
        model: Qwen3,
        *,
        rows: int = 32,
        cache_tokens: int | None = None,
        max_length: int | None = None,
        prefill_chunk: int = 512,
        decode_steps: int = 8,
        prefix_cache: bool = True,
        speculation: Speculation | None = None,
        cache_type: CacheType | None = None,
        slots_per_page: int | None = None,
    ):
        for name, value, least in (
            ("rows", rows, 1), ("cache_tokens", cache_tokens, 1), ("max_length", max_length, 2),
            ("prefill_chunk", prefill_chunk, _LEAST_TOKENS), ("decode_steps", decode_steps, 1),
            ("slots_per_page", slots_per_page, 1),
        ):  # fmt: skip
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UserError(f"engine option {name!r} is {value!r}; it must be a whole number, {least} or more.")
        context = model.config.max_position_embeddings
        if max_length is not None and max_length > context:
            raise UserError(
                f"engine option 'max_length' is {max_length}; the model's maximum context length is {context}."
            )
        if prefill_chunk & (prefill_chunk - 1):
            raise UserError(f"engine option 'prefill_chunk' is {prefill_chunk}; it must be a power of two.")
        if isinstance(speculation, DraftModel) and speculation.model.config.vocab_size != model.config.vocab_size:
            raise UserError(
                f"the draft model has {speculation.model.config.vocab_size} vocabulary rows and the model "
                f"{model.config.vocab_size}; a draft model needs the same vocabulary."
            )
        self.model = model
        self.stats = Stats()
        self.speculation = speculation
        self._models = (model, speculation.model) if isinstance(speculation, DraftModel) else (model,)
        self._shards = model.placement.parts("batch")
        self._rows = size_of(-(-rows // self._shards))
        self.rows = self._shards * self._rows
        size = slots_per_page or page_size(model.placement)
        max_length = max_length or context
        self._width = -(-max_length // size)
        self._graphdefs, self._params = zip(*(nnx.split(m) for m in self._models), strict=True)
        if cache_tokens is None:
            self._most_pages = self._affordable(size, cache_type, 1 + self._rows * self._width)
            pages = min(1 + max(self._rows * _FIRST_TOKENS // size, 1), self._most_pages)
        else:
            pages = self._most_pages = 1 + max(cache_tokens // self._shards // size, 1)
        self.max_length = min(max_length, (self._most_pages - 1) * size)
        self._prefill_rows = min(_PREFILL_ROWS, self._rows)
        self._scheduler: Scheduler[Job] = Scheduler(
            shards=self._shards,
            pages=pages,
            page_size=size,
            rows=self._rows,
            chunk=prefill_chunk,
            chunk_rows=self._prefill_rows,
            steps=decode_steps if speculation is None else speculation.guesses + 1,
            prefix_cache=prefix_cache,
            more=self._double,
        )
        self._state = program.begin(self._graphdefs, self._shards, self._rows, pages, size, cache_type, self._params)
        if model.placement.mesh is None:
            # Where the parameters are for good: what a program makes of both is, and would compile the program once more.
            self._state = jax.device_put(self._state, *jax.tree.leaves(self._params)[0].devices())
        self._pages = pages
        self._slots = list(range(self.rows))
        self._jobs: dict[int, Job] = {}
        self._guessed = 0
        self._empty = job_of(Request((0,), Sampling(temperature=0, seed=0), 1), model, len(self._slots))
        self._empty.progress = self._empty.progress.replace(active=np.zeros(1, bool))
        self._settings: tuple[tuple[int, ...], Settings] | None = None

    def _affordable(self, size: int, cache_type: CacheType | None, pages: int) -> int:
        """So many pages, or as many as half of the free memory holds: while it grows, the old ones are there as well."""
        free = free_memory(self.model.placement)
        if free is None:
            return pages
        if jax.process_count() > 1:  # all must decide alike
            from jax.experimental.multihost_utils import process_allgather

            free = int(process_allgather(np.asarray(free)).min())
        page = program.begin.eval_shape(self._graphdefs, self._shards, 1, 1, size, cache_type, self._params)
        split = self._shards * self.model.placement.parts("kv_heads")
        bytes_of_page = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((page.groups, page.draft))) // split
        return max(min(pages, int(free * 0.5) // bytes_of_page), 2)

    def _double(self) -> int | None:
        """Make the cache twice as large, if it may; return its pages."""
        if self._pages == self._most_pages:
            return None
        before, self._pages = self._pages, min(2 * self._pages, self._most_pages)
        self._state = program.extend(self._state, before, self._pages)
        return self._pages

    @property
    def cache_usage(self) -> tuple[int, int]:
        """Pages that requests hold, and pages that there are; of all shards."""
        pools = self._scheduler.pools
        return sum(pool.held for pool in pools), len(pools) * (self._pages - 1)

    @property
    def busy(self) -> bool:
        """Whether any request is not finished."""
        return bool(self._jobs)

    @property
    def waiting(self) -> int:
        """Requests that have no room yet."""
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Requests that have room."""
        return len(self._jobs) - self.waiting

    def submit(self, request: Request) -> int:
        """Let a request wait its turn; return its number.

        Raises:
            UserError: an empty prompt, ids out of range, a budget without ids to count by, or more than the cache holds.
        """
        vocabulary, length = self.model.config.vocab_size, len(request.prompt)
        if not request.prompt or not all(0 <= token < vocabulary for token in request.prompt):
            raise UserError(f"a request needs at least one token in its prompt, and ids from 0 to {vocabulary - 1}.")
        if request.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {request.max_new_tokens}; it must be 1 or more.")
        beyond = [token for token in request.sampling.logit_bias if token >= vocabulary]
        if beyond:
            raise UserError(f"sampling option 'logit_bias' has token {beyond[0]}; the last one is {vocabulary - 1}.")
        if length + request.max_new_tokens > self.max_length:
            raise UserError(
                f"a request of {length} prompt tokens and max_new_tokens={request.max_new_tokens} exceeds this engine's "
                f"maximum context length of {self.max_length} tokens."
            )
        if request.tokens.start < 0 and (request.budget is not None or request.thinking):
            raise UserError("a request has a thinking budget; it then needs `tokens`, see ThinkingTokens.of.")
        if len(request.eos) > MAX_EOS:
            raise UserError(f"a request has {len(request.eos)} end tokens; it may have {MAX_EOS}.")
        job = job_of(request, self.model, len(self._slots))
        self._scheduler.add(job)
        self._jobs[job.number] = job
        return job.number

    def cancel(self, number: int) -> None:
        """Drop a request; its pages are free at once. A finished or unknown one is ignored."""
        job = self._jobs.pop(number, None)
        if job is not None:
            self._scheduler.remove(job)
            self._give_slot_back(job)

    def step(self) -> list[Token]:
        """Compute the next part of a prompt, or the next tokens of all running requests; return what is new."""
        plan = self._scheduler.schedule()
        self._make_room()
        if plan is None:
            return []
        clock = Clock()
        jobs, progress, output = self._prefill(plan) if isinstance(plan, Prefill) else self._decode(plan)
        clock.dispatched()
        progress, output = self._fetch(jobs, progress, output)
        running, compiling = clock.stop()
        if self._guessed:
            self.stats.guessed += self._guessed
            self.stats.accepted += int(
                np.maximum(output.valid.sum(axis=0) - 1, 0).sum()
            )  # the last one taken is no guess
            self._guessed = 0
        tokens = self._postprocess(jobs, progress, output)
        self.stats.compile_seconds += compiling
        if isinstance(plan, Prefill):
            self.stats.prefill_seconds += running
        else:
            self.stats.decode_seconds += running
            self.stats.decode_tokens += len(tokens)
        return tokens

    def warm_up(self, *, constraints: bool = False) -> None:
        """Compile everything that requests may need, so that none of them waits for it; a bar counts the programs.

        `constraints`: some of them will have one.
        """
        shards, most = self._shards, self._scheduler.steps
        widths = _sizes(_LEAST_TOKENS, self._scheduler.chunk)
        prefills = [(rows, width) for rows in sorted({1, self._prefill_rows}) for width in widths]
        decodes = _sizes(1, self._rows)
        guesses = 0 if self.speculation is None else self.speculation.guesses
        kinds = ["plain", *["guesses"] * (guesses > 0), *["constrained"] * constraints]
        with progress_bar("compiling", len(prefills) + len(decodes) * len(kinds) + 1, visible=None) as bar:
            for rows, width in prefills:
                jobs = [None] * (shards * rows)
                tokens, counts = np.zeros((shards, width), np.int32), np.zeros((shards, rows), np.int32)
                rest = *self._rows_of(jobs), tokens, counts, self._tables(jobs)
                self._state, *_ = program.prefill(self._graphdefs, self._params, self._state, *rest)
                bar.advance()
            for rows in decodes:
                jobs = [None] * (shards * rows)
                for kind in kinds:
                    arrays = self._params, self._state, *self._rows_of(jobs), self._tables(jobs)
                    if kind == "guesses":
                        guess = np.full((len(jobs), guesses), -1, np.int32)
                        self._state, *_ = program.verify(self._graphdefs, guesses, *arrays, guess)
                    else:
                        allowed = self._nothing_allowed(len(jobs)) if kind == "constrained" else None
                        self._state, *_ = program.decode(self._graphdefs, most, *arrays, np.int32(1), allowed)
                    bar.advance()
            nothing = np.zeros(self.model.config.vocab_size, np.int16)
            self._state = program.enter(self._state, np.int32(0), nothing.astype(bool), nothing)
            bar.advance()

    # ---- run ---------------------------------------------------------------------------------------------------------

    def _prefill(self, plan: Prefill[Job]):
        rows = 1 if max(map(len, plan.parts)) == 1 else self._prefill_rows
        width = size_of(max(sum(count for _, count in parts) for parts in plan.parts), _LEAST_TOKENS)
        tokens = np.zeros((self._shards, width), np.int32)
        counts = np.zeros((self._shards, rows), np.int32)
        jobs: list[Job | None] = [None] * (self._shards * rows)
        ends = np.zeros(len(jobs), bool)
        for shard, parts in enumerate(plan.parts):
            start = 0
            for row, (job, count) in enumerate(parts):
                tokens[shard, start : start + count] = job.tokens[job.computed : job.computed + count]
                start += count
                counts[shard, row] = count
                jobs[shard * rows + row] = job
                ends[shard * rows + row] = count == job.pending
                self._start(job)
        settings, progress = self._rows_of(jobs)
        progress = progress.replace(active=ends)
        self.stats.prefill_tokens += int(counts.sum())
        arrays = settings, progress, tokens, counts, self._tables(jobs)
        self._state, progress, output = program.prefill(self._graphdefs, self._params, self._state, *arrays)
        for parts in plan.parts:
            for job, count in parts:
                if count < job.pending:  # the others are seen to when they get their next token
                    self._scheduler.computed(job, count)
        return jobs, progress, output

    def _decode(self, plan: Decode[Job]):
        rows = size_of(max(map(len, plan.texts)))
        jobs: list[Job | None] = [None] * (self._shards * rows)
        for shard, texts in enumerate(plan.texts):
            for row, job in enumerate(texts):
                jobs[shard * rows + row] = job
                self._start(job)
                self.stats.prefill_tokens += len(job.tokens) == len(job.request.prompt)  # all but one were in the cache
        settings, progress = self._rows_of(jobs)
        arrays = self._params, self._state, settings, progress, self._tables(jobs)
        allowed, guesses = self._allowed(jobs), None
        if allowed is None and self.speculation is not None and plan.steps > self.speculation.guesses:
            guesses = self._guesses(jobs)
        if guesses is None:
            rest = *arrays, np.int32(plan.steps), allowed
            self._state, progress, output = program.decode(self._graphdefs, self._scheduler.steps, *rest)
            return jobs, progress, output
        self._state, progress, output = program.verify(self._graphdefs, guesses.shape[1], *arrays, guesses)
        self._guessed = int((guesses >= 0).sum())
        return jobs, progress, output

    def _allowed(self, jobs: Sequence[Job | None]) -> np.ndarray | None:
        """What each row's constraint says of its next token; None where no row has one."""
        if not any(job is not None and job.request.constraint is not None for job in jobs):
            return None
        allowed = self._nothing_allowed(len(jobs))
        for row, job in zip(allowed, jobs, strict=True):
            words = None if job is None else job.allowed()
            if words is not None:
                row[: len(words)] = words[: len(row)]
        return allowed

    def _nothing_allowed(self, rows: int) -> np.ndarray:
        """As `Constraint.allowed`, for so many rows and the model's whole vocabulary."""
        return np.zeros((rows, -(-self.model.config.vocab_size // 32)), np.uint32)

    def _guesses(self, jobs: Sequence[Job | None]) -> np.ndarray | None:
        """Guesses for each row, -1 where there is none; None where there are none at all."""
        assert self.speculation is not None
        guesses = np.full((len(jobs), self.speculation.guesses), -1, np.int32)
        if isinstance(self.speculation, DraftModel):
            guesses[[job is not None for job in jobs]] = 0  # the device fills them in
        if isinstance(self.speculation, PromptLookup):
            for row, job in zip(guesses, jobs, strict=True):
                if job is not None:
                    found = self.speculation.guess(job.tokens, job.index, job.indexed)
                    job.indexed = len(job.tokens)
                    row[: len(found)] = found
        return guesses if (guesses >= 0).any() else None

    def _rows_of(self, jobs: Sequence[Job | None]) -> tuple[Settings, Progress]:
        """Stack what the rows' requests say and where they stand."""
        rows = [self._empty if job is None else job for job in jobs]
        key = tuple(job.number for job in rows)
        if self._settings is None or self._settings[0] != key:
            self._settings = key, jax.tree.map(lambda *x: np.concatenate(x), *(job.settings for job in rows))
        progress = jax.tree.map(lambda *x: np.concatenate(x), *(job.progress for job in rows))
        lengths = np.asarray([job.computed for job in rows], np.int32)
        return self._settings[1], progress.replace(length=lengths)

    def _tables(self, jobs: Sequence[Job | None]) -> np.ndarray:
        tables = np.zeros((len(jobs), self._width), np.int32)
        for row, job in zip(tables, jobs, strict=True):
            if job is not None:
                row[: len(job.pages)] = job.pages
        return tables.reshape(self._shards, -1, self._width)

    def _fetch(self, jobs: Sequence[Job | None], progress: Progress, output: Output) -> tuple[Progress, Output]:
        wanted = any(job is not None and job.request.sampling.logprobs is not None for job in jobs)
        return jax.device_get((progress, output if wanted else output.replace(logprobs=None)))

    # ---- postprocess -------------------------------------------------------------------------------------------------

    def _postprocess(self, jobs: Sequence[Job | None], progress: Progress, output: Output) -> list[Token]:
        """Give the new tokens to their texts, those of one step before those of the next; end what has ended."""
        new: list[Token] = []
        for step in range(output.valid.shape[0]):
            for row in np.flatnonzero(output.valid[step]).tolist():
                job = jobs[row]
                assert job is not None
                new.append(job.take(output, step, row))
        for row, job in enumerate(jobs):
            if job is None or not output.valid[:, row].any():
                continue
            # All but the newest token have their keys in the cache.
            self._scheduler.computed(job, job.pending - 1)
            job.progress = jax.tree.map(lambda x, row=row: x[row : row + 1], progress)
            if not job.progress.active[0]:
                del self._jobs[job.number]
                self._scheduler.remove(job)
                self._give_slot_back(job)
        return new

    # ---- penalties ---------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Those that have just had to make room for others give up their places in `Seen` as well."""
        self.stats.preemptions = self._scheduler.preemptions
        for job in itertools.takewhile(lambda job: job.preemptions, self._scheduler.waiting):
            self._give_slot_back(job)

    def _start(self, job: Job) -> None:
        """Before a request runs: a place in `Seen` if it has penalties, and what it found in the cache is counted."""
        if not job.started:
            job.started = True
            self.stats.cached_tokens += job.cached or 0
        if not job.penalised or job.slot >= 0:
            return
        job.slot = self._slots.pop()
        job.settings = job.settings.replace(slot=np.asarray([job.slot], np.int32))
        self._settings = None
        prompt = np.zeros(self.model.config.vocab_size, bool)
        prompt[list(job.request.prompt)] = True
        answer = np.asarray(job.tokens[len(job.request.prompt) :], np.int64)
        counts = np.bincount(answer, minlength=prompt.size).astype(np.int16)
        self._state = program.enter(self._state, np.int32(job.slot), prompt, counts)

    def _give_slot_back(self, job: Job) -> None:
        if job.slot >= 0:
            self._slots.append(job.slot)
            job.slot = -1


def _sizes(least: int, most: int) -> list[int]:
    sizes = [least]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sizes
