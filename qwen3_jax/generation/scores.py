"""Log probabilities of given texts: how likely a model finds each token, given those before it.

    scores = qwen3_jax.score(model, tokenizer, ["The capital of France is Paris."])
    scores[0].logprobs, scores[0].total

    question = tokenizer.encode("2 + 2 =")
    options = [question + tokenizer.encode(text) for text in (" 3", " 4", " 5")]
    totals = [each.total for each in qwen3_jax.score(model, tokenizer, options, start=len(question))]

Texts run through the engine's prefill and its prefix cache: a beginning that several texts share is computed once, in whole
pages, and logits over the vocabulary exist for the tokens that are asked for alone, a few at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation.engine import Engine
from qwen3_jax.generation.request import Request, adapter_number, check_batch_size, is_message, require, why_not_ids
from qwen3_jax.generation.rows import row_size
from qwen3_jax.generation.sampling import MAX_LOGPROBS, Sampling
from qwen3_jax.generation.tokens import TokenLogprob
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import Tokenizer

DEFAULT_ROWS = 16  # texts in the engine at a time
_CONTEXTS = 8  # that come at once: as many as one prefill takes
_TOKENS = (
    8192  # of texts in the engine at a time, in all; more would fill pages of the cache long before they are computed
)
_Key = tuple[tuple[int, ...], int, int]  # tokens, start, adapter


@dataclass(frozen=True)
class Scores:
    """Log probabilities (natural logarithm) of the N tokens of one text from `start` on.

    Attributes:
        token_ids: int32 [N].
        logprobs: float32 [N], of each token given all before it, by the model itself; NaN for the first token of a text, which
            has none before it.
        greedy: bool [N], whether each token is the most likely one; False for the first token of a text.
        top: for each token the most likely ones at its place, (token id, log probability), best first; as many as requested.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    greedy: np.ndarray
    top: tuple[tuple[tuple[int, float], ...], ...]

    @property
    def total(self) -> float:
        """The sum of the log probabilities, without the first token of a text."""
        return float(np.nansum(self.logprobs, dtype=np.float64))


def score(
    model: Qwen3 | Engine,
    tokenizer: Tokenizer | None,
    texts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
    *,
    start: int | Sequence[int] = 0,
    top_logprobs: int = 0,
    adapter: str | Sequence[str | None] | None = None,
    batch_size: int | None = None,
    progress: bool | None = False,
) -> list[Scores]:
    """Return the log probabilities of the tokens of texts. Equal texts are computed once.

    Args:
        model: from `qwen3_jax.load`, on any mesh, quantised or not; or an engine around it, whose prefix cache is then kept.
        tokenizer: its tokenizer; None is enough for token ids.
        texts: a list of texts or of token-id lists, or a single one, which is a list of one.
        start: the first token that is scored, one number or one for each text; what is before it is context alone.
        top_logprobs: alternatives reported at each place, at most 20.
        adapter: the name of one of the adapters that the model was loaded with, one or one for each text; None is the model
            itself.
        batch_size: most texts computed together, fewer if they are long; None is 16, or the rows of the given engine.
        progress: draw a progress bar; None draws it on a terminal.

    Returns:
        One result per text, in order.

    Raises:
        RequestError: an empty text, an id outside of the vocabulary, a `start` outside of the text, or a text with more tokens
            than the context and one; with the text's index. An adapter that the model does not have.
    """
    rows = _encoded(texts, tokenizer)
    own = model.model if isinstance(model, Engine) else model
    for index, ids in enumerate(rows):
        reason = why_not_ids(ids, own.config.vocab_size)
        _require(reason is None, reason or "", index)
    starts = list(start) if isinstance(start, Iterable) else [start] * len(rows)
    wrong = next((each for each in starts if not isinstance(each, (int, np.integer)) or isinstance(each, bool)), None)
    require(wrong is None, f"start has {wrong!r}; it takes whole numbers.", "start")
    require(len(starts) == len(rows), f"start has {len(starts)} entries for {len(rows)} texts.", "start")
    names = [adapter] * len(rows) if adapter is None or isinstance(adapter, str) else list(adapter)
    require(len(names) == len(rows), f"adapter has {len(names)} entries for {len(rows)} texts.", "adapter")
    numbers = [adapter_number(name, own) for name in names]
    wanted = top_logprobs
    is_count = isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool) and 0 <= wanted <= MAX_LOGPROBS
    require(is_count, f"top_logprobs is {wanted!r}; it must be between 0 and {MAX_LOGPROBS}.", "top_logprobs")
    keys: list[_Key] = [(ids, int(first), number) for ids, first, number in zip(rows, starts, numbers, strict=True)]
    unique = {key: index for index, key in reversed(list(enumerate(keys)))}  # -> the first text with this key
    engine = _engine(model, batch_size, len(unique))
    if engine.busy:
        raise UserError("the engine is busy with other requests; finish or close their stream first.")
    for (ids, first, _), index in unique.items():
        _check(ids, first, engine, index)
    done: dict[_Key, Scores] = {}
    with progress_bar("scoring", len(unique), visible=progress) as bar:
        for key, tokens in _run(engine, _in_order(unique), max(wanted, 1)):
            done[key] = _scores(key, tokens, wanted)
            bar.advance()
    return [done[key] for key in keys]


