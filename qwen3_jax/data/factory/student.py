"""A small student that labels documents at corpus speed: the mean of hashed word and word-pair embeddings, and a linear head
for each label (fastText, Joulin et al. 2016, arXiv 1607.01759).

    student = Student.load("student.npz")
    student.predict(["The tower is 330 metres high."])      # {"education": [2], "safe": [True]}

It is trained in JAX (`qwen3_jax.training.student`) from documents that a model has annotated; this module needs NumPy alone.

Shapes: v buckets, w width, c classes, n features of a text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data.cleaning import grams, words_of
from qwen3_jax.data.config import Source
from qwen3_jax.data.factory.task import Independent, Made, Rejection
from qwen3_jax.data.factory.work import FactoryJob, PartCounts, Parts
from qwen3_jax.data.records import DataError, Malformed, Record, texts
from qwen3_jax.data.sources import Split, records_of
from qwen3_jax.errors import UserError
from qwen3_jax.file_writes import written_whole

WORDS = 512
"""Words of a document that are read, from its beginning."""
_CHARACTERS = 16 * WORDS
_BATCH = 256
Label = bool | int | str


@dataclass(frozen=True)
class Student:
    """Weights of a trained student.

    Attributes:
        embed_vw: float32 [buckets, width].
        heads: by label, float32 [width + 1, classes]; the last row is the bias.
        values: by label, what each class stands for.
    """

    embed_vw: np.ndarray
    heads: Mapping[str, np.ndarray]
    values: Mapping[str, Sequence[Label]]

    def predict(self, documents: Sequence[str]) -> dict[str, list[Label]]:
        """The most probable value of each label for each document."""
        means = np.stack([self._mean(features(text, len(self.embed_vw))) for text in documents])
        return {
            name: [self.values[name][place] for place in (means @ head[:-1] + head[-1]).argmax(axis=1)]
            for name, head in self.heads.items()
        }

    def save(self, path: Path) -> None:
        """Write one file."""
        with written_whole(path) as temporary, temporary.open("wb") as out:
            heads = {f"head_{name}": head for name, head in self.heads.items()}
            np.savez(
                out, allow_pickle=False, embed_vw=self.embed_vw, values=np.array(json.dumps(dict(self.values))), **heads
            )

    @classmethod
    def load(cls, path: str | Path) -> Student:
        """Read a file of `save`.

        Raises:
            UserError: the file is not a student.
        """
        try:
            with np.load(path) as arrays:
                values = json.loads(str(arrays["values"]))
                return cls(arrays["embed_vw"], {name: arrays[f"head_{name}"] for name in values}, values)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no student ({error}).") from None

    def digest(self) -> str:
        """16 hexadecimal digits of the weights and values."""
        whole = hashlib.blake2b(self.embed_vw.tobytes(), digest_size=8)
        for name, head in sorted(self.heads.items()):
            whole.update(f"{name} {self.values[name]}".encode() + head.tobytes())
        return whole.hexdigest()

    def _mean(self, places: np.ndarray) -> np.ndarray:
        return self.embed_vw[places].mean(axis=0) if len(places) else np.zeros(self.embed_vw.shape[1], np.float32)


def features(text: str, buckets: int) -> np.ndarray:
    """int64 [n]: the buckets of a text's words and pairs of neighbours."""
    words = words_of(text[:_CHARACTERS])[:WORDS]
    # Words are CRC-32 sums, whose low bits would be the bucket; they are mixed as pairs are.
    hashes = np.concatenate([grams(words, 1), grams(words, 2)])
    return (hashes % np.uint64(buckets)).astype(np.int64)


@dataclass(frozen=True)
class Labelled:
    """Annotated documents.

    Attributes:
        documents: their texts.
        labels: by name, one value for each document.
        values: by name, the different values in order.
    """

    documents: list[str]
    labels: dict[str, list[Label]]
    values: dict[str, list[Label]]


