"""The device side of an engine: its parameters, its cache, and the arrays that each program is called with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import jax
import numpy as np
from flax import nnx

from qwen3_jax.errors import UserError
from qwen3_jax.generation import layered, program
from qwen3_jax.generation.active import ActiveRequest
from qwen3_jax.generation.layered import LayeredPrograms
from qwen3_jax.generation.program import Structures, WholePrograms
from qwen3_jax.generation.request import Request
from qwen3_jax.generation.rows import Output, Progress, Settings, row_size, size_of
from qwen3_jax.generation.sampling import MAX_LOGPROBS, Logprobs, Sampling
from qwen3_jax.generation.scheduler import Decode, Grow, Prefill
from qwen3_jax.generation.speculation import DraftModel, PromptLookup, Speculation
from qwen3_jax.kernels import CacheType, early_cache_bytes, free_memory, return_freed_memory
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import doing

MIN_PREFILL_TOKENS = 16  # shorter parts of prompts are padded
_PREFILL_ROWS = 8, 32  # most sequences of one prefill, and of one of an engine that answers offline
_FIRST_WIDTH = 64  # of the first prefill that is compiled: a short question
_SCORED = 16, 128  # tokens per shard whose logits over the vocabulary are in memory at once, for prompts

DecodeKind: TypeAlias = Literal["plain", "guesses", "constrained"]
ActiveBatch: TypeAlias = list[ActiveRequest | None]  # row by row; None is padding


class Runner:
    """Calls the programs; holds everything that stays on the device between calls.

    Arguments are those of `Engine`, but `rows` are of one shard.

    Attributes:
        prefill_rows: most sequences of one prefill, per shard.
        slots: free slots of `Seen`.
        guessed: guesses checked by the last `decode`.
    """

    def __init__(
        self, model: Qwen3, speculation: Speculation | None, cache_type: CacheType | None, *, rows: int, page_size: int,
        max_length: int, chunk: int, offline: bool = False, report_experts: bool = False,
    ):  # fmt: skip
        models = (model, speculation.model) if isinstance(speculation, DraftModel) else (model,)
        sizes = [m.config.vocab_size for m in models]
        if sizes[-1] != sizes[0]:
            counts = f"the draft model has {sizes[-1]} vocabulary rows and the model {sizes[0]}"
            raise UserError(f"{counts}; a draft model needs the same vocabulary.")
        self.prefill_rows = min(_PREFILL_ROWS[offline], rows)
        # Offline a program that is not compiled saves more than the padding of the next size costs.
        self._factor, self._chunk = 4 if offline else 2, chunk
        self._prefill_sizes = [self.prefill_rows] if offline else sorted({min(n, self.prefill_rows) for n in (1, 8)})
        self.guessed = 0
        self._report_experts = report_experts
        self._model, self._speculation, self._cache_type = model, speculation, cache_type
        self._shards, self._rows = model.execution.placement.parts("batch"), rows
        self._page_size = page_size
        self._words = -(-model.config.vocab_size // 32)  # of `Constraint.allowed`
        self._width = -(-max_length // page_size)
        graphdefs, self._params = zip(*(nnx.split(m) for m in models), strict=True)
        self._graphdefs = Structures(graphdefs)
        self._layered = len(models) == 1 and layered.is_better(model)
        self._programs = self._choose_programs()
        self.slots = list(range(self._shards * rows))
        nothing = Request((0,), Sampling(temperature=0, seed=0), 1)
        self._padding = ActiveRequest.of(nothing, model.generation_config, len(self.slots))
        self._padding.progress = self._padding.progress.replace(active=np.zeros(1, bool))
        self._settings: tuple[tuple[int, ...], Settings] | None = None
        self._pages = 0
        self._called: set[tuple[str, int, int]] = set()  # program, size and pages of calls that have been made

    def max_pages(self) -> int:
        """Return the pages per shard that hold every row at full length, or that fit into half of the free memory.

        Half, because the old cache is still there while a larger one is filled from it.
        """
        pages = 1 + self._rows * self._width
        free = free_memory(self._model.execution.placement)
        if free is None:
            return pages
        if jax.process_count() > 1:  # all processes must agree
            from jax.experimental.multihost_utils import process_allgather

            # In MiB: JAX makes 32-bit numbers of what is gathered.
            free = int(process_allgather(np.asarray(free >> 20, np.int32)).min()) << 20
        return max(min(pages, int(free * 0.5) // self._page_bytes()), 2)

    def first_pages(self, tokens: int) -> int:
        """Return the pages per shard of a cache that grows, at its start: `tokens` in each row.

        Fewer where they would take more of the memory than a cache may before it is needed, but at least one such row.
        """
        row = max(tokens // self._page_size, 1)
        most = early_cache_bytes(self._model.execution.placement)
        pages = self._rows * row if most is None else min(self._rows * row, max(most // self._page_bytes(), row))
        return 1 + pages

    def _page_bytes(self) -> int:
        """Bytes of a page on each device that holds a part of it."""
        shape = self._shards, 1, 1, self._page_size, self._cache_type
        page = program.begin.eval_shape(self._graphdefs, *shape, self._params)
        split = self._shards * self._model.execution.placement.parts("kv_heads")
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((page.groups, page.draft))) // split

    def allocate(self, pages: int) -> None:
        """Allocate a cache of `pages` pages per shard."""
        shape = self._shards, self._rows, pages, self._page_size, self._cache_type
        self._pages = pages
        self.state = program.begin(self._graphdefs, *shape, self._params)
        if self._model.execution.placement.mesh is None:
            # Committed, as the parameters are: the programs return committed state, which would compile them once more.
            self.state = jax.device_put(self.state, *jax.tree.leaves(self._params)[0].devices())

    def take_weights(self, model: Qwen3) -> None:
        """Use another model's parameters from the next program on.

        Raises:
            UserError: its structure, shapes, types or placement differ, which would compile every program anew.
        """
        graphdef, params = nnx.split(model)
        before = self._params[0]
        if graphdef != self._graphdefs[0] or jax.tree.map(_form, params) != jax.tree.map(_form, before):
            raise UserError(
                "the new weights differ from the engine's model in more than their values; make a new Engine."
            )
        self._model, self._params = model, (params, *self._params[1:])
        self._programs = self._choose_programs()

    def _choose_programs(self) -> LayeredPrograms | WholePrograms:
        if self._layered:
            return LayeredPrograms(self._model, self._report_experts)
        return WholePrograms(self._graphdefs, self._params, self._report_experts)

    def grow(self, plan: Grow) -> None:
        """Extend the cache; its contents stay."""
        self._pages = plan.pages
        with doing("growing the cache"):
            self.state = program.extend(self.state, plan.before, plan.pages)

    def prefill(
        self, plan: Prefill[ActiveRequest]
    ) -> tuple[ActiveBatch, Progress, Output, jax.Array, jax.Array | None]:
        """Compute parts of prompts; returns the rows, and their progress, output, states and experts on the device."""
        rows = next(size for size in self._prefill_sizes if size >= max(map(len, plan.parts)))
        width = self._prefill_width(max(sum(count for _, count in parts) for parts in plan.parts))
        tokens = np.zeros((self._shards, width), np.int32)
        counts = np.zeros((self._shards, rows), np.int32)
        batch: ActiveBatch = [None] * (self._shards * rows)
        ends = np.zeros(len(batch), bool)
        for shard, parts in enumerate(plan.parts):
            start = 0
            for row, (active, count) in enumerate(parts):
                tokens[shard, start : start + count] = active.tokens[active.computed : active.computed + count]
                start += count
                counts[shard, row] = count
                batch[shard * rows + row] = active
                ends[shard * rows + row] = count == active.pending
        settings, progress = self._stacked(batch)
        arrays = settings, progress.replace(active=ends), tokens, counts, self._tables(batch)
        with self._announced("prefill", width, f"compiling prefill, {width} tokens"):
            self.state, progress, output, states, experts = self._programs.prefill(self.state, *arrays)
        return batch, progress, output, states, experts

    def score(self, states: jax.Array, wanted: Sequence[Sequence[tuple[int, int, int]]], few: int) -> list[Logprobs]:
        """Return log probabilities of prompt tokens, in pieces, on the device.

        Args:
            states: of `prefill`.
            wanted: for each shard, (place of the token before it in the shard, token, adapter).
            few: most likely tokens reported at each place.

        Returns pieces of arrays [shards * K]; the pieces, joined along K, have the entries of `wanted` in order.
        """
        pieces, start, most = [], 0, max(map(len, wanted), default=0)
        while start < most:
            left = most - start
            size = _SCORED[0] if left <= 3 * _SCORED[0] else _SCORED[1]
            arrays = np.zeros((3, self._shards, size), np.int32)
            for shard, triples in enumerate(wanted):
                part = triples[start : start + size]
                arrays[:, shard, : len(part)] = np.asarray(part, np.int32).reshape(-1, 3).T
            places, targets, adapters = arrays
            with self._announced("score", size * few, "compiling log probabilities of prompts"):
                pieces.append(self._score(states, places, targets, adapters, few))
            start += size
        return pieces

    def _score(
        self, states: jax.Array, places: np.ndarray, targets: np.ndarray, adapters: np.ndarray, few: int
    ) -> Logprobs:
        picked = program.pick(states, places)
        return program.score(self._graphdefs[0], few, self._params[0], picked, targets, adapters)

    def decode(self, plan: Decode[ActiveRequest], max_steps: int) -> tuple[ActiveBatch, Progress, Output]:
        """Generate tokens, or check guesses if there are any; returns as `prefill`."""
        rows = self._decode_size(max(map(len, plan.sequences)))
        batch: ActiveBatch = [None] * (self._shards * rows)
        for shard, sequences in enumerate(plan.sequences):
            batch[shard * rows : shard * rows + len(sequences)] = sequences
        arrays = self.state, *self._stacked(batch), self._tables(batch)
        allowed, guesses = self._allowed(batch), None
        if allowed is None and self._speculation is not None and plan.steps > self._speculation.guesses:
            guesses = self._propose(batch, self._speculation)
        self.guessed = 0 if guesses is None else int((guesses >= 0).sum())
        if guesses is None:
            rest = *arrays, np.int32(plan.steps), np.int32(plan.least), allowed
            with self._announced("plain" if allowed is None else "constrained", rows):
                self.state, progress, output = self._programs.decode(max_steps, *rest)
        else:
            with self._announced("guesses", rows):
                self.state, progress, output = self._programs.verify(*arrays, guesses)
        return batch, progress, output

    def prepare(self, count: int, max_steps: int, kind: DecodeKind) -> None:
        """Compile the decode step of `count` rows per shard, unless it is: before the first token, not behind it."""
        rows = self._decode_size(count)
        if (kind, rows, self._pages) not in self._called:
            self._compile_decode(rows, max_steps, kind)

    def _prefill_width(self, count: int) -> int:
        """Return the tokens per shard of the prefill that takes `count` of them."""
        return min(size_of(count, MIN_PREFILL_TOKENS, self._factor), self._chunk)

    def _decode_size(self, count: int) -> int:
        """Return the rows per shard of the decode step that takes `count` of them."""
        if self._factor == 2:
            return row_size(count, self._rows)
        size = self._rows
        while size >= self._factor * count:
            size //= self._factor
        return size

    def _compile_decode(self, rows: int, max_steps: int, kind: DecodeKind) -> None:
        """Call a decode step with nothing but padding."""
        batch: ActiveBatch = [None] * (self._shards * rows)
        arrays = self.state, *self._stacked(batch), self._tables(batch)
        with self._announced(kind, rows):
            if kind == "guesses":
                assert self._speculation is not None
                none = np.full((len(batch), self._speculation.guesses), -1, np.int32)
                self.state, *_ = self._programs.verify(*arrays, none)
            else:
                allowed = np.zeros((len(batch), self._words), np.uint32) if kind == "constrained" else None
                rest = *arrays, np.int32(1), np.int32(1), allowed
                self.state, *_ = self._programs.decode(max_steps, *rest)

    @contextmanager
    def _announced(self, name: str, size: int, text: str | None = None) -> Iterator[None]:
        """Name a program's first call in a shape on the status line: it compiles."""
        key = name, size, self._pages
        if key in self._called:
            yield
            return
        self._called.add(key)
        with doing(text or f"compiling decode, {size} row{'s' * (size > 1)}"):
            yield
        return_freed_memory()

    def fetch(
        self,
        batch: ActiveBatch,
        progress: Progress,
        output: Output,
        scores: Sequence[Logprobs],
        experts: jax.Array | None,
    ) -> tuple[Progress, Output, Sequence[Logprobs], np.ndarray | None]:
        """Wait for a program's results and copy them to the host; log probabilities only if a row requested them."""
        requested = any(active is not None and active.request.sampling.logprobs is not None for active in batch)
        return jax.device_get((progress, output if requested else output.replace(logprobs=None), scores, experts))

    def programs(self, max_steps: int, *, constraints: bool, prompt_logprobs: bool) -> list[Callable[[], None]]:
        """Return a call for every program in every shape, which compiles it. See `Engine.programs`."""
        widths = sorted({self._prefill_width(count) for count in range(1, self._chunk + 1)})
        decodes = sorted({self._decode_size(count) for count in range(1, self._rows + 1)})
        widths.sort(key=lambda width: (width != self._prefill_width(_FIRST_WIDTH), width))
        first_rows, *several = self._prefill_sizes
        kinds: list[DecodeKind] = ["plain"]
        kinds += ["guesses"] if self._speculation is not None else []
        kinds += ["constrained"] if constraints else []
        scores = [(size, few) for size in _SCORED for few in (1, MAX_LOGPROBS)] if prompt_logprobs else []
        one, *others = [functools.partial(self._compile_prefill, first_rows, width) for width in widths]
        first, *rest = [functools.partial(self._compile_decode, decodes[0], max_steps, kind) for kind in kinds]
        return [
            one, first, self._compile_enter, *others, *rest,
            *(functools.partial(self._compile_decode, n, max_steps, kind) for n in decodes[1:] for kind in kinds),
            *(functools.partial(self._compile_prefill, rows, width) for rows in several for width in sorted(widths)),
            *([functools.partial(self._compile_picks, sorted(widths))] if scores else []),
            *(functools.partial(self._compile_score, size, few) for size, few in scores),
        ]  # fmt: skip

    def _compile_prefill(self, rows: int, width: int) -> None:
        self._prefill_nothing(rows, width)

    def _prefill_nothing(self, rows: int, width: int) -> jax.Array:
        """Call a prefill with nothing but padding; return its hidden states."""
        batch: ActiveBatch = [None] * (self._shards * rows)
        tokens, counts = np.zeros((self._shards, width), np.int32), np.zeros((self._shards, rows), np.int32)
        rest = *self._stacked(batch), tokens, counts, self._tables(batch)
        with self._announced("prefill", width, f"compiling prefill, {width} tokens"):
            self.state, _, _, states, _ = self._programs.prefill(self.state, *rest)
        return states

    def _compile_picks(self, widths: Sequence[int]) -> None:
        for width in widths:
            states = self._prefill_nothing(self._prefill_sizes[0], width)
            for size in _SCORED:
                program.pick(states, np.zeros((self._shards, size), np.int32))

    def _compile_score(self, size: int, few: int) -> None:
        nothing = np.zeros((self._shards, size), np.int32)
        states = self._prefill_nothing(self._prefill_sizes[0], MIN_PREFILL_TOKENS)
        with self._announced("score", size * few, "compiling log probabilities of prompts"):
            self._score(states, nothing, nothing, nothing, few)

    def _compile_enter(self) -> None:
        """Compile the program that gives a request with penalties a slot; here one past the last, which is not written."""
        unseen = np.zeros(self._model.config.vocab_size, np.int16)
        self.state = program.enter(self.state, np.int32(self._shards * self._rows), unseen.astype(bool), unseen)

    def take_slot(self, active: ActiveRequest) -> None:
        """Give a request with penalties a slot of `Seen` and write the tokens it has seen there."""
        if not active.penalised or active.slot >= 0:
            return
        active.slot = self.slots.pop()
        active.settings = active.settings.replace(slot=np.asarray([active.slot], np.int32))
        self._settings = None
        prompt = np.zeros(self._model.config.vocab_size, bool)
        prompt[list(active.request.prompt)] = True
        answer = np.asarray(active.tokens[len(active.request.prompt) :], np.int64)
        counts = np.bincount(answer, minlength=prompt.size).astype(np.int16)
        self.state = program.enter(self.state, np.int32(active.slot), prompt, counts)

    def release_slot(self, active: ActiveRequest) -> None:
        """Take the slot of a finished, cancelled or preempted request back."""
        if active.slot >= 0:
            self.slots.append(active.slot)
            active.slot = -1

    def _stacked(self, batch: ActiveBatch) -> tuple[Settings, Progress]:
        """Stack the settings and progress of all rows; settings are reused while the rows stay the same."""
        rows = [self._padding if active is None else active for active in batch]
        key = tuple(active.number for active in rows)
        if self._settings is None or self._settings[0] != key:
            self._settings = key, jax.tree.map(lambda *x: np.concatenate(x), *(active.settings for active in rows))
        progress = jax.tree.map(lambda *x: np.concatenate(x), *(active.progress for active in rows))
        lengths = np.asarray([active.computed for active in rows], np.int32)
        return self._settings[1], progress.replace(length=lengths)

    def _tables(self, batch: ActiveBatch) -> np.ndarray:
        """Return the page tables, int32 [shards, rows, pages of the longest sequence]."""
        tables = np.zeros((len(batch), self._width), np.int32)
        for row, active in zip(tables, batch, strict=True):
            if active is not None:
                row[: len(active.pages)] = active.pages
        return tables.reshape(self._shards, -1, self._width)

    def _allowed(self, batch: ActiveBatch) -> np.ndarray | None:
        """Return the words of each row's constraint on its next token; None if no row has a constraint."""
        if not any(active is not None and active.request.constraint is not None for active in batch):
            return None
        allowed = np.zeros((len(batch), self._words), np.uint32)
        for row, active in zip(allowed, batch, strict=True):
            words = None if active is None else active.allowed()
            if words is not None:
                row[: len(words)] = words[: len(row)]
        return allowed

    def _propose(self, batch: ActiveBatch, speculation: Speculation) -> np.ndarray | None:
        """Return guesses, padded with -1; None if no row has any. Updates the rows' n-gram indices."""
        guesses = np.full((len(batch), speculation.guesses), -1, np.int32)
        if isinstance(speculation, DraftModel):
            guesses[[active is not None for active in batch]] = 0  # `verify` fills them in
        if isinstance(speculation, PromptLookup):
            for row, active in zip(guesses, batch, strict=True):
                if active is not None:
                    proposed = speculation.propose(active.tokens, active.ngrams, active.indexed)
                    active.indexed = len(active.tokens)
                    row[: len(proposed)] = proposed
        return guesses if (guesses >= 0).any() else None


def _form(leaf: jax.Array) -> tuple[tuple[int, ...], str, jax.sharding.Sharding]:
    """What the compiled programs depend on."""
    return leaf.shape, str(leaf.dtype), leaf.sharding
