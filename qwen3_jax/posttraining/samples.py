"""Sampled answers as training data: what the trainer needs of each, packed into rows, and kept on disk for a resume.

RUN/rollouts/STEP.npz     the answers of the round whose first update is step STEP + 1: everything that its updates read
RUN/rollouts/STEP.jsonl   the same answers as text, with their rewards, for people and for the report
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.data import Encoded
from qwen3_jax.data.token_targets import TopTokens
from qwen3_jax.errors import UserError
from qwen3_jax.paths import is_url, replace_file
from qwen3_jax.training.distillation import IDS, LOG_PROBS
from qwen3_jax.training.losses import EXPERTS, REPLAYED

_ARRAYS = {
    "prompt": np.int32, "tokens": np.int32, "learned": np.bool_, "banned": np.bool_, "behaviour": np.float32,
    "old": np.float32, "reference": np.float32,
}  # fmt: skip
_FIELDS = {
    "tokens": np.int32, "targets": np.int32, "segment_ids": np.int32, "positions": np.int32, "loss_mask": np.float32,
    "advantages": np.float32, "behaviour": np.float32, "old": np.float32, "reference": np.float32,
    "entropy_weights": np.float32, "banned": np.int32,
}  # fmt: skip
_UNKNOWN = -1  # expert
_NUMBERS = {"group": np.int64, "episode": np.int64, "advantage": np.float32}


@dataclass
class Sample:
    """One sequence to learn from. Arrays are [N], one entry for each token behind the prompt.

    Attributes:
        prompt: int32 [P], tokens of the prompt.
        tokens: int32, what follows: what the model wrote, forced tokens, and the results of tools.
        learned: bool, the token was sampled by the model; tokens that were forced or that a tool wrote are not.
        banned: bool, `<think>` could not be sampled here.
        behaviour: float32, log probability under the distribution that the token was drawn from; NaN where not learned.
        group: number of the prompt's draw; the answers to one prompt are one group.
        episode: number of the answer within its group; several samples of one episode share a reward.
        advantage: of every learned token; 0 until it is set.
        old: float32, log probability under the trainer's weights at the beginning of the round; NaN until it is computed.
        reference: float32, the same under the reference model.
        experts: int16 [P + N - 1, L, K], the experts that the engine's MoE layers sent each token but the last to; None for a
            dense model.
        about: what people want to see of it: texts, reward and its parts, JSON values.
        teacher: the teacher's most probable tokens at the learned tokens; None unless they are learned from.
    """

    prompt: np.ndarray
    tokens: np.ndarray
    learned: np.ndarray
    banned: np.ndarray
    behaviour: np.ndarray
    group: int
    episode: int
    advantage: float = 0.0
    old: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    reference: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    experts: np.ndarray | None = None
    about: dict[str, Any] = field(default_factory=dict)
    teacher: TopTokens | None = None

    def __post_init__(self) -> None:
        for name in ("old", "reference"):
            if not len(getattr(self, name)):
                setattr(self, name, np.full(len(self.tokens), np.nan, np.float32))

    @property
    def pairs(self) -> int:
        """Number of (input, target) pairs: places of a row that it takes."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def document(self) -> Encoded:
        """All of its tokens, and which of them are learned."""
        before = np.zeros(len(self.prompt), bool)
        return Encoded(np.concatenate([self.prompt, self.tokens]), np.concatenate([before, self.learned]))


def pack(sizes: Sequence[int], rows: int, length: int) -> list[list[int]]:
    """Put samples into rows, the longest first, each into the first row with room (first fit decreasing).

    Args:
        sizes: `pairs` of each sample.
        rows: number of rows; the last ones may stay empty.
        length: T, places of a row.

    Returns for each row the numbers of its samples.

    Raises:
        ValueError: they do not fit, which `rows` of at least as many as samples exclude.
    """
    out: list[list[int]] = [[] for _ in range(rows)]
    left = [length] * rows
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        row = next((row for row in range(rows) if left[row] >= sizes[number]), None)
        if row is None:
            raise ValueError(f"{len(sizes)} samples do not fit into {rows} rows of {length}")
        out[row].append(number)
        left[row] -= sizes[number]
    return out


def spread(rows: list[list[int]], parts: int) -> list[list[int]]:
    """Reorder rows so that the filled ones are divided evenly over `parts` equal stretches: over the devices of a batch."""
    count = len(rows) // parts
    return [rows[place * parts + part] for part in range(parts) for place in range(count)]


