r"""Token ids to text, one at a time, for streaming.

    detokenizer = tokenizer.detokenizer()
    for token_id in generated:
        print(detokenizer.add(token_id), end="")
    print(detokenizer.flush())

A byte-level token may end in the middle of a character, so the bytes of an unfinished character wait for the next
token. Invariant: `"".join(add(i) for i in ids) + flush() == tokenizer.decode(ids)` for any ids.
"""

import codecs
from collections.abc import Callable, Collection


class Detokenizer:
    """Incremental decoding of one token stream, O(1) per token.

    token_bytes: the bytes of a token id; empty for ids that stand for nothing (the padding rows of an embedding).
    skip_ids: ids that give no text (the special tokens, under skip_special_tokens).
    """

    def __init__(self, token_bytes: Callable[[int], bytes], skip_ids: Collection[int] = ()) -> None:
        self._token_bytes = token_bytes
        self._skip_ids = frozenset(skip_ids)
        # "replace" puts U+FFFD only for bytes that can no longer become a character; it replaces maximal
        # subparts, as the Rust decoder behind Tokenizer.decode does.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished.

        Raises TokenizerError for a negative id.
        """
        token_id = int(token_id)
        if token_id in self._skip_ids:
            return ""
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing. The next `add` starts afresh."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest
