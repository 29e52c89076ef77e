"""The tokenizers that the text tests share, each loaded once per session."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tests fork; the library would warn of it

from qwen3_jax.text import Tokenizer
from tests.helpers.real_tokenizer import build_real_tokenizer


@pytest.fixture(scope="session")
def real_folder(request: pytest.FixtureRequest) -> Path:
    """The real Qwen3 tokenizer folder, kept in pytest's cache between runs."""
    return build_real_tokenizer(request.config.cache.mkdir("qwen3_tokenizer"))


@pytest.fixture(scope="session")
def real(real_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def official(real_folder: Path):
    """transformers' tokenizer of the same folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_folder)
