"""Data: corpora prepared once, mixtures planned from lengths, and batches for every host.

    from qwen3_jax.data import DataConfig, Source, make_train_loader, open_sources

    config = DataConfig(sources=[Source("stdlib", "stdlib:")], sequence_length=512, batch_size=8)
    corpora = open_sources(config, tokenizer, "prepared")
    for batch in make_train_loader(config, corpora):
        ...

    files and URLs -> sources -> records -> prepare -> prepared (ArrayRecord) -> mixture -> pipeline -> batches

Numpy and Grain only: this package never imports JAX, and takes any tokenizer with `encode_batch`, `apply_chat_template`,
`definition` and `endoftext_id`.
"""

from etils import epy

with epy.lazy_api_imports(globals()):  # Grain brings JAX with it, which the processes that prepare have no use for
    from qwen3_jax.data.batches import Batch, read_rows
    from qwen3_jax.data.config import Cleaning, DataConfig, Labels, LengthShare, RunningSum, Source, Where
    from qwen3_jax.data.pipeline import (
        corpus_unigram_entropy,
        make_eval_batches,
        make_train_loader,
        open_sources,
    )
    from qwen3_jax.data.preparation import prepare
    from qwen3_jax.data.prepared import Prepared
    from qwen3_jax.data.reasoning import Problem, is_correct, problem_messages, problem_record, running_sum_problem
    from qwen3_jax.data.records import DataError, Document, Encoded, Malformed, Record, Segment, encode
    from qwen3_jax.data.rendering import documents
    from qwen3_jax.data.sources import training_texts

__all__ = [
    "Batch",
    "Cleaning",
    "DataConfig",
    "DataError",
    "Document",
    "Encoded",
    "Labels",
    "LengthShare",
    "Malformed",
    "Prepared",
    "Problem",
    "Record",
    "RunningSum",
    "Segment",
    "Source",
    "Where",
    "corpus_unigram_entropy",
    "documents",
    "encode",
    "is_correct",
    "make_eval_batches",
    "make_train_loader",
    "open_sources",
    "prepare",
    "problem_messages",
    "problem_record",
    "read_rows",
    "running_sum_problem",
    "training_texts",
]