def read_labelled(source: Source, names: Sequence[str]) -> Labelled:
    """Read documents that a model has annotated.

    Raises:
        DataError: a record has no text, or lacks a label.
    """
    documents: list[str] = []
    labels: dict[str, list[Label]] = {name: [] for name in names}
    for record in records_of(source):
        if isinstance(record, Malformed):
            raise DataError(record.reason)
        documents.append("\n".join(texts(record, source.text_key)))
        for name in names:
            value = record.body.get(name)
            if not isinstance(value, bool | int | str):
                raise DataError(
                    f"{record.location}: the label {name!r} is {value!r}; it must be true, false, a number or text"
                )
            labels[name].append(value)
    if len(documents) < 2:
        raise DataError(f"{source.path!r} holds {len(documents)} annotated documents; a student needs more")
    values = {name: sorted(set(given), key=lambda value: (str(type(value)), value)) for name, given in labels.items()}
    return Labelled(documents, labels, values)


def label_split(job: FactoryJob, number: int, split: Split, file: Path) -> PartCounts:
    """Write the records of a split with the labels of a student."""
    student = Student.load(file)
    parts = Parts(job, number)
    with parts.writing() as write:

        def flush(waiting: list[Record]) -> None:
            if not waiting:
                return
            found = student.predict(["\n".join(texts(record, job.source.text_key)) for record in waiting])
            for place, record in enumerate(waiting):
                labels = {name: values[place] for name, values in found.items()}
                write(record, Made([{**record.body, **labels}]))

        waiting: list[Record] = []
        for record in job.read(number, split):
            try:
                if isinstance(record, Malformed):
                    raise DataError(record.reason)
                list(texts(record, job.source.text_key))
                waiting.append(record)
            except DataError as error:
                flush(waiting)
                waiting = []
                write(Malformed(str(error)), Made(rejected=[Rejection("malformed", str(error))]))
            if len(waiting) == _BATCH:
                flush(waiting)
                waiting = []
        flush(waiting)
    return parts.counts


def scores(truth: Sequence[Label], found: Sequence[Label], at_least: int | None = None) -> dict[str, float]:
    """Accuracy, Cohen's kappa, and F1: of `value >= at_least`, else the mean over the values.

    Args:
        truth, found: values of one label.
    """
    pairs = list(zip(truth, found, strict=True))
    accuracy = sum(a == b for a, b in pairs) / len(pairs)
    values = set(truth) | set(found)
    chance = sum(list(truth).count(v) * list(found).count(v) for v in values) / len(pairs) ** 2
    kappa = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    if at_least is not None:
        return {"accuracy": accuracy, "kappa": kappa, "f1": _f1([(a >= at_least, b >= at_least) for a, b in pairs])}  # type: ignore[operator]
    return {
        "accuracy": accuracy,
        "kappa": kappa,
        "f1": float(np.mean([_f1([(a == v, b == v) for a, b in pairs]) for v in values])),
    }


def _f1(pairs: Sequence[tuple[bool, bool]]) -> float:
    both, either = sum(a and b for a, b in pairs), sum(a + b for a, b in pairs)
    return 2 * both / either if either else 1.0


@dataclass(frozen=True)
class LabelTask(Independent):
    """Labels every record with a student; it asks nothing.

    Attributes:
        student: digest of its weights.
    """

    student: str
    name: str = "label"
    recipe: str = "label/1"
    attempts: int = 1

    @property
    def asking(self) -> Mapping[str, Any]:
        """Nothing is asked."""
        return {}

    @property
    def reading(self) -> Mapping[str, Any]:
        """The student."""
        return {"student": self.student}

    def asks(self, record: Record, answers: Any) -> Sequence[Any]:
        """Nothing."""
        return []

    def invalid(self, record: Record, answers: Any, sample: int, reply: Any) -> str | None:
        """Nothing is asked."""
        return None

    def made(self, record: Record, answers: Any) -> Made:
        """The record as it is: `label_split` adds the labels."""
        return Made([record.body])
