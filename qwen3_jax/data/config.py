"""What to train on: the typed configuration of this package, the `data` section of a training YAML.

    data:
      sequence_length: 4096
      batch_size: 512
      sources:
        - {name: web, path: "prepared/web", weight: 0.7, where: {language: [en, de], quality: [0.8, null]}}
        - {name: stdlib, path: "stdlib:", weight: 0.2, eval_fraction: 0.05}
        - {name: sums, path: "synthetic:running_sum", weight: 0.1, eval_fraction: 0.1}
      lengths:
        - {above: 16384, up_to: 32768, weight: 0.75}
        - {above: 4096, up_to: 16384, weight: 0.25}

Everything is checked here, when the configuration is built, except what needs the disk; a bad value is a
`UserError` that names the field.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.bounds import above, at_least, between, check_bounds, whole
from qwen3_jax.errors import UserError
from qwen3_jax.text.thinking import STOP_TEXT

STDLIB = "stdlib:"
RUNNING_SUM = "synthetic:running_sum"

Format = Literal["auto", "text", "json", "jsonl", "csv", "parquet", "arrayrecord"]


@dataclass(frozen=True)
class RunningSum:
    """The generated running-sum problems (see `qwen3_jax.data.reasoning`) of a `synthetic:running_sum` source.

    Attributes:
        problems: distinct training problems.
        eval_problems: held-out problems.
        min_digits, max_digits: lengths are drawn evenly from this range, both ends included; at most 26, since digits are
            named by letters.
        thinking, non_thinking, disabled, truncated, document: shares of the ways to write a problem down (see
            `reasoning.Mode`); they are normalised.
        stop_text: the text forced at the end of a truncated thinking block.
    """

    problems: int = 50_000
    eval_problems: int = 512
    min_digits: int = 2
    max_digits: int = 12
    thinking: float = 0.55
    non_thinking: float = 0.15
    disabled: float = 0.10
    truncated: float = 0.20
    document: float = 0.0
    stop_text: str = STOP_TEXT

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), "running_sum.", problems=whole(1), eval_problems=whole(1), min_digits=whole(2, 26),
            max_digits=whole(self.min_digits, 26), thinking=at_least(0), non_thinking=at_least(0), disabled=at_least(0),
            truncated=at_least(0), document=at_least(0),
        )  # fmt: skip
        if self.thinking + self.non_thinking + self.disabled + self.truncated + self.document == 0:
            raise UserError("running_sum.thinking, non_thinking, disabled, truncated and document are all 0.")


@dataclass(frozen=True)
class Labels:
    """Where the labels of a document come from: a constant of the corpus, or a key of its records.

    Attributes:
        domain: the domain of every document; the default is the source's name.
        domain_key: the key of a record that holds its domain; a record without it gets `domain`.
        language: the language of every document (ISO 639-1), or "detect" (py3langid, extra `data`); the default is "und".
        language_key: as for the domain.
        quality: the quality of every document; the default is the share of Gopher's rules (Rae et al. 2021, arXiv 2112.11446,
            table A1) that its text keeps, 0 to 1.
        quality_key: the key of a record that holds its quality, a number; a record without it gets `quality`.
    """

    domain: str | None = None
    domain_key: str | None = None
    language: str = "und"
    language_key: str | None = None
    quality: float | None = None
    quality_key: str | None = None


@dataclass(frozen=True)
class Cleaning:
    """What is left out when a corpus is prepared.

    Attributes:
        duplicates: "keep", or leave out documents whose normalised text occurred before ("exact"), or also those that share
            most of their 5-word shingles with an earlier one ("near"; MinHash).
        similarity: of "near": Jaccard similarity of shingles from which on two documents are likely to be taken for one.
        held_out: files (as `path`, with the same keys) whose text must not be trained on.
        ngram: documents that share this many consecutive words with `held_out` are left out (GPT-3's 13; Brown et al. 2020,
            arXiv 2005.14165, appendix C).
        max_malformed: largest number of malformed records, which are logged and skipped; more are an error.
    """

    duplicates: Literal["keep", "exact", "near"] = "keep"
    similarity: float = 0.8
    held_out: list[str] = field(default_factory=list)
    ngram: int = 13
    max_malformed: int = 0

    def __post_init__(self) -> None:
        check_bounds(vars(self), "cleaning.", similarity=between(0.1, 0.99), ngram=whole(1), max_malformed=whole(0))


NAMED_LABELS, RANGED_LABELS = ("domain", "language"), ("quality", "length")
"""Labels that every document has: names, and numbers."""


Where = dict[str, list[Any] | None]
"""label -> a range [lowest, highest], or names; null is all."""


def check_where(where: Mapping[str, Any], prefix: str = "") -> Where:
    """The labels that `where` selects by, without those that are null: for each a range [lowest, highest], or names.

    Raises:
        UserError: names the label; `prefix` stands before the sentence.
    """
    out: Where = {}
    for name, wanted in where.items():
        if wanted is None:
            continue
        here = f"{prefix}where.{name}"
        if not isinstance(wanted, list) or not wanted:
            what = "an empty list" if wanted == [] else f"{wanted!r}"
            raise UserError(f"{here} is {what}; give a range [lowest, highest] or a list of names, or leave it out")
        is_range = all(one is None or _is_number(one) for one in wanted)
        if not is_range and not all(isinstance(one, str | bool) for one in wanted):
            raise UserError(f"{here} is {wanted}; it must be a range [lowest, highest] or a list of names")
        if is_range if name in NAMED_LABELS else not is_range and name in RANGED_LABELS:
            raise UserError(f"{here} is {wanted}; it must be {'a list of names' if is_range else 'a range'}")
        if is_range and len(wanted) != 2:
            raise UserError(f"{here} is a range [lowest, highest], got {wanted}")
        if is_range and None not in wanted and wanted[0] > wanted[1]:
            raise UserError(f"{here} is empty: {wanted[0]} is above {wanted[1]}")
        out[name] = wanted
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True)
class Source:
    """One corpus of a mixture.

    Attributes:
        name: a unique label, used in errors, in the saved data position and for held-out losses.
        path: a folder that `qwen3 data prepare` wrote; or a file, folder (read recursively, hidden files left out) or glob, or
            a list of them, also on object storage (gs://, s3://, any fsspec URL): those are prepared when a run starts. `~` is
            the home folder. `stdlib:` is this machine's own Python standard library, without its tests;
            `synthetic:running_sum` generates reasoning problems and stands alone.
        format: text (one file is one document), json (a list of records, or JSON Lines; any other JSON is a document), jsonl
            (one line is one record), csv (one row), parquet (one row), arrayrecord (one record, JSON or plain text), or auto:
            by suffix, .tsv being csv, and any other suffix text. All but Parquet and ArrayRecord may end in .gz, .bz2, .xz or
            .zst.
        text_key: the key that holds the document in records of text.
        loss_on: which tokens of chat and prompt/completion records are learned: what the assistant says, or all.
        history: thinking in earlier turns of a chat. new_sample: templates drop it, so each user turn is a sample of its own;
            keep: it stays (`preserve_thinking` of requests), and the chat is one sample.
        read_control_tokens: read the text of a special token (`<|im_end|>`) in a message as that token; by default it is the
            characters that were written. Raw prompts and documents always are what they say.
        pairs: the records are preferences (chosen, rejected; `qwen3_jax.data.preferences`), as the methods dpo and
            reward_model set it.
        labels: where domain, language and quality come from.
        cleaning: what is left out.
        running_sum: settings of `synthetic:running_sum`, and only of that.
        weight: this source's share of the tokens, relative to the other sources.
        where: only documents with these labels: `domain` and `language` (any of these names), `quality` and `length` (a range
            [lowest, highest], both ends included, null is open), and labels that `qwen3 data label` has attached to a prepared
            folder (names, true or false, or a range).
        eval_fraction: share of the documents held out for evaluation, chosen by a hash of the document's place in its file; of
            generated problems, the share of questions.
    """

    name: str
    path: str | list[str]
    format: Format = "auto"
    text_key: str = "text"
    loss_on: Literal["all", "assistant"] = "assistant"
    history: Literal["new_sample", "keep"] = "new_sample"
    read_control_tokens: bool = False
    pairs: bool = False
    labels: Labels = field(default_factory=Labels)
    cleaning: Cleaning = field(default_factory=Cleaning)
    running_sum: RunningSum | None = None
    weight: float = 1.0
    where: Where = field(default_factory=dict)
    eval_fraction: float = 0.01

    def __post_init__(self) -> None:
        label = f"source {self.name!r}: "
        if not self.name:
            raise UserError("every data source needs a name")
        if "/" in self.name or self.name.startswith("."):
            raise UserError(f"{label}a name becomes a folder's; it must not hold '/' or start with '.'")
        if not self.paths:
            raise UserError(f"{label}path is empty")
        check_bounds(vars(self), label, weight=above(0, finite=True), eval_fraction=at_least(0, below=1))
        object.__setattr__(self, "where", check_where(self.where, label))
        if self.is_synthetic and (len(self.paths) > 1 or self.format != "auto" or self.text_key != "text"):
            raise UserError(f"{label}{RUNNING_SUM} stands alone, without other paths, format or text_key")
        if self.running_sum is not None and not self.is_synthetic:
            raise UserError(f"{label}running_sum settings belong to path {RUNNING_SUM!r}, not to {self.path!r}")
        about_records = {
            "text_key": "text", "loss_on": "assistant", "history": "new_sample", "read_control_tokens": False, "pairs": False,
        }  # fmt: skip
        for name, default in about_records.items():
            if self.format == "text" and getattr(self, name) != default:
                raise UserError(f"{label}{name} is about records; format is text")
        if self.pairs and (self.is_synthetic or self.loss_on != "assistant"):
            what = RUNNING_SUM if self.is_synthetic else "loss_on: all"
            raise UserError(f"{label}of preferences (pairs) the answers are learned; {what} does not go with them")
        if self.pairs and self.text_key != "text":
            raise UserError(
                f"{label}text_key is about plain text, which is no form of preferences (pairs); leave it out"
            )
        if self.loss_on == "all" and self.history != "new_sample":
            raise UserError(f"{label}history is about what is learned of each turn; loss_on: all renders a chat once")

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def is_synthetic(self) -> bool:
        """Whether the records are generated and not read."""
        return RUNNING_SUM in self.paths


@dataclass(frozen=True)
class LengthShare:
    """A class of text by length, and its share of the tokens.

    Attributes:
        above, up_to: (input, target) pairs of a piece of text, after documents longer than the row are cut: above < n <= up_to.
        weight: relative to the other classes.
    """

    above: int
    up_to: int
    weight: float

    def __post_init__(self) -> None:
        check_bounds(vars(self), "data.lengths.", above=whole(0), up_to=whole(1), weight=above(0, finite=True))
        if self.above >= self.up_to:
            raise UserError(f"data.lengths: above ({self.above}) must be below up_to ({self.up_to})")


@dataclass(frozen=True)
class DataConfig:
    """The whole pipeline.

    Attributes:
        sources: the mixture; empty only for the method grpo, which samples what it learns from.
        sequence_length: T, tokens in a row.
        batch_size: rows in the global batch, over all hosts.
        lengths: classes of text by length with their shares of the tokens of every source; empty is all text as it comes.
        seed: of the shuffles and of the generated problems.
        packing_rows: rows that are packed together: more waste less and cost more to plan again on resume.
        cache: folder for what is prepared from raw sources when a run starts; null is the run's own.
        prefetch_batches: finished batches kept ready by a background thread; 0 builds each batch on demand.
    """

    sources: list[Source] = field(default_factory=list)
    sequence_length: int = 512
    batch_size: int = 32
    lengths: list[LengthShare] = field(default_factory=list)
    seed: int = 0
    packing_rows: int = 256
    cache: str | None = None
    prefetch_batches: int = 4

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"data.sources has two sources named {name!r}")
        check_bounds(
            vars(self), "data.", sequence_length=whole(1), batch_size=whole(1), packing_rows=whole(1),
            prefetch_batches=whole(0), seed=whole(0),
        )  # fmt: skip
        ordered = sorted(self.lengths, key=lambda length_class: length_class.above)
        for shorter, longer in itertools.pairwise(ordered):
            if longer.above < shorter.up_to:
                raise UserError(f"data.lengths: the classes up to {shorter.up_to} and above {longer.above} overlap")
        if ordered and ordered[-1].up_to > self.sequence_length:
            raise UserError(
                f"data.lengths: up_to {ordered[-1].up_to} is beyond sequence_length {self.sequence_length}, where text is cut"
            )

    def source(self, name: str) -> Source:
        """Return the source called `name`; an unknown name is a `UserError` that lists the names."""
        for source in self.sources:
            if source.name == name:
                return source
        raise UserError(f"no data source named {name!r}; there are {[source.name for source in self.sources]}")
