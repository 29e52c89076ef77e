"""A prepared corpus: tokens in ArrayRecord, and what is known of each document beside them.

    corpus = Prepared("prepared/web")
    len(corpus), corpus.tokens                   # documents, tokens
    corpus.lengths[7], corpus.domain[7]          # columns are mapped from disk
    corpus.read([7, 4096])                       # list of Encoded

    FOLDER/dataset.json                          counts, label names, tokenizer, settings; written last
    FOLDER/00000.arrayrecord ...                 one record per document
    FOLDER/{lengths,domain,language,quality,key}.npy

A record is one byte (bit 0: tokens have 4 bytes and not 2; bit 1: not every token is learned; bit 2: it is a preference), of a
preference four bytes (the token at which the rejected document begins), the token ids, and where bit 1 is set one bit per
token, whether it is learned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.config import Where
from qwen3_jax.data.records import DataError, Encoded, TextTokenizer

MANIFEST = "dataset.json"
FORMAT = 2
# Columns of a document: tokens, indices into the manifest's names, quality, and what decides whether it is held out.
COLUMNS = {"lengths": "<i4", "domain": "<i2", "language": "<i2", "quality": "<f4", "key": "<u8"}


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a finished folder."""
    return "://" not in str(path) and (Path(path).expanduser() / MANIFEST).is_file()


class Prepared:
    """A finished folder.

    Attributes:
        manifest: dataset.json.
        lengths: int32 [documents], tokens.
        domain, language: int16 [documents], places in `names("domain")` and `names("language")`.
        quality: float32 [documents].
        key: uint64 [documents]; a document is held out where it is below eval_fraction * 2^64.

    Raises:
        DataError: the folder is not whole.
    """

    lengths: np.ndarray
    domain: np.ndarray
    language: np.ndarray
    quality: np.ndarray
    key: np.ndarray

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            for name in COLUMNS:
                setattr(self, name, np.load(self.folder / f"{name}.npy", mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder} is not a whole prepared corpus ({error}); prepare it again.") from None
        if self.manifest.get("format") != FORMAT:
            raise DataError(
                f"{self.folder} was prepared in format {self.manifest.get('format')}; this is {FORMAT}: prepare it again."
            )
        for name in COLUMNS:
            if len(getattr(self, name)) != self.manifest["documents"]:
                raise DataError(
                    f"{self.folder / name}.npy does not have the {self.manifest['documents']} entries of {MANIFEST}."
                )

    def __len__(self) -> int:
        return int(self.manifest["documents"])

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.manifest["tokens"])

    @property
    def pairs(self) -> bool:
        """Whether the documents are preferences."""
        return bool(self.manifest["settings"]["source"]["pairs"])

    @property
    def whole(self) -> int:
        """Number of documents of which every token is learned."""
        return int(self.manifest["whole"])

    def names(self, label: str) -> list[str]:
        """The names of a label's values ("domain" or "language")."""
        return list(self.manifest["names"][label])

    def check_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """Refuse another tokenizer than the one the corpus was prepared with.

        Raises:
            DataError: it is another.
        """
        if self.manifest["tokenizer"] != fingerprint(tokenizer):
            raise DataError(
                f"{self.folder} was prepared with another tokenizer than the run's; prepare it again with this one."
            )

    def held_out(self, fraction: float) -> np.ndarray:
        """bool [documents]. A threshold on the key, so a growing corpus never moves a document to the other side; where it
        leaves one side empty, the document nearest to the threshold crosses it (a lone one is trained on)."""
        keys = np.asarray(self.key)
        out = keys < np.uint64(fraction * 2**64)
        if len(keys) == 1:
            return np.zeros(1, bool)
        if fraction > 0 and (out.all() or not out.any()):
            out[keys.argmax() if out.all() else keys.argmin()] ^= True
        return out

    def select(self, where: Where) -> np.ndarray:
        """bool [documents]: those with these labels.

        Raises:
            DataError: there is no such label in the corpus.
        """
        out = np.ones(len(self), bool)
        for label in ("domain", "language"):
            wanted = getattr(where, label)
            if wanted is None:
                continue
            names = self.names(label)
            for name in wanted:
                if name not in names:
                    raise DataError(f"{self.folder} has no document with the {label} {name!r}; there are {names[:20]}")
            out &= np.isin(self.__dict__[label], [names.index(name) for name in wanted])
        for label, column in (("quality", self.quality), ("length", self.lengths)):
            lowest, highest = getattr(where, label) or (None, None)
            if lowest is not None:
                out &= column >= lowest
            if highest is not None:
                out &= column <= highest
        return out

    def read(self, documents: Sequence[int] | np.ndarray) -> list[Encoded]:
        """Tokens of some documents, in the order asked for; safe to call from several threads.

        Raises:
            DataError: a file is damaged; names it.
        """
        try:
            return [decode_record(raw) for raw in self._records.__getitems__([int(i) for i in documents])]
        except (ValueError, RuntimeError, IndexError) as error:
            raise DataError(f"{self.folder}: its ArrayRecord files are damaged: {error}") from error

    @cached_property
    def _records(self) -> Any:
        from grain.sources import ArrayRecordDataSource

        files = [str(self.folder / shard["file"]) for shard in self.manifest["shards"]]
        for file, shard in zip(files, self.manifest["shards"], strict=True):
            if not Path(file).is_file() or Path(file).stat().st_size != shard["bytes"]:
                raise DataError(f"{file} is missing or not as long as {MANIFEST} says; prepare the corpus again.")
        return ArrayRecordDataSource(files)


def encode_record(document: Encoded) -> bytes:
    """One document as an ArrayRecord record."""
    wide = bool(len(document.tokens)) and int(document.tokens.max()) >= 2**16
    partly = not bool(document.loss.all())
    pair = document.rejected.to_bytes(4, "little") if document.rejected else b""
    body = pair + document.tokens.astype("<u4" if wide else "<u2").tobytes()
    flags = wide | partly << 1 | bool(pair) << 2
    return bytes([flags]) + body + (np.packbits(document.loss).tobytes() if partly else b"")


def decode_record(raw: bytes) -> Encoded:
    """The inverse."""
    wide, partly, pair = raw[0] & 1, raw[0] >> 1 & 1, raw[0] >> 2 & 1
    width, start = 4 if wide else 2, 5 if pair else 1
    rejected = int.from_bytes(raw[1:5], "little") if pair else 0
    # With one bit per token, n tokens take n * width + ceil(n / 8) bytes.
    count = (len(raw) - start) * 8 // (8 * width + 1) if partly else (len(raw) - start) // width
    tokens = np.frombuffer(raw, "<u4" if wide else "<u2", count, start).astype(np.int32)
    if not partly:
        return Encoded(tokens, np.ones(count, bool), rejected)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8, offset=start + count * width), count=count)
    return Encoded(tokens, bits.astype(bool), rejected)


def fingerprint(tokenizer: TextTokenizer) -> str:
    """Sixteen hexadecimal digits of what decides how text becomes tokens: the vocabulary, its rules and the chat template."""
    return hashlib.blake2b(tokenizer.definition().encode(), digest_size=8).hexdigest()
