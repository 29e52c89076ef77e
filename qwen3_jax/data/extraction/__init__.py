"""Documents to records of text: PDF, HTML and EPUB files, page by page (`qwen3 data extract`; extra `extract`).

    extracted = extract(["papers/", "book.epub"], "text/papers")
    extracted.documents, extracted.failed

    files -> splits -> documents -> (PDFium, Resiliparse: in processes that can be ended) -> pages -> text -> records

Imports no JAX.
"""

from qwen3_jax.data.extraction.documents import read_document
from qwen3_jax.data.extraction.job import Extracted, extract
from qwen3_jax.data.extraction.options import Limits, Options, Recognition, Unreadable

__all__ = ["Extracted", "Limits", "Options", "Recognition", "Unreadable", "extract", "read_document"]