def _run(engine: Engine, keys: Sequence[_Key], alternatives: int) -> Iterator[tuple[_Key, list[TokenLogprob | None]]]:
    """Score every text; yield each when it is complete. Few are in the engine at a time, so that its cache does not grow."""
    sampling = Sampling(temperature=0, seed=0, logprobs=alternatives)
    waiting, size = deque(keys), 0
    running: dict[int, _Key] = {}
    tokens: dict[int, list[TokenLogprob | None]] = {}
    try:
        while waiting or engine.busy:
            while waiting and len(running) < engine.rows and (size == 0 or size + len(waiting[0][0]) <= _TOKENS):
                ids, first, adapter = key = waiting.popleft()
                number = engine.submit(Request(ids, sampling, 0, score_from=first, adapter=adapter))
                running[number], tokens[number] = key, []
                size += len(ids)
            for token in engine.step():
                tokens[token.number].append(token.logprob)
                if token.finish is not None:
                    key = running.pop(token.number)
                    size -= len(key[0])
                    yield key, tokens.pop(token.number)
    finally:
        for number in running:
            engine.cancel(number)


def _scores(key: _Key, tokens: Sequence[TokenLogprob | None], alternatives: int) -> Scores:
    ids, first, _ = key
    return Scores(
        token_ids=np.asarray(ids[first:], np.int32),
        logprobs=np.asarray([np.nan if token is None else token.logprob for token in tokens], np.float32),
        greedy=np.asarray([token is not None and token.top[0][0] == token.token_id for token in tokens], bool),
        top=tuple(() if token is None else token.top[:alternatives] for token in tokens),
    )


def _in_order(keys: Iterable[_Key]) -> list[_Key]:
    """Return the texts in an order in which several contexts come at once, and then what shares them.

    A text whose context is being computed for another one waits for it, and what is behind it in the queue waits too.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[_Key]] = {}
    for ids, first, adapter in keys:
        groups.setdefault((adapter, ids[:first]), []).append((ids, first, adapter))
    ordered = []
    contexts = list(groups.values())
    for place in range(0, len(contexts), _CONTEXTS):
        block = contexts[place : place + _CONTEXTS]
        ordered += [group[0] for group in block] + [key for group in block for key in group[1:]]
    return ordered


def _encoded(texts, tokenizer: Tokenizer | None) -> list[tuple[int, ...]]:
    """Return the token ids of each text."""
    if isinstance(texts, np.ndarray) or hasattr(texts, "tolist"):
        texts = texts.tolist()
    if isinstance(texts, str) or (isinstance(texts, Sequence) and texts and isinstance(texts[0], (int, np.integer))):
        texts = [texts]
    is_list = isinstance(texts, Sequence) and not isinstance(texts, bytes) and len(texts) > 0
    require(
        is_list and not is_message(texts[0]), "texts must be a non-empty list of texts or of token-id lists.", "texts"
    )
    rows = []
    for index, text in enumerate(texts):
        if isinstance(text, str):
            require(tokenizer is not None, "the texts need a tokenizer; give token ids.", "tokenizer")
            assert tokenizer is not None
            ids = tokenizer.encode(text)
        elif isinstance(text, (Sequence, np.ndarray)) and not isinstance(text, bytes):
            ids = list(text)
        else:
            raise RequestError(f"text {index} is a {type(text).__name__}; it must be a text or token ids.", "texts")
        rows.append(tuple(ids))
    return rows


def _engine(model: Qwen3 | Engine, batch_size: int | None, count: int) -> Engine:
    check_batch_size(batch_size, isinstance(model, Engine))
    if isinstance(model, Engine):
        return model
    return Engine(model, rows=row_size(count, batch_size or DEFAULT_ROWS), offline=True)


def _check(ids: tuple[int, ...], start: int, engine: Engine, index: int) -> None:
    """Refuse what cannot be scored before anything runs."""
    _require(len(ids) > 0, "the text has no tokens.", index)
    _require(0 <= start < len(ids), f"start is {start}; the text has {len(ids)} tokens.", index)
    reason = f"the text has {len(ids)} tokens; the maximum context length is {engine.max_length} tokens, and one more."
    _require(len(ids) - 1 <= engine.max_length, reason, index, too_long=True)


def _require(condition: bool, reason: str, index: int, *, too_long: bool = False) -> None:
    if not condition:
        error = RequestError(reason, "texts", too_long=too_long)
        error.prompt = index
        raise error
