"""The relevance of documents for a query.

    model, tokenizer = qwen3_jax.load("Qwen/Qwen3-Reranker-0.6B")
    qwen3_jax.rerank(model, tokenizer, "The capital of China?", ["Beijing.", "Gravity attracts."])  # [0.99, 0.01]

A language model is asked whether a document meets the requirements, and the relevance is the probability of "yes" against that
of "no". Its conversion into a classifier with one label, whose head is the difference of both rows of the output projection,
gives the sigmoid of its score. Source: the model card of Qwen3-Reranker.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from qwen3_jax.errors import RequestError, UserError
from qwen3_jax.generation.readout import Job, Reader, Reading, checked, last_states, run
from qwen3_jax.model import EmbeddingModel, Qwen3, RewardModel
from qwen3_jax.text import Tokenizer

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note "
    'that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def rerank(
    model: Qwen3,
    tokenizer: Tokenizer,
    query: str,
    documents: Sequence[str],
    *,
    instruction: str = INSTRUCTION,
    batch_size: int = 8,
) -> list[float]:
    """Return the relevance of each document for a query, 0 to 1, in the order of the documents.

    Args:
        model: Qwen3-Reranker or another language model, or a classifier with one label (`RewardModel`) that it was converted
            to; on any mesh.
        tokenizer: its tokenizer.
        query: what is looked for.
        documents: texts. The texts of special tokens in them, in the query and in the instruction are plain characters.
        instruction: the task.
        batch_size: most documents computed together; fewer where they are long.

    Raises:
        UserError: the model is an embedding model, the tokenizer has no token "yes" or "no", or a document with the query is
            too long, by its number.
        RequestError: the query or a document is no text.
    """
    if isinstance(documents, str):
        raise UserError("documents is one text; give a list of texts.")
    job = relevance_job(model, tokenizer, query, documents, instruction)
    return run(job, Reader(model), batch_size) if job.ids else []


@dataclass(frozen=True)
class Relevance:
    """The reading that gives the relevance [R] after a prompt: softmax of the logits of two tokens, no and yes."""

    no: int
    yes: int

    def __call__(self, model: Qwen3, states: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array:
        logits = model.logits(last_states(states, lengths))
        return jax.nn.sigmoid(logits[:, self.yes] - logits[:, self.no])  # softmax over both


def _score(model: Qwen3, states: jax.Array, starts: jax.Array, lengths: jax.Array) -> jax.Array:
    assert isinstance(model, RewardModel)
    return jax.nn.sigmoid(model.rewards(last_states(states, lengths)))


def relevance_job(
    model: Qwen3, tokenizer: Tokenizer, query: str, documents: Sequence[str], instruction: str = INSTRUCTION,
    *, limit: int | None = None,
) -> Job:  # fmt: skip
    """Return what `rerank` computes; arguments and errors as there. `limit` is the most tokens of a document with its query."""
    if isinstance(model, EmbeddingModel):
        raise UserError("an embedding model judges no documents; compare the embeddings of `qwen3_jax.embed`.")
    for name, text in (
        ("query", query),
        ("instruction", instruction),
        *((f"documents[{i}]", d) for i, d in enumerate(documents)),
    ):
        if not isinstance(text, str):
            raise RequestError(f"{name} must be a text, not a {type(text).__name__}.", name.partition("[")[0])
    prefix, suffix = tokenizer.encode(_PREFIX), tokenizer.encode(_SUFFIX)
    every = []
    for place, document in enumerate(documents):
        text = f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
        ids = [*prefix, *tokenizer.encode_quoted(tokenizer.quoted(text)), *suffix]
        every.append(checked(model, ids, f"documents[{place}] with its query", "documents", limit))
    return Job(every, relevance_reading(model, tokenizer), finish=np.ndarray.tolist)


def relevance_reading(model: Qwen3, tokenizer: Tokenizer) -> Reading:
    """Return what is read of prompts.

    Raises:
        UserError: the tokenizer has no token "yes" or "no".
    """
    if isinstance(model, RewardModel):
        return _score
    no, yes = tokenizer.token_to_id("no"), tokenizer.token_to_id("yes")
    if no is None or yes is None:
        raise UserError(f"the tokenizer has no token {'no' if no is None else 'yes'!r}, by which a document is judged.")
    return Relevance(no, yes)
