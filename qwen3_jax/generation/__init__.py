"""Sampling under a thinking budget, at three levels: `Engine` (tokens), `stream` (deltas), `generate` (answers)."""

from qwen3_jax.generation.answer import Delta, Generation, Usage
from qwen3_jax.generation.api import generate, stream, stream_requests
from qwen3_jax.generation.budget import ThinkingTokens
from qwen3_jax.generation.embeddings import embed, embedding_job
from qwen3_jax.generation.engine import Engine, can_continue
from qwen3_jax.generation.readout import Batch, Job, Reader, Reading, join
from qwen3_jax.generation.request import Constraint, Options, Request, adapter_number, end_tokens, resolve, with_budget
from qwen3_jax.generation.reranking import relevance_job, relevance_reading, rerank
from qwen3_jax.generation.rewards import reward
from qwen3_jax.generation.sampling import Sampling
from qwen3_jax.generation.scores import Scores, score
from qwen3_jax.generation.speculation import DraftModel, PromptLookup, Speculation
from qwen3_jax.generation.stats import Stats
from qwen3_jax.generation.tokens import Token, TokenLogprob
from qwen3_jax.text import STOP_TEXT

__all__ = [
    "STOP_TEXT",
    "Batch",
    "Constraint",
    "Delta",
    "DraftModel",
    "Engine",
    "Generation",
    "Job",
    "Options",
    "PromptLookup",
    "Reader",
    "Reading",
    "Request",
    "Sampling",
    "Scores",
    "Speculation",
    "Stats",
    "ThinkingTokens",
    "Token",
    "TokenLogprob",
    "Usage",
    "adapter_number",
    "can_continue",
    "embed",
    "embedding_job",
    "end_tokens",
    "generate",
    "join",
    "relevance_job",
    "relevance_reading",
    "rerank",
    "resolve",
    "reward",
    "score",
    "stream",
    "stream_requests",
    "with_budget",
]
