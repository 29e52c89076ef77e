"""Continuous batching: many requests share one model and one cache; each starts and finishes on its own.

    engine = Engine(model, rows=32)
    number = engine.submit(Request(prompt=(151644, 872, ...), sampling=Sampling(temperature=0), max_new_tokens=256))
    while engine.busy:
        for token in engine.step():                         # schedule -> run -> postprocess
            token.number, token.id, token.finish

Invariant: the tokens of a request depend on its prompt, settings and seed alone; not on other requests, nor on how its prompt
was chunked, whether it was preempted, or which of its tokens were guessed (up to rounding in matrix products of other shapes).

Nothing is compiled after `warm_up`: every program has a few shapes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import numpy as np

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation.active import ActiveRequest, first_scored
from qwen3_jax.generation.budget import may_force
from qwen3_jax.generation.engine_limits import check_model, length_that_fits
from qwen3_jax.generation.expert_record import ExpertRecord, Run
from qwen3_jax.generation.prompt_scores import Scored, prompt_token, scored_by, tokens_of
from qwen3_jax.generation.request import Request, require
from qwen3_jax.generation.rows import MAX_EOS, Output, Progress, size_of
from qwen3_jax.generation.runner import MIN_PREFILL_TOKENS, ActiveBatch, Runner
from qwen3_jax.generation.sampling import MAX_LOGPROBS, Logprobs
from qwen3_jax.generation.scheduler import Grow, Prefill, Scheduler
from qwen3_jax.generation.speculation import Speculation
from qwen3_jax.generation.stats import Clock, Stats
from qwen3_jax.generation.tokens import Token
from qwen3_jax.kernels import CacheType, page_size
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import progress_bar

_ONLINE = 512, 8  # prefill_chunk and decode_steps
_OFFLINE = 1024, 32
_INITIAL_TOKENS = 512  # per row, of a cache that grows, where memory allows


class _Computation(NamedTuple):
    """A program that has been started, and what its results are for; arrays on the device."""

    is_prefill: bool
    batch: ActiveBatch
    progress: Progress
    output: Output
    scored: list[Scored]
    scores: Sequence[Logprobs]
    guessed: int
    clock: Clock
    runs: list[list[Run]]
    experts: jax.Array | None


class Engine:
    """A model that answers many requests at once.

    Args:
        model: on any mesh.
        rows: requests decoded together; divided over the mesh axes of the batch, rounded up.
        cache_tokens: tokens in the cache, of all requests together; divided likewise. None starts with 512 a row, on CPU with
            at most 1 GiB, and doubles whenever that is full, up to `rows` requests of `max_length` or the free memory; each
            size is compiled anew. "most" takes what that would end with at once, so that no size is compiled anew.
        max_length: tokens of the longest request, prompt and answer; None is the model's context length, or what the cache
            holds if that is less, with a warning if it is the memory that limits it.
        prefill_chunk: prompt tokens computed at a time, None is 512, or 1,024 offline; running requests get a token between two
            chunks, but not offline.
        decode_steps: tokens that running requests generate between two scheduling decisions; None is 8, or 32 offline.
        prefix_cache: share the keys and values of equal beginnings.
        speculation: guess tokens and check several at a time.
        cache_type: "int8" or "fp8" keys and values, with a scale for each token and head; None is the compute type.
        slots_per_page: tokens per page; None is a size that suits the platform.
        offline: nobody waits for single tokens: more tokens per second, but in bursts. Changes no answer. See `Scheduler`.
        report_experts: the last token of a request reports the experts of all tokens (`Token.experts`).

    Attributes:
        rows: as given, rounded up to what the mesh and the compiled sizes allow.
        max_length: tokens of the longest request.
        stats: totals so far.

    Raises:
        UserError: an invalid option, by name; a cache that holds less than a given `max_length`; or a model without text.
    """

    FIRST_PROGRAMS: ClassVar[int] = 2  # of `programs`: one prefill and one decode step

    def __init__(
        self,
        model: Qwen3,
        *,
        rows: int = 32,
        cache_tokens: int | Literal["most"] | None = None,
        max_length: int | None = None,
        prefill_chunk: int | None = None,
        decode_steps: int | None = None,
        prefix_cache: bool = True,
        speculation: Speculation | None = None,
        cache_type: CacheType | None = None,
        slots_per_page: int | None = None,
        offline: bool = False,
        report_experts: bool = False,
    ):
        check_model(model, report_experts)
        context = model.config.max_position_embeddings
        chunk, steps = _OFFLINE if offline else _ONLINE
        prefill_chunk = chunk if prefill_chunk is None else prefill_chunk
        decode_steps = steps if decode_steps is None else decode_steps
        most, cache_tokens = cache_tokens == "most", None if cache_tokens == "most" else cache_tokens
        options = dict(
            rows=rows, cache_tokens=cache_tokens, max_length=max_length, prefill_chunk=prefill_chunk,
            decode_steps=decode_steps, slots_per_page=slots_per_page,
        )  # fmt: skip
        check_bounds(
            options, "engine option ", rows=whole(1), cache_tokens=whole(1), max_length=whole(2, context),
            prefill_chunk=whole(MIN_PREFILL_TOKENS), decode_steps=whole(1), slots_per_page=whole(1),
        )  # fmt: skip
        if prefill_chunk & (prefill_chunk - 1):
            raise UserError(f"engine option prefill_chunk is {prefill_chunk}; it must be a power of two.")
        shards = model.execution.placement.parts("batch")
        shard_rows = size_of(-(-rows // shards))
        size = slots_per_page or page_size(model.execution.placement)
        self.model = model
        self.speculation = speculation
        self.stats = Stats()
        self.rows = shards * shard_rows
        self._runner = Runner(
            model, speculation, cache_type, rows=shard_rows, page_size=size, max_length=max_length or context,
            chunk=prefill_chunk, offline=offline, report_experts=report_experts,
        )  # fmt: skip
        if cache_tokens is None:
            max_pages = self._runner.max_pages()
            pages = max_pages if most else min(self._runner.first_pages(_INITIAL_TOKENS), max_pages)
        else:
            pages = max_pages = 1 + max(cache_tokens // shards // size, 1)
        self.max_length = length_that_fits(max_length, context, (max_pages - 1) * size, cache_tokens)
        steps = decode_steps if speculation is None else speculation.guesses + 1
        self._scheduler: Scheduler[ActiveRequest] = Scheduler(
            shards=shards, pages=pages, max_pages=max_pages, page_size=size, rows=shard_rows, chunk=prefill_chunk,
            chunk_rows=self._runner.prefill_rows, steps=steps, prefix_cache=prefix_cache,
            offline=offline,
        )  # fmt: skip
        self._runner.allocate(pages)
        self._experts = ExpertRecord(shards, size) if report_experts else None
        self._active: dict[int, ActiveRequest] = {}
        self._in_flight: _Computation | None = None  # offline, between two steps
        self._ready: list[Token] = []  # tokens of prompts that need no computation; the next step returns them

    def take_weights(self, model: Qwen3) -> None:
        """Answer with another model of the same structure from now on, as training updates it. Nothing is compiled.

        What is in the prefix cache was computed with the weights before, and is dropped.

        Raises:
            UserError: requests are unfinished, or the models differ in more than the values of their weights.
        """
        if self.busy:
            raise UserError(
                f"the engine has {len(self._active)} unfinished requests; finish or cancel them, then change its weights."
            )
        self._in_flight = None  # padding of a finished computation
        self._runner.take_weights(model)
        self.model = model
        for pool in self._scheduler.pools:
            pool.forget()

    @property
    def cache_usage(self) -> tuple[int, int]:
        """Pages held by requests, and pages in all; over all shards."""
        pools = self._scheduler.pools
        return sum(pool.held for pool in pools), sum(pool.capacity for pool in pools)

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._active or self._ready)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Requests that are admitted."""
        return len(self._active) - self.waiting

    def submit(self, request: Request, thinking: Sequence[int] = ()) -> int:
        """Queue a request; return its number.

        Args:
            request: the request.
            thinking: the beginning of its answer, up to the sampled thinking token that uses up the budget. It comes from a
                request that differs in a larger budget alone, and is neither generated nor returned again, nor is the stop
                text: the first token returned follows that. See `can_continue`.

        Raises:
            RequestError: an empty prompt, ids out of range, a budget without think tokens, or more than the cache holds (of a
                prompt without an answer the last token takes no room).
        """
        require(not thinking or can_continue(request, len(thinking)), "this answer cannot be continued.", "thinking")
        vocabulary, length, limit = self.model.config.vocab_size, len(request.prompt), request.max_new_tokens
        is_valid = length > 0 and all(0 <= token < vocabulary for token in request.prompt)
        require(is_valid, f"a prompt has at least one token, and ids from 0 to {vocabulary - 1}.", "prompt")
        least = 1 if request.score_from is None else 0
        require(limit >= least, f"max_new_tokens is {limit}; it must be {least} or more.", "max_new_tokens")
        first = request.score_from
        reason = f"score_from is {first}; it must be between 0 and the length of the prompt, {length}."
        require(first is None or 0 <= first <= length, reason, "score_from")
        biased = max(request.sampling.logit_bias, default=0)
        text = f"sampling option 'logit_bias' has token {biased}; the last one is {vocabulary - 1}."
        require(biased < vocabulary, text, "logit_bias")
        if length + limit - (limit == 0) > self.max_length:  # without an answer the last token is no input
            text = f"the prompt has {length} tokens and max_new_tokens is {limit}; the maximum context length is"
            raise RequestError(f"{text} {self.max_length} tokens.", "max_new_tokens", too_long=True)
        can_count = request.thinking_tokens.start >= 0 or (request.budget is None and not request.thinking)
        require(can_count, "a thinking budget needs `thinking_tokens`, see ThinkingTokens.of.", "thinking_budget")
        if may_force(request.budget, request.thinking):
            request.thinking_tokens.check_stop()
        most = 0 if self.model.lora is None else len(self.model.lora.names)
        require(0 <= request.adapter <= most, f"the model has {most} adapters; got {request.adapter}.", "adapter")
        require(len(request.eos) <= MAX_EOS, f"{len(request.eos)} end tokens; the most is {MAX_EOS}.", "eos")
        if limit == 0 and first_scored(request) is None:  # nothing to compute
            number = self._scheduler.next_number()
            self._ready.append(prompt_token(number, request.prompt[-1], None, "length"))
            return number
        active = ActiveRequest.of(request, self.model.generation_config, self.rows, thinking)
        self._scheduler.add(active)
        self._active[active.number] = active
        if first == 0:
            self._ready.append(prompt_token(active.number, request.prompt[0], None, None))
        return active.number

    def cancel(self, number: int) -> None:
        """Drop a request and free its pages. A finished or unknown one is ignored."""
        self._ready = [token for token in self._ready if token.number != number]
        active = self._active.pop(number, None)
        if active is not None:
            self._scheduler.remove(active)
            self._runner.release_slot(active)

    def step(self) -> list[Token]:
        """Compute the next part of a prompt, or the next tokens of all running requests; return the new tokens.

        Offline it returns while the device computes on, with the tokens of the computation before: at first none.
        """
        ready, self._ready = self._ready, []
        if not self._scheduler.offline:
            return ready + self._finish(self._begin())
        tokens = self._finish(self._in_flight)
        self._in_flight = self._begin()
        return ready + tokens

    def _begin(self) -> _Computation | None:
        """Schedule and start the next computation."""
        plan = self._scheduler.schedule()
        while isinstance(plan, Grow):
            self._runner.grow(plan)
            plan = self._scheduler.schedule()
        self.stats.preemptions = self._scheduler.preemptions
        for active in itertools.takewhile(lambda active: active.preemptions, self._scheduler.waiting):
            self._runner.release_slot(active)
        if plan is None:
            return None
        if isinstance(plan, Prefill):
            self._prepare()
        clock = Clock()
        scored: list[Scored] = []
        scores: Sequence[Logprobs] = ()
        experts: jax.Array | None = None
        if isinstance(plan, Prefill):
            self._start([active for parts in plan.parts for active, _ in parts])
            scored = scored_by(plan)
            runs = self._runs(plan.parts)
            batch, progress, output, states, experts = self._runner.prefill(plan)
            scores = self._score(scored, states)
            for active, count in (pair for parts in plan.parts for pair in parts):
                self.stats.prefill_tokens += count
                if count < active.pending:  # the others advance in `_postprocess`
                    self._scheduler.advance(active, count)
        else:
            decoding = [active for sequences in plan.sequences for active in sequences]
            # A prompt whose last token comes here had all others in the cache, or in prefill chunks.
            self.stats.prefill_tokens += sum(len(active.tokens) == len(active.request.prompt) for active in decoding)
            self._start(decoding)
            runs = self._runs([[(active, 0) for active in sequences] for sequences in plan.sequences])
            batch, progress, output = self._runner.decode(plan, self._scheduler.steps)
        clock.dispatched()
        guessed = 0 if isinstance(plan, Prefill) else self._runner.guessed
        is_prefill = isinstance(plan, Prefill)
        return _Computation(is_prefill, batch, progress, output, scored, scores, guessed, clock, runs, experts)

    def _runs(self, sequences: Sequence[Sequence[tuple[ActiveRequest, int]]]) -> list[list[Run]]:
        """Return where the experts of a computation will be recorded; nowhere if they are not reported."""
        return [] if self._experts is None else ExpertRecord.runs(sequences)

    def _finish(self, computation: _Computation | None) -> list[Token]:
        """Wait for a computation; return its tokens, without those of requests that were cancelled since."""
        if computation is None:
            return []
        is_prefill, batch, progress, output, scored, scores, guessed, clock, runs, experts = computation
        progress, output, scores, fetched = self._runner.fetch(batch, progress, output, scores, experts)
        running, compiling = clock.stop()
        if self._experts is not None:
            self._experts.take(runs, fetched, output)
        tokens = self._reported(scored, scores) + self._postprocess(batch, progress, output)
        self.stats.compile_seconds += compiling
        if is_prefill:
            self.stats.prefill_seconds += running
            return tokens
        self.stats.decode_seconds += running
        self.stats.decode_tokens += len(tokens)
        if guessed:
            self.stats.guessed += guessed
            self.stats.accepted += int(np.maximum(output.valid.sum(axis=0) - 1, 0).sum())  # the last token is no guess
        return tokens

    def _score(self, scored: Sequence[Scored], states: jax.Array) -> Sequence[Logprobs]:
        """Compute the log probabilities of the tokens of prompts that a prefill scores."""
        wanted: list[list[tuple[int, int, int]]] = [[] for _ in self._scheduler.pools]
        for each in scored:
            wanted[each.shard] += each.wanted
        alternatives = max((each.active.request.sampling.logprobs or 0 for each in scored), default=0)
        return self._runner.score(states, wanted, 1 if alternatives <= 1 else MAX_LOGPROBS)

    def _reported(self, scored: Sequence[Scored], scores: Sequence[Logprobs]) -> list[Token]:
        """Return the scored tokens of prompts; release the requests that end with their prompt."""
        tokens = list(tokens_of(scored, scores, len(self._scheduler.pools)))
        tokens = [token for token in tokens if token.number in self._active]
        for token in tokens:
            if token.finish is not None:
                self.cancel(token.number)
        return tokens

    def warm_up(self, *, constraints: bool = False, prompt_logprobs: bool = False) -> None:
        """Compile every program that requests may need, as `programs` does; a bar counts them."""
        programs = self.programs(constraints=constraints, prompt_logprobs=prompt_logprobs)
        with progress_bar("compiling", len(programs)) as bar:
            for compile_one in programs:
                compile_one()
                bar.advance()

    def programs(self, *, constraints: bool = False, prompt_logprobs: bool = False) -> list[Callable[[], None]]:
        """Return a call for every program that requests may need: each compiles one.

        Between two steps the calls may be made in any order; requests are not affected. The first `FIRST_PROGRAMS` of them are
        those of a short prompt on its own.

        Args:
            constraints: of requests with a constraint too.
            prompt_logprobs: of requests with `score_from` too.
        """
        needs = dict(constraints=constraints, prompt_logprobs=prompt_logprobs)
        return self._runner.programs(self._scheduler.steps, **needs)

    def _prepare(self) -> None:
        """Compile the decode step that follows a prefill, so that an answer does not stop after its first token."""
        admitted = [active for sequences in self._scheduler.admitted for active in sequences]
        if all(active.limit - len(active.tokens) <= 1 for active in admitted):
            return
        clock = Clock()
        constrained = any(active.request.constraint is not None for active in admitted)
        guesses = self.speculation is not None and not constrained
        count = max(map(len, self._scheduler.admitted))
        self._runner.prepare(
            count, self._scheduler.steps, "constrained" if constrained else "guesses" if guesses else "plain"
        )
        clock.dispatched()
        self.stats.compile_seconds += clock.stop()[1]

    def _start(self, sequences: Sequence[ActiveRequest]) -> None:
        """Prepare requests to run: count their cached tokens once, and take a slot for their penalties."""
        for active in sequences:
            if not active.started:
                active.started = True
                self.stats.cached_tokens += active.cached or 0
            self._runner.take_slot(active)

    def _postprocess(self, batch: ActiveBatch, progress: Progress, output: Output) -> list[Token]:
        """Append the new tokens to their requests, step by step, and release what is finished."""
        known = [active is not None and active.number in self._active for active in batch]
        output = output.replace(valid=output.valid & np.asarray(known))  # one may have been cancelled meanwhile
        steps = output.valid.sum(axis=0)  # each row is valid up to its last step
        tokens: list[Token] = []
        for step in range(output.valid.shape[0]):
            for row in np.flatnonzero(output.valid[step]).tolist():
                active = batch[row]
                assert active is not None
                ended = step == steps[row] - 1 and not progress.active[row]
                token = active.append(output, step, row, ended)
                if ended and self._experts is not None:
                    token = dataclasses.replace(token, experts=self._experts.of(active))
                tokens.append(token)
        for row in np.flatnonzero(steps).tolist():
            active = batch[row]
            assert active is not None
            self._scheduler.advance(active, active.pending - 1)  # the newest token's keys are not in the cache yet
            active.progress = jax.tree.map(lambda x, row=row: x[row : row + 1], progress)
            if not active.progress.active[0]:
                del self._active[active.number]
                self._scheduler.remove(active)
                self._runner.release_slot(active)
        return tokens


def can_continue(request: Request, count: int) -> bool:
    """Whether `Engine.submit` takes the first `count` tokens of a request's answer, which use up its budget.

    They and the stop text must leave room for the answer. A request with a constraint or log probabilities is generated whole:
    the one follows all tokens, the other reports them.
    """
    plain = request.constraint is None and request.sampling.logprobs is None and request.score_from is None
    begun = count + len(request.thinking_tokens.stop)
    return plain and bool(request.budget) and count > 0 and begun < request.max_new_tokens
