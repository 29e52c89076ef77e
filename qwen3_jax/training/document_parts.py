"""What is computed of every document of a corpus before training, in a folder of the run: one file per 1,024 documents.

FOLDER/key.json          what it was computed from
FOLDER/00000.SUFFIX ...  its parts

A part is written whole or not at all, so an interrupted computation resumes after the last one. The first process writes; it
also says which parts there are, so that all processes compute the same ones together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from qwen3_jax.data import Prepared
from qwen3_jax.data.token_targets import PART
from qwen3_jax.errors import UserError
from qwen3_jax.json_fields import read_json
from qwen3_jax.paths import is_url, replace_file


@dataclasses.dataclass(frozen=True)
class Parts:
    """The files of one corpus.

    Attributes:
        folder: where they lie, on a disk or in a bucket.
        documents: of the corpus.
        suffix: of the files' names.
        size: documents of a part; the last one may have fewer.
    """

    folder: Path
    documents: int
    suffix: str
    size: int = PART

    def __len__(self) -> int:
        return -(-self.documents // self.size)

    def file(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:05d}{self.suffix}"

    def range(self, number: int) -> range:
        """The documents of a part."""
        return range(number * self.size, min((number + 1) * self.size, self.documents))

    def within(self, number: int, documents: np.ndarray) -> np.ndarray:
        """Those of some documents, ascending, that a part has."""
        here = self.range(number)
        return documents[np.searchsorted(documents, here.start) : np.searchsorted(documents, here.stop)]

    def claim(self, key: Mapping[str, Any], names: Mapping[str, str], what: str, name: str = "key.json") -> None:
        """Write what the parts are computed from, or compare it with what they were.

        Args:
            key: JSON values.
            names: for each, what a user calls it.
            what: the parts hold.
            name: of the file.

        Raises:
            UserError: they are of other values.
        """
        file = self.folder / name
        if file.exists():
            saved = read_json(file)
            for field, of in names.items():
                if saved.get(field) != key[field]:
                    raise UserError(
                        f"{self.folder} holds {what} for other files than {of} are now; restore those, or start a new run."
                    )
        elif jax.process_index() == 0:
            if not is_url(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(key) + "\n")

    def missing(self, is_done: Callable[[int], bool]) -> list[int]:
        """Return the parts that are to be computed, as the first process says; `is_done` looks into a file that is there.

        Raises:
            UserError: a part is damaged.
        """
        done = np.asarray([self.file(number).exists() and is_done(number) for number in range(len(self))], bool)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            done = np.asarray(multihost_utils.broadcast_one_to_all(done))
        return np.flatnonzero(~done).tolist()

    def write(self, number: int, raw: bytes) -> None:
        """Write a part on the first process, whole; in a bucket every write is."""
        if jax.process_index() == 0:
            replace_file(self.file(number), raw)


def digest_of(corpus: Prepared) -> str:
    """A digest of all tokens of a corpus, and of what is learned of them: of its shards, wherever they lie."""
    whole = hashlib.blake2b(str(corpus.manifest["tokenizer"]).encode(), digest_size=16)
    for shard in corpus.manifest["shards"]:
        with open(corpus.folder / shard["file"], "rb") as file:
            whole.update(hashlib.file_digest(file, "blake2b").digest())
    return whole.hexdigest()
