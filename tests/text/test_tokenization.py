"""The real vocabulary: ids equal to transformers', both ways."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC

from qwen3_jax.text import Tokenizer, TokenizerError
from qwen3_jax.text.byte_level import QWEN3_ADDED_TOKENS
from tests.helpers.corpus import AWKWARD, DECLARATION, documents

nfc = NFC().normalize_str  # not unicodedata's, whose Unicode version is that of the Python
ADDED = [text for text, _ in QWEN3_ADDED_TOKENS]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
SCRIPTS = st.text(st.sampled_from(sorted(set("".join([*DECLARATION.values(), *AWKWARD])))), max_size=60)
MIXED = st.lists(TEXT | SCRIPTS | st.sampled_from([*ADDED, " ", "\n\n"]), max_size=6).map("".join)


def test_known_ids_and_special_tokens(real: Tokenizer):
    """The example and the ids of Qwen's documentation; every one looked up, none written into the code."""
    ids = real.encode("Give me a short introduction to large language model.")
    assert ids == [35127, 752, 264, 2805, 16800, 311, 3460, 4128, 1614, 13]
    assert real.vocab_size == 151_669
    assert (real.endoftext_id, real.im_start_id, real.im_end_id) == (151643, 151644, 151645)
    assert (real.tool_call_start_id, real.tool_call_end_id) == (151657, 151658)
    assert (real.think_start_id, real.think_end_id) == (151667, 151668)
    assert (real.bos_token_id, real.eos_token_id, real.pad_token_id) == (None, 151645, 151643)
    assert real.id_to_token(151668) == "</think>"
    assert real.id_to_token(151_700) is None
    assert real.token_to_id("no such token") is None
    assert real.special_ids == frozenset(range(151643, 151657))
    assert real.supports_thinking
    assert real.has_own_chat_template
    assert "151669" in repr(real)


def test_corpus_equals_transformers(real: Tokenizer, official):
    """Source code, message catalogues and 22 languages: the same ids, and the same text back."""
    texts = documents()
    assert sum(map(len, texts)) > 1_000_000
    assert len(set("".join(texts))) > 30_000  # all of Unicode's scripts
    expected = official(texts, add_special_tokens=False)["input_ids"]
    actual = real.encode_batch(texts)
    for text, ours, theirs in zip(texts, actual, expected, strict=True):
        assert ours == theirs, text[:200]
        assert real.decode(ours) == official.decode(theirs, clean_up_tokenization_spaces=False)
        if not any(token in text for token in ADDED):
            assert real.decode(ours) == nfc(text)
    assert real.encode(texts[-1]) == actual[-1]


@settings(max_examples=400)
@given(MIXED, st.lists(st.integers(0, 151_935), max_size=30))
def test_generated_text_and_ids_equal_transformers(real: Tokenizer, official, text: str, ids: list[int]):
    assert real.encode(text) == official.encode(text, add_special_tokens=False)
    for skip in (False, True):
        assert real.decode(ids, skip) == official.decode(ids, skip_special_tokens=skip)
    assert real.decode(np.array(ids, np.int32)) == real.decode(ids)


@settings(max_examples=200)
@given(MIXED)
def test_encode_ordinary_has_no_added_tokens_and_loses_nothing(real: Tokenizer, text: str):
    ids = real.encode_ordinary(text)
    assert all(i < 151_643 for i in ids)
    assert real.decode(ids) == nfc(text)
    if not any(token in text for token in ADDED):
        assert ids == real.encode(text)


def test_pickle_and_wrong_input(real: Tokenizer):
    """A worker process gets an equal tokenizer; wrong input is named."""
    copy = pickle.loads(pickle.dumps(real))
    assert copy.encode_batch(AWKWARD) == real.encode_batch(AWKWARD)
    assert copy.apply_chat_template([{"role": "user", "content": "x"}]) == real.apply_chat_template(
        [{"role": "user", "content": "x"}]
    )
    assert copy.eos_token_id == real.eos_token_id
    with pytest.raises(TokenizerError, match="not a int"):
        real.encode_batch(["fine", 5])
    with pytest.raises(TokenizerError, match=r"lone surrogate U\+D800 at character 2"):
        real.encode("ab\ud800")
    with pytest.raises(TokenizerError, match="-1 is not a token id"):
        real.decode([5, -1])
    with pytest.raises(TokenizerError, match="-1 is not a token id"):
        real.detokenizer().add(-1)
    with pytest.raises(TokenizerError, match="4294967296 is not a token id"):  # the Rust library takes 32 bits
        real.decode([5, 2**32])
    assert real.decode([5, 2**32 - 1]) == real.decode([5])  # as transformers: an id of no token is left out
    assert real.decode([]) == ""


def test_import_is_light():
    """The text room loads neither JAX nor any training framework."""
    code = "import sys, qwen3_jax.text; print({'jax', 'flax', 'numpy', 'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
