"""What to train on: the typed configuration of the data pipeline, used as it is in a training YAML.

    data:
      sequence_length: 512
      batch_size: 32
      sources:
        - {name: stdlib, path: "stdlib:", weight: 0.7, eval_fraction: 0.05}
        - {name: sums, path: "synthetic:running_sum", weight: 0.3, eval_fraction: 0.1}

Everything is checked here, when the configuration is built, except what needs the disk; a bad value is a
`UserError` that names the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen3_jax.errors import UserError
from qwen3_jax.text.thinking import STOP_TEXT

STDLIB = "stdlib:"
RUNNING_SUM = "synthetic:running_sum"


@dataclass(frozen=True)
class RunningSum:
    """The generated running-sum problems (see `qwen3_jax.data.reasoning`) of a `synthetic:running_sum` source.

    Attributes:
        problems: distinct training problems in one epoch; they are generated when read, so this costs no memory.
        eval_problems: held-out problems of `make_eval_batches`.
        min_digits, max_digits: lengths are drawn evenly from this range, both ends included.
        thinking, non_thinking, disabled, truncated: shares of the four ways to write a problem down (see
            `reasoning.Mode`); any scale.
        stop_text: the text forced at the end of a truncated thinking block.
    """

    problems: int = 1_000_000
    eval_problems: int = 512
    min_digits: int = 2
    max_digits: int = 12
    thinking: float = 0.55
    non_thinking: float = 0.15
    disabled: float = 0.10
    truncated: float = 0.20
    stop_text: str = STOP_TEXT

    def __post_init__(self) -> None:
        _at_least("running_sum.problems", self.problems, 1)
        _at_least("running_sum.eval_problems", self.eval_problems, 1)
        _at_least("running_sum.min_digits", self.min_digits, 2)
        _at_least("running_sum.max_digits", self.max_digits, self.min_digits)
        if self.max_digits > 26:
            raise UserError(f"running_sum.max_digits is {self.max_digits}; there are 26 letters to name digits with")
        shares = (self.thinking, self.non_thinking, self.disabled, self.truncated)
        if min(shares) < 0 or sum(shares) <= 0:
            raise UserError(
                "running_sum.thinking, non_thinking, disabled and truncated must not be negative and not all be 0, "
                f"got {shares}"
            )


@dataclass(frozen=True)
class Source:
    """One corpus of a mixture.

    Attributes:
        name: a unique label, used in errors, in the saved data position and by `make_eval_batches`.
        path: a file, folder (read recursively, hidden files left out) or glob, or a list of them; `~` is the home
            folder. `stdlib:` is this machine's own Python standard library, without its tests;
            `synthetic:running_sum` generates reasoning problems and stands alone.
        format: `text` (one file is one document), `jsonl` (one line is one record), or `auto`: by suffix, `.jsonl`
            is JSONL and everything else text.
        text_key: the key that holds the document in JSONL text records.
        weight: this source's share of the rows of every batch, relative to the other sources. Every row is packed
            from one source only, so shares of rows are shares of tokens up to padding (see `pipeline`).
        eval_fraction: share of the documents held out for evaluation, chosen by a hash of the document's path below
            `path` and its line; of generated problems, the share of questions.
        loss_on: which tokens of chat and prompt/completion records are learned: what the assistant says, or all.
        running_sum: settings of `synthetic:running_sum`, and only of that.
    """

    name: str
    path: str | list[str]
    format: Literal["auto", "text", "jsonl"] = "auto"
    text_key: str = "text"
    weight: float = 1.0
    eval_fraction: float = 0.01
    loss_on: Literal["all", "assistant"] = "assistant"
    running_sum: RunningSum | None = None

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        if not self.name:
            raise UserError("every data source needs a name")
        if not self.paths:
            raise UserError(f"{where}: path is empty")
        if self.format not in ("auto", "text", "jsonl"):
            raise UserError(f"{where}: format must be auto, text or jsonl, got {self.format!r}")
        if self.loss_on not in ("all", "assistant"):
            raise UserError(f"{where}: loss_on must be all or assistant, got {self.loss_on!r}")
        if not 0 < self.weight < float("inf"):
            raise UserError(f"{where}: weight must be above 0, got {self.weight}; to leave a source out, remove it")
        if not 0 <= self.eval_fraction < 1:
            raise UserError(f"{where}: eval_fraction must be at least 0 and below 1, got {self.eval_fraction}")
        if self.is_synthetic and (len(self.paths) > 1 or self.format != "auto" or self.text_key != "text"):
            raise UserError(f"{where}: {RUNNING_SUM} stands alone, without other paths, format or text_key")
        if self.running_sum is not None and not self.is_synthetic:
            raise UserError(f"{where}: running_sum settings belong to path {RUNNING_SUM!r}, not to {self.path!r}")
        if self.format == "text" and (self.text_key != "text" or self.loss_on != "assistant"):
            raise UserError(f"{where}: text_key and loss_on are about JSONL records; format is text")

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def is_synthetic(self) -> bool:
        """Whether the records are generated and not read."""
        return RUNNING_SUM in self.paths


@dataclass(frozen=True)
class DataConfig:
    """The whole pipeline.

    Attributes:
        sources: the mixture.
        sequence_length: T, tokens in a row.
        batch_size: rows in the global batch, over all hosts.
        seed: of the shuffles and of the generated problems.
        packing_bins: rows packed at the same time, per source: more waste less and cost more to rebuild on resume.
        shuffle_window: chunks mixed together after long documents are cut, per source, so that one batch is not one
            file; 1 leaves the order of the documents. Rebuilt on resume too.
        read_threads: threads that read and tokenise documents, per source; 0 does it in the consumer's thread.
        read_ahead: documents read and tokenised ahead, per source.
        prefetch_batches: finished batches kept ready by a background thread; 0 builds each when it is asked for.
    """

    sources: list[Source]
    sequence_length: int = 512
    batch_size: int = 32
    seed: int = 0
    packing_bins: int = 64
    shuffle_window: int = 1024
    read_threads: int = 2
    read_ahead: int = 32
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("data.sources is empty: nothing to train on")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"data.sources has two sources named {name!r}")
        for field in ("sequence_length", "batch_size", "packing_bins", "shuffle_window"):
            _at_least(f"data.{field}", getattr(self, field), 1)
        for field in ("read_threads", "prefetch_batches", "seed"):
            _at_least(f"data.{field}", getattr(self, field), 0)
        if self.read_threads and self.read_ahead < self.read_threads:
            raise UserError(
                f"data.read_ahead ({self.read_ahead}) must be at least data.read_threads ({self.read_threads})"
            )

    def source(self, name: str) -> Source:
        """The source called `name`; a `UserError` that lists the names where there is none."""
        for source in self.sources:
            if source.name == name:
                return source
        raise UserError(f"no data source named {name!r}; there are {[source.name for source in self.sources]}")


def _at_least(field: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{field} must be at least {least}, got {value}")
