"""Data: sources of text and chat records, and the Grain pipeline that packs them into batches.

    from qwen3_jax.data import DataConfig, Source, make_train_loader

    config = DataConfig(sources=[Source("stdlib", "stdlib:")], sequence_length=512, batch_size=8)
    for batch in make_train_loader(config, tokenizer):
        ...

Numpy and Grain only: this room never imports JAX, and takes any tokenizer with `encode_batch`,
`apply_chat_template` and `endoftext_id`.
"""

from qwen3_jax.data.config import DataConfig, RunningSum, Source
from qwen3_jax.data.pipeline import Batch, corpus_unigram_entropy, make_eval_batches, make_train_loader
from qwen3_jax.data.reasoning import Problem, is_correct, problem_messages, problem_record, running_sum_problem
from qwen3_jax.data.records import DataError, Document, Encoded, Record, Segment, documents, encode
from qwen3_jax.data.sources import open_source, training_texts

__all__ = [
    "Batch",
    "DataConfig",
    "DataError",
    "Document",
    "Encoded",
    "Problem",
    "Record",
    "RunningSum",
    "Segment",
    "Source",
    "corpus_unigram_entropy",
    "documents",
    "encode",
    "is_correct",
    "make_eval_batches",
    "make_train_loader",
    "open_source",
    "problem_messages",
    "problem_record",
    "running_sum_problem",
    "training_texts",
]
