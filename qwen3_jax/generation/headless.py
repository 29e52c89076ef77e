"""The engine's place in a server, for a model that writes no text: it answers no requests, and its reader reads whole texts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NoReturn

from qwen3_jax.bounds import check_bounds, whole
from qwen3_jax.errors import UserError
from qwen3_jax.generation.embeddings import embedding_reading
from qwen3_jax.generation.engine import Engine
from qwen3_jax.generation.readout import Reader, Reading
from qwen3_jax.generation.request import Request
from qwen3_jax.generation.reranking import relevance_reading
from qwen3_jax.generation.stats import Stats
from qwen3_jax.generation.tokens import Token
from qwen3_jax.model import EmbeddingModel, Qwen3
from qwen3_jax.text import Tokenizer

BATCH_TOKENS = 4096  # of several texts, with padding: what answers wait for between two of their steps
_WARM_LENGTHS = (64, 128, 256, 512)


class Headless(Engine):
    """An engine without a cache, which refuses every request.

    Args:
        model: an embedding or reward model, on any mesh.
        tokenizer: the model's.
        rows: most texts that are read together.
        max_length: tokens of the longest text; None is the model's context length.

    Attributes:
        embeds: the model makes embeddings; else it judges documents.

    Raises:
        UserError: an invalid option, by name.
    """

    def __init__(self, model: Qwen3, tokenizer: Tokenizer, *, rows: int = 32, max_length: int | None = None):
        context = model.config.max_position_embeddings
        options = dict(rows=rows, max_length=max_length)
        check_bounds(options, "engine option ", rows=whole(1), max_length=whole(2, context))
        self.model, self.rows, self.max_length = model, rows, max_length or context
        self.stats = Stats()
        self.speculation = None
        self.embeds = isinstance(model, EmbeddingModel)
        self.reader = Reader(model)
        self._tokenizer = tokenizer

    cache_usage = (0, 0)
    busy = False
    waiting = running = 0

    def submit(self, request: Request, thinking: Sequence[int] = ()) -> NoReturn:
        """Refuse a request."""
        raise UserError(f"{self.model.no_text}.")

    def cancel(self, number: int) -> None:
        """Nothing runs."""

    def step(self) -> list[Token]:
        """Nothing runs."""
        return []

    def programs(self, *, constraints: bool = False, prompt_logprobs: bool = False) -> list[Callable[[], None]]:
        """Return a call for each program of one short text, and of as many as are read together; each compiles one."""
        reading: Reading = (
            embedding_reading(self.model) if self.embeds else relevance_reading(self.model, self._tokenizer)
        )
        sizes = [size for length in _WARM_LENGTHS for size in self.reader.sizes(length, self.rows, BATCH_TOKENS)]
        return [functools.partial(self.reader.prepare, reading, rows, length) for rows, length in sizes]
