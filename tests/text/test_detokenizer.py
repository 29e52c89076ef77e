"""The incremental detokeniser gives what decode gives, and never half a character."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from qwen3_jax.text import Tokenizer
from qwen3_jax.text.byte_level import BYTE_CHARACTERS, qwen3_config

IDS = st.lists(st.integers(0, 255) | st.integers(0, 151_935) | st.integers(151_640, 151_680), max_size=40)
BYTES = st.binary(max_size=24) | st.lists(
    st.sampled_from(
        [b"\xf0\x9f", b"\xe4\xbd", b"\xed\xa0\x80", b"\xc3", b"\xf4\x90", b"\xf0\x80", b"a", b"\xf0\x9f\x98\x80"]
    ),
    max_size=8,
).map(b"".join)


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token per byte, which no encoder would choose but a model may."""
    ids = [tokenizer.token_to_id(BYTE_CHARACTERS[byte]) for byte in data]
    assert None not in ids
    return ids  # type: ignore[return-value]


@settings(max_examples=500)
@given(IDS, BYTES, st.booleans())
def test_pieces_join_to_decode(real: Tokenizer, ids: list[int], data: bytes, skip: bool):
    """Any ids: invalid bytes, special tokens within a character, ids beyond the vocabulary."""
    ids = ids + byte_ids(real, data) + ids[::-1]
    detokenizer = real.detokenizer(skip_special_tokens=skip)
    for _ in range(2):  # after flush it starts afresh
        assert "".join([detokenizer.add(i) for i in ids] + [detokenizer.flush()]) == real.decode(ids, skip)
    assert detokenizer.flush() == ""


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_text_never_breaks_inside_a_character(real: Tokenizer, text: str):
    """Byte by byte: what was given out is always a prefix of the text, at most three bytes behind."""
    text = text.replace("\ufffd", "")
    detokenizer = real.detokenizer()
    data, out = text.encode(), ""
    for count, token_id in enumerate(byte_ids(real, data), 1):
        out += detokenizer.add(token_id)
        assert out == data[:count].decode("utf-8", "ignore")
    assert detokenizer.flush() == ""
    assert out == text


def test_added_tokens_outside_the_byte_alphabet(real: Tokenizer, tmp_path):
    """One with a space has no byte-level spelling; one with é has, by accident: the rule is decode's."""
    real.save_pretrained(tmp_path)
    backend = Tokenizer.from_pretrained(tmp_path)._backend
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("<a token>", "<é>", "<思考>")])
    tokenizer = Tokenizer(backend, qwen3_config(backend), {})
    assert tokenizer.vocab_size == 151_672
    ids = tokenizer.encode("x<a token>y<é>z<思考>")
    assert ids[-1] == 151_671
    detokenizer = tokenizer.detokenizer()
    text = "".join([detokenizer.add(i) for i in ids] + [detokenizer.flush()])
    assert text == tokenizer.decode(ids)
    assert text.startswith("x<a token>y")
    assert text.endswith("z<思考>")


def test_cost_does_not_grow_with_the_stream(real: Tokenizer):
    """200,000 tokens that never complete a character at once: a re-decoding detokeniser would need hours."""
    ids = byte_ids(real, b"\xf0\x9f\x98" * 66_000 + b"\xe4" * 2_000)
    detokenizer = real.detokenizer()
    start = time.process_time()
    text = "".join([detokenizer.add(i) for i in ids] + [detokenizer.flush()])
    assert time.process_time() - start < 10
    assert text == "\ufffd" * 68_000
