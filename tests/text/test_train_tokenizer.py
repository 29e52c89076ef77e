"""Training: Qwen3's shape, the same result every time, and a folder that transformers reads."""

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFC

from qwen3_jax.text import Tokenizer, TokenizerError, train_from_files, train_tokenizer
from tests.helpers.corpus import AWKWARD, DECLARATION

LIBRARY = sorted(Path(json.__file__).parent.parent.glob("*.py"))[:40]
TEXTS = [path.read_text("utf-8") for path in LIBRARY] + [text * 3 for text in DECLARATION.values()]


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    return train_tokenizer(TEXTS, 3000)


def test_has_qwen3s_shape(trained: Tokenizer, real: Tokenizer):
    """Bytes first in Qwen's order, merges, then the 26 added tokens in Qwen3's order with Qwen3's flags."""
    assert trained.vocab_size == 3000
    assert [trained.id_to_token(i) for i in range(256)] == [real.id_to_token(i) for i in range(256)]
    ours, theirs = range(2974, 3000), range(151_643, 151_669)
    assert [trained.id_to_token(i) for i in ours] == [real.id_to_token(i) for i in theirs]
    assert [i in trained.special_ids for i in ours] == [i in real.special_ids for i in theirs]
    assert (trained.bos_token_id, trained.eos_token_id, trained.pad_token_id) == (None, 2976, 2974)
    assert (trained.think_start_id, trained.think_end_id) == (2998, 2999)
    assert trained.supports_thinking
    assert not trained.has_own_chat_template
    assert trained.apply_chat_template([{"role": "user", "content": "Hi"}]) == real.apply_chat_template(
        [{"role": "user", "content": "Hi"}]
    )
    source = TEXTS[0]
    assert len(trained.encode(source)) < 0.5 * len(source)  # it has learned something
    assert [trained.decode([i]) for i in trained.encode("12  in")] == ["1", "2", " ", " in"]  # Qwen's splits


def test_same_texts_give_the_same_tokenizer(trained: Tokenizer, tmp_path: Path):
    again = train_tokenizer(iter(reversed(TEXTS)), 3000)
    trained.save_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_transformers_reads_it(trained: Tokenizer, tmp_path: Path, caplog):
    from transformers import AutoTokenizer
    from transformers.utils import logging as theirs

    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))  # as beside a checkpoint
    theirs.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            official = AutoTokenizer.from_pretrained(tmp_path)
    finally:
        theirs.disable_propagation()
    assert not caplog.records, caplog.text
    texts = [*TEXTS[:8], *DECLARATION.values(), *AWKWARD]
    assert official(texts, add_special_tokens=False)["input_ids"] == trained.encode_batch(texts)
    assert (len(official), official.eos_token_id, official.pad_token_id) == (3000, 2976, 2974)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\nA\n</think>\n\nB"}]
    assert official.apply_chat_template(messages, tokenize=False) == trained.apply_chat_template(
        messages, add_generation_prompt=False
    )
    for ids in (trained.encode("<think>é</think><|im_end|>"), list(range(3000))):
        for skip in (False, True):
            assert official.decode(ids, skip_special_tokens=skip) == trained.decode(ids, skip)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives(trained: Tokenizer, text: str):
    assert trained.decode(trained.encode(text)) == NFC().normalize_str(text)


def test_training_from_files(tmp_path: Path):
    """Globs, JSONL and line ends; each wrong file named."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_bytes(("naïve text\r\n" * 50).encode())
    (tmp_path / "deep" / "b.txt").write_text("more words here\n" * 50)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "lines of words\n" * 50}) + "\n\n")
    tokenizer = train_from_files(
        [str(tmp_path / "**" / "*.txt"), tmp_path / "c.jsonl", str(tmp_path / "deep" / "b.txt")],
        300, tmp_path / "out", show_progress=False,
    )  # fmt: skip
    assert tokenizer.vocab_size == 300
    same = train_tokenizer(["naïve text\r\n" * 50, "more words here\n" * 50, "lines of words\n" * 50], 300)
    text = "naïve text\r\nmore words of lines"
    assert Tokenizer.from_pretrained(tmp_path / "out").encode(text) == same.encode(text) == tokenizer.encode(text)
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    for paths, error in (
        ([tmp_path / "bad.jsonl"], r"bad\.jsonl, line 2 is not a JSON object with a string under 'text'"),
        ([tmp_path / "bad.txt"], r"cannot read .*bad\.txt as UTF-8"),
        ([str(tmp_path / "*.none")], r"no file matches .*\*\.none"),
        ([], "no files"),
    ):
        with pytest.raises(TokenizerError, match=error):
            train_from_files(paths, 300, tmp_path / "never", show_progress=False)
    assert not (tmp_path / "never").exists()


def test_sizes_that_cannot_be(tmp_path: Path):
    with pytest.raises(TokenizerError, match="vocab_size 281 is too small: 256 bytes and 26 added tokens need 282"):
        train_tokenizer(["x"], 281)
    assert train_tokenizer(["x"], 282).vocab_size == 282
    with pytest.raises(TokenizerError, match="only 284 tokens, fewer than the vocab_size 5000"):
        train_tokenizer(["abc"], 5000)
