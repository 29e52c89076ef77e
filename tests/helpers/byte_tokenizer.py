"""A byte tokenizer with ChatML specials and the official Qwen3 template (ids are easy to read back), and packed rows
taken apart again."""

from functools import cache

import jinja2
import numpy as np

from qwen3_jax.text import quoting
from tests.helpers.real_tokenizer import package_file

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@cache
def _template() -> jinja2.Template:
    text = package_file("trl", "chat_templates", "qwen3.jinja").read_text()
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)


class ByteTokenizer:
    """Ids 0 to 255 are bytes (0 is a real token here too); specials follow."""

    endoftext_id = 256
    im_end_id = 258
    vocab_size = 256 + len(SPECIALS)

    def encode(self, text: str) -> list[int]:
        for number, special in enumerate(SPECIALS):
            if special in text:
                before, after = text.split(special, 1)
                return [*self.encode(before), 256 + number, *self.encode(after)]
        return list(text.encode())

    def encode_batch(self, texts) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def definition(self) -> str:
        return "bytes"

    def decode(self, ids) -> str:
        pieces = [bytes([i]) if i < 256 else SPECIALS[i - 256].encode() for i in ids]
        return b"".join(pieces).decode()

    special_tokens = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

    def encode_quoted(self, text: str) -> list[int]:
        ids = []
        for piece, plain in quoting.split(text, SPECIALS):
            ids += list(piece.encode()) if plain else self.encode(piece)
        return ids

    def apply_chat_template(
        self, messages, tools=None, add_generation_prompt=True, enable_thinking=True, quoted=False
    ) -> str:
        if quoted:
            messages = quoting.quote_messages(messages, self.special_tokens)
        return _template().render(
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
        )


def segments_of(row):
    """The packed segments of one row: lists of (token, target, loss, position)."""
    ids = row["segment_ids"]
    for number in range(1, ids.max() + 1):
        (where,) = np.nonzero(ids == number)
        assert (np.diff(where) == 1).all(), "a segment is contiguous"
        columns = (row[name][where].tolist() for name in ("tokens", "targets", "loss_mask", "positions"))
        yield list(zip(*columns, strict=True))