def arrange(samples: Sequence[Sample], rows: Sequence[Sequence[int]], length: int) -> dict[str, np.ndarray]:
    """Return the batch of samples in rows: the fields of `qwen3_jax.data.Batch`, and of a policy.

    Arrays are [rows, T]; `advantages`, `behaviour`, `old`, `reference` float32 and `banned` int32 stand at the place of the
    input whose target they are of; `entropy_weights` are 0. Of a model with experts both fields of them are there, the same
    int16 [rows, T, L K]. With a teacher's most probable tokens `teacher_ids` int32 and `teacher_log_probs` float32 are there,
    [rows, T, K], as in `qwen3_jax.data.Batch`.
    """
    shape = len(rows), length
    batch: dict[str, np.ndarray] = {name: np.zeros(shape, kind) for name, kind in _FIELDS.items()}
    known = next((one.experts for one in samples if one.experts is not None), None)
    if known is not None:
        batch[EXPERTS] = batch[REPLAYED] = np.full((*shape, known[0].size), _UNKNOWN, np.int16)
    width = next((one.teacher.ids.shape[1] for one in samples if one.teacher is not None), None)
    if width is not None:
        batch[IDS], batch[LOG_PROBS] = np.full((*shape, width), -1, np.int32), np.zeros((*shape, width), np.float32)
    for row, numbers in enumerate(rows):
        start = 0
        for segment, number in enumerate(numbers, start=1):
            one = samples[number]
            whole = np.concatenate([one.prompt, one.tokens])
            stop, answer = start + one.pairs, start + len(one.prompt) - 1
            batch["tokens"][row, start:stop] = whole[:-1]
            batch["targets"][row, start:stop] = whole[1:]
            batch["segment_ids"][row, start:stop] = segment
            batch["positions"][row, start:stop] = np.arange(one.pairs)
            batch["loss_mask"][row, answer:stop] = one.learned
            batch["banned"][row, answer:stop] = one.banned
            batch["advantages"][row, answer:stop] = np.where(one.learned, one.advantage, 0)
            if one.experts is not None:
                batch[EXPERTS][row, start:stop] = one.experts.reshape(one.pairs, -1)
            if one.teacher is not None:
                places = answer + np.flatnonzero(one.learned)
                batch[IDS][row, places], batch[LOG_PROBS][row, places] = one.teacher.fields()
            for name in ("behaviour", "old", "reference"):
                batch[name][row, answer:stop] = np.where(one.learned, getattr(one, name), 0)
            start = stop
    return batch


def take_back(values: np.ndarray, samples: Sequence[Sample], rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Return each sample's part of values [rows, T] that were computed for the batch of `arrange`; NaN where not learned."""
    out: list[np.ndarray] = [np.zeros(0, np.float32)] * len(samples)
    for row, numbers in enumerate(rows):
        start = 0
        for number in numbers:
            one = samples[number]
            stop = start + one.pairs
            part = values[row, start + len(one.prompt) - 1 : stop]
            out[number] = np.where(one.learned, part, np.nan).astype(np.float32)
            start = stop
    return out


def save(
    folder: Path,
    step: int,
    samples: Sequence[Sample],
    position: Mapping[str, Any],
    figures: Mapping[str, float] | None = None,
) -> None:
    """Write a round. Each file is written whole or not at all, the arrays last.

    Args:
        folder: RUN/rollouts.
        step: steps taken before its first update.
        samples: of the round.
        position: where the prompts stand after it, JSON values.
        figures: of the round, where a run that resumes has not written them yet.
    """
    if not is_url(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"group": one.group, "episode": one.episode, **one.about}) + "\n" for one in samples]
    replace_file(folder / f"{step}.jsonl", "".join(lines))
    arrays: dict[str, np.ndarray] = {
        name: np.asarray([getattr(s, name) for s in samples], kind) for name, kind in _NUMBERS.items()
    }
    for name, kind in _ARRAYS.items():
        parts = [getattr(one, name) for one in samples]
        arrays[name] = np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind)
    arrays["prompt_lengths"] = np.asarray([len(one.prompt) for one in samples], np.int64)
    arrays["token_lengths"] = np.asarray([len(one.tokens) for one in samples], np.int64)
    known = [one.experts for one in samples if one.experts is not None]
    if known:
        arrays["experts"] = np.concatenate(known)
        arrays["expert_lengths"] = np.asarray([0 if s.experts is None else len(s.experts) for s in samples], np.int64)
    top = [one.teacher for one in samples if one.teacher is not None]
    if top:
        for name in TopTokens._fields:
            arrays[f"teacher_{name}"] = np.concatenate([getattr(one, name) for one in top])
    about = {"position": position, "figures": dict(figures or {}), "about": [one.about for one in samples]}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    raw = io.BytesIO()
    np.savez(raw, **arrays)  # type: ignore[arg-type] # its stub takes the names for options
    replace_file(folder / f"{step}.npz", raw.getvalue())


def load(folder: Path, step: int) -> tuple[list[Sample], dict[str, Any], dict[str, float]] | None:
    """Return the samples of a round, the position after it, and its figures; None where it was not written.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / f"{step}.npz"
    if not file.exists():
        return None
    try:
        with file.open("rb") as stream, np.load(stream) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(arrays["about"].tobytes())
        cuts = {
            name: np.cumsum(arrays["prompt_lengths" if name == "prompt" else "token_lengths"])[:-1] for name in _ARRAYS
        }
        parts: dict[str, Sequence[Any]] = {name: np.split(arrays[name], cuts[name]) for name in _ARRAYS}
        experts: Sequence[np.ndarray | None] = [None] * len(about["about"])
        if "experts" in arrays:
            pieces = np.split(arrays["experts"], np.cumsum(arrays["expert_lengths"])[:-1])
            experts = [piece if len(piece) else None for piece in pieces]
        top: Sequence[TopTokens | None] = [None] * len(about["about"])
        if "teacher_ids" in arrays:
            ends = np.cumsum([int(learned.sum()) for learned in parts["learned"]])[:-1]
            top = [TopTokens(*pair) for pair in zip(
                *(np.split(arrays[f"teacher_{name}"], ends) for name in TopTokens._fields), strict=True
            )]  # fmt: skip
        samples = [
            Sample(
                **{name: parts[name][number] for name in _ARRAYS},
                group=int(arrays["group"][number]), episode=int(arrays["episode"][number]),
                advantage=float(arrays["advantage"][number]), experts=experts[number], teacher=top[number],
                about=text,
            )
            for number, text in enumerate(about["about"])
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} is damaged ({error}); delete it, and the same command samples the round again."
        ) from None
    return samples, about["position"], about["figures"]
