"""A prepared corpus: tokens in ArrayRecord, and what is known of each document beside them.

    corpus = Prepared("prepared/web")
    len(corpus), corpus.tokens                   # documents, tokens
    corpus.lengths[7], corpus.domain[7]          # columns are mapped from disk
    corpus.read([7, 4096])                       # list of Encoded

    FOLDER/dataset.json                          counts, label names, tokenizer, settings; written last
    FOLDER/00000.arrayrecord ...                 one record per document
    FOLDER/{lengths,domain,language,quality,key}.npy
    FOLDER/files.json                            the files that it was prepared from, and their sizes
    FOLDER/labels/                               labels that were attached later (`qwen3_jax.data.attached`)

A record is one byte (bit 0: tokens have 4 bytes and not 2; bit 1: not every token is learned; bit 2: it is a preference), of a
preference four bytes (the token at which the rejected document begins), the token ids, and where bit 1 is set one bit per
token, whether it is learned.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.config import NAMED_LABELS, RANGED_LABELS, check_where
from qwen3_jax.data.records import DataError, Encoded, TextTokenizer
from qwen3_jax.errors import nearest

MANIFEST, LABELS, LABELS_FILE = "dataset.json", "labels", "labels.json"
FORMAT = 2
# Columns of a document: tokens, indices into the manifest's names, quality, and what decides whether it is held out.
COLUMNS = {"lengths": "<i4", "domain": "<i2", "language": "<i2", "quality": "<f4", "key": "<u8"}


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a finished folder."""
    return "://" not in str(path) and (Path(path).expanduser() / MANIFEST).is_file()


@dataclass(frozen=True)
class Attached:
    """A label that was attached to a prepared corpus.

    Attributes:
        column: float32 [documents], NaN where a document has none; or int16 [documents], places in `names`, -1 for none.
        names: its different values; None for numbers.
        without: documents that have none.
        unknown: labelled records that no document was made of.
        digest: of the column.
        source, field, origin: folder and field that it was read from, and a digest of that folder.
    """

    column: np.ndarray
    names: list[str | bool] | None
    without: int
    unknown: int
    digest: str
    source: str
    field: str
    origin: str

    def groups(self, most: int = 24) -> list[tuple[Any, np.ndarray]]:
        """(value, bool [documents]) of the most frequent values, and of "none"; ranges where numbers have more than `most`."""
        column = np.asarray(self.column)
        if self.names is not None:
            counts = np.bincount(column[column >= 0], minlength=len(self.names))
            out: list[tuple[Any, np.ndarray]] = [
                (self.names[place], column == place) for place in np.argsort(-counts, kind="stable")[:most]
            ]
            return [*out, ("none", column < 0)]
        values = np.unique(column[~np.isnan(column)])
        if len(values) <= most:
            out = [(f"{value:g}", column == value) for value in values]
        else:
            edges = np.quantile(values, np.linspace(0, 1, 9))
            out = [
                (f"{low:g} to {high:g}", in_range(column, [low, high]) & (column != low if start else True))
                for start, (low, high) in enumerate(itertools.pairwise(edges))
            ]
        return [*out, ("none", np.isnan(column))]

    def select(self, wanted: Sequence[Any], where: str) -> np.ndarray:
        """bool [documents]: those in a range, or with one of the names.

        Raises:
            DataError: there is no such name, or the label is of the other kind; `where` stands before the sentence.
        """
        is_range = not any(isinstance(value, str | bool) for value in wanted)
        if self.names is None:
            if not is_range:
                raise DataError(f"{where} is a number; give a range [lowest, highest], not {list(wanted)}")
            return in_range(self.column, wanted)
        if is_range:
            raise DataError(f"{where} is one of {self.names[:20]}; give some of these, not {list(wanted)}")
        for value in wanted:
            if value not in self.names:
                raise DataError(f"{where} is never {value!r}; there are {self.names[:20]}")
        return np.isin(self.column, [place for place, name in enumerate(self.names) if name in wanted])


def in_range(column: np.ndarray, limits: Sequence[float | None]) -> np.ndarray:
    """bool [documents]: from the lowest to the highest, both included; None is open."""
    lowest, highest = limits
    out = np.ones(len(column), bool)
    if lowest is not None:
        out &= column >= lowest
    if highest is not None:
        out &= column <= highest
    return out


def read_attached(folder: Path, documents: int) -> dict[str, Attached]:
    """The labels that were attached to a prepared folder.

    Raises:
        DataError: a column is missing, or not of this corpus.
    """
    file = folder / LABELS / LABELS_FILE
    if not file.exists():
        return {}
    out = {}
    try:
        for name, entry in json.loads(file.read_text(encoding="utf-8")).items():
            column = np.load(folder / LABELS / entry["file"], mmap_mode="r")
            if len(column) != documents:
                raise ValueError(f"{entry['file']} has {len(column)} entries, not {documents}")
            numbers = (entry[field] for field in ("without", "unknown"))
            texts = (entry[field] for field in ("digest", "from", "field", "origin"))
            out[name] = Attached(column, entry["names"], *numbers, *texts)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the labels in {file.parent} are damaged ({error}); delete that folder, and label again."
        ) from None
    return out


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

    @cached_property
    def attached(self) -> dict[str, Attached]:
        """Labels that were attached since it was prepared, by name."""
        return read_attached(self.folder, len(self))

    def select(self, where: Mapping[str, Any]) -> np.ndarray:
        """bool [documents]: those with these labels (`Source.where`). What has no attached label is not selected by it.

        Raises:
            DataError: there is no such label in the corpus, or no such name.
        """
        out = np.ones(len(self), bool)
        for label, wanted in check_where(where).items():
            if wanted is None:
                continue
            if label in NAMED_LABELS:
                names = self.names(label)
                for name in wanted:
                    if name not in names:
                        raise DataError(
                            f"{self.folder} has no document with the {label} {name!r}; there are {names[:20]}"
                        )
                out &= np.isin(self.__dict__[label], [names.index(name) for name in wanted])
            elif label in RANGED_LABELS:
                out &= in_range(self.quality if label == "quality" else self.lengths, wanted)
            elif label in self.attached:
                out &= self.attached[label].select(wanted, f"{self.folder}: the label {label!r}")
            else:
                known = [*NAMED_LABELS, *RANGED_LABELS, *self.attached]
                raise DataError(
                    f"{self.folder} has no label {label!r}; there are {', '.join(known)}.{nearest(label, known)} "
                    "`qwen3 data label` attaches others."
                )
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
