"""Embeddings of texts.

    model, tokenizer = qwen3_jax.load("Qwen/Qwen3-Embedding-0.6B")
    queries = qwen3_jax.embed(model, tokenizer, ["What is the capital of China?"], prompt_name="query")
    documents = qwen3_jax.embed(model, tokenizer, ["The capital of China is Beijing."])
    queries @ documents.T                                            # cosine similarities [1, 1]

The states after the final norm are pooled as the checkpoint's `EmbeddingConfig` says; without one, the last token's state is
the embedding, at length 1. Sources: the model card of Qwen3-Embedding; sentence-transformers 6.2 (`encode`, `Pooling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.embedding_config import EmbeddingConfig
from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation.readout import Job, Reader, Reading, checked, last_states, run
from qwen3_jax.model import Qwen3, RewardModel
from qwen3_jax.text import Tokenizer

_SMALLEST = 1e-12  # torch's normalize divides by no less
_NO_TOKENS = 1e-9  # sentence-transformers' means do
_ONE = "give one of prompt_name, prompt and instruction"


def embed(
    model: Qwen3,
    tokenizer: Tokenizer | None,
    texts: str | Sequence[str | Sequence[int]],
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    instruction: str | None = None,
    dimensions: int | None = None,
    normalize: bool | None = None,
    truncate: bool = False,
    batch_size: int = 8,
) -> np.ndarray:
    """Return the embedding of each text, float32 [N, D].

    Args:
        model: an embedding model (`load` of Qwen3-Embedding), or a language model; on any mesh.
        tokenizer: its tokenizer; only texts need it.
        texts: texts, or lists of token ids, which get neither a prompt nor an end token. A single text is a list of one. The
            text of a special token is read as that token, as transformers does.
        prompt_name: the name of one of the checkpoint's prompts ("query"), which is put before each text; by default its
            `default_prompt_name`.
        prompt: a text to put before each text.
        instruction: a task, for queries: puts "Instruct: {instruction}\\nQuery:" before each text.
        dimensions: keep the first numbers of an embedding, for models that were trained so (Matryoshka); None keeps all.
        normalize: give embeddings, after `dimensions`, the length 1; None is the checkpoint's way, which for Qwen3-Embedding is
            to do so.
        truncate: cut off the end of a text that is too long, and keep the end token; by default it is refused.
        batch_size: most texts computed together; fewer where they are long.

    Raises:
        UserError: a text is empty or too long, by its number; an unknown prompt, or several; the model is a reward model.
        TokenizerError: a text is not a string.
    """
    options: dict[str, Any] = dict(prompt_name=prompt_name, prompt=prompt, instruction=instruction)
    options |= dict(dimensions=dimensions, normalize=normalize, truncate=truncate)
    job = embedding_job(model, tokenizer, [texts] if isinstance(texts, str) else texts, **options)
    if not job.ids:
        return job.finish(np.zeros((0, model.config.hidden_size * len(_config(model).pooling)), np.float32))
    return run(job, Reader(model), batch_size)


@dataclass(frozen=True)
class Pooling:
    """The reading that makes one vector of a text's states: [R, D], or [R, D x modes]; float32.

    As sentence-transformers computes it without padding: positions are counted from the text's first token.
    """

    modes: tuple[str, ...]

    def __call__(self, model: Qwen3, states: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array:
        states = states.astype(jnp.float32)
        return jnp.concatenate([_pooled(mode, states, starts, lengths) for mode in self.modes], axis=-1)


def _pooled(mode: str, states: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array:
    """Pool states [R, T, D] of tokens from `starts` to before `lengths`, both [R]."""
    some = (starts < lengths)[:, None]  # of a prompt alone, nothing may be left
    if mode == "lasttoken":
        return jnp.where(some, last_states(states, lengths), 0)
    if mode == "cls":
        return last_states(states, jnp.where(starts < lengths, starts, 0) + 1)
    place = jnp.arange(states.shape[1])
    counts = ((place >= starts[:, None]) & (place < lengths[:, None]))[..., None]
    if mode == "max":
        return jnp.where(counts, states, -jnp.inf).max(axis=1)
    weights = counts * (place[:, None] + 1.0 if mode == "weightedmean" else 1.0)
    total = jnp.maximum(weights.sum(axis=1), _NO_TOKENS)
    return (states * weights).sum(axis=1) / (jnp.sqrt(total) if mode == "mean_sqrt_len_tokens" else total)


def embedding_job(
    model: Qwen3, tokenizer: Tokenizer | None, texts: Sequence[Any], *,
    prompt_name: str | None = None, prompt: str | None = None, instruction: str | None = None,
    dimensions: int | None = None, normalize: bool | None = None, truncate: bool = False,
    name: str = "texts", limit: int | None = None,
) -> Job:  # fmt: skip
    """Return what `embed` computes; arguments and errors as there.

    Args:
        name: of the texts in errors.
        limit: most tokens of a text, besides the checkpoint's own limit.
    """
    if isinstance(model, RewardModel):
        raise UserError(f"{model.no_text}, or `qwen3_jax.rerank` the relevance of documents.")
    config = _config(model)
    before = _prompt(config, prompt_name, prompt, instruction)
    width = model.config.hidden_size * len(config.pooling)
    if dimensions is not None and not 1 <= dimensions <= width:
        raise RequestError(f"dimensions is {dimensions}; this model's embeddings have 1 to {width}.", "dimensions")
    own = _limit(model, tokenizer, config)
    limit = own if limit is None else min(own, limit)
    every = []
    for place, text in enumerate(texts):
        ids = _tokens(tokenizer, text, before, limit if truncate else None, f"{name}[{place}]")
        if len(ids) > limit:
            reason = f"{name}[{place}] has {len(ids)} tokens; the maximum context length of a text is {limit}."
            raise RequestError(f"{reason} Shorten it, or have it truncated.", name, too_long=True)
        every.append(checked(model, ids, f"{name}[{place}]", name))
    starts = None
    if before and not config.include_prompt and tokenizer is not None:
        ids = tokenizer.encode_whole(before, limit)
        start = len(ids) - (bool(ids) and ids[-1] in tokenizer.special_ids)
        starts = [start if isinstance(text, str) else 0 for text in texts]
    unit = config.normalize if normalize is None else normalize

    def finish(pooled: np.ndarray) -> np.ndarray:
        pooled = pooled[:, :dimensions]
        lengths = np.linalg.norm(pooled, axis=-1, keepdims=True) if unit else 1
        return (pooled / np.maximum(lengths, _SMALLEST)).astype(np.float32)

    return Job(every, embedding_reading(model), starts, finish)


def embedding_reading(model: Qwen3) -> Reading:
    """Return what is read of texts."""
    return Pooling(_config(model).pooling)


def _config(model: Qwen3) -> EmbeddingConfig:
    return model.embedding_config or EmbeddingConfig()


def _prompt(config: EmbeddingConfig, name: str | None, prompt: str | None, instruction: str | None) -> str:
    """Return the text that is put before each text."""
    if sum(one is not None for one in (name, prompt, instruction)) > 1:
        raise RequestError(f"there is more than one prompt; {_ONE}.", "prompt_name")
    if prompt is not None:
        return prompt
    if instruction is not None:
        return f"Instruct: {instruction}\nQuery:"
    name = config.default_prompt_name if name is None else name
    try:
        return "" if name is None else config.prompt(name)
    except UserError as error:
        raise RequestError(str(error), "prompt_name") from None


def _limit(model: Qwen3, tokenizer: Tokenizer | None, config: EmbeddingConfig) -> int:
    """Return the most tokens of a text."""
    own = config.max_seq_length or (None if tokenizer is None else tokenizer.model_max_length)
    positions = model.config.max_position_embeddings
    return positions if own is None else min(own, positions)


def _tokens(tokenizer: Tokenizer | None, text: Any, prompt: str, most: int | None, name: str) -> list[int]:
    """Return the ids of a text with its prompt and end token; with `most`, no more than that."""
    if not isinstance(text, str):
        ids: list[Any] = list(text) if isinstance(text, Sequence | np.ndarray) else [None]
        if not all(isinstance(one, int | np.integer) for one in ids):
            raise RequestError(f"{name} must be a text or a list of token ids.", name.partition("[")[0])
        return ids[:most]
    if tokenizer is None:
        raise UserError(f"{name} is text, which needs the tokenizer of the model.")
    return tokenizer.encode_whole(prompt + text, most)
