"""What a task is: where its problems come from, how they are asked, which verifier judges the answers.

    task = Task(
        name="gsm8k", about="grade-school mathematics", source=Source("openai/gsm8k", ("main/test-*.parquet",)),
        problems=read_gsm8k, verifier="math", max_new_tokens=32_768,
    )

`qwen3_jax.evaluation.tasks` has the tasks by name, and reads those that a user declares in a YAML file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qwen3_jax.evaluation.rows import Row
from qwen3_jax.generation import Sampling

THINKING = Sampling(temperature=0.6, top_p=0.95, top_k=20)
"""Sampling in thinking mode. Source: Qwen3 technical report, section 4.6."""
NON_THINKING = Sampling(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)
"""Sampling in non-thinking mode, of the same section."""


@dataclass(frozen=True)
class Problem:
    """One question of a task.

    Attributes:
        id: unique within the task; the same in every run, on every machine.
        prompt: messages (the chat template is applied), or a text that is continued as it is.
        reference: what the verifier compares the answer with; JSON values.
        tools: functions that the model may call, in OpenAI's form.
        verifier: another one than the task's; "" is the task's.
        settings: of the verifier, for this problem; they replace the task's, field by field.
        enable_thinking: what this problem asks of the chat template, whatever the mode of the run; None is the run's mode.
        group: subject, level or language, by which results are also reported; "" is no group.
    """

    id: str
    prompt: str | tuple[Mapping[str, Any], ...]
    reference: Any = None
    tools: tuple[Mapping[str, Any], ...] = ()
    verifier: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    enable_thinking: bool | None = None
    group: str = ""


@dataclass(frozen=True)
class Source:
    """Where the data of a task lies.

    Attributes:
        dataset: id of a data set on the hub, `owner/name`.
        files: patterns of its files, as its repository has them.
        gated: the hub asks for a login and the acceptance of terms.
        path: a local file or folder instead of a data set on the hub.
    """

    dataset: str = ""
    files: tuple[str, ...] = ()
    gated: bool = False
    path: Path | None = None


@dataclass(frozen=True)
class Task:
    """A set of problems and how they are asked and judged.

    Attributes:
        name: what `--task` calls it.
        about: one line.
        problems: makes the problems, in a fixed order, from rows of the data (empty for a task that is generated) and from
            the task's options, an instance of `options` below.
        verifier: name of a verifier; see `qwen3_jax.verifiers`.
        settings: of the verifier.
        source: None for a task that is generated.
        metric: what a result is first of all: "accuracy", the share of right answers, or "score", the mean score, where a
            verifier gives a part of it.
        columns: what the rows hold, by name of column: "text", "list of texts", ...; for messages and the documentation.
        options: a frozen dataclass of what a user may set (`--task-option NAME.FIELD=VALUE`), such as the number of generated
            problems, their seed, few-shot examples; None has none.
        max_new_tokens: most tokens of an answer; lowered to what the context holds.
        samples: answers to each problem.
        thinking: sampling in thinking mode; None is `THINKING`, the report's.
        non_thinking: the same without thinking; None is `NON_THINKING`.
        needs_thinking: the task measures thinking: a tokenizer without think tags is refused.
        reference: the paper, and the address of the data's format.
    """

    name: str
    about: str
    problems: Callable[[Iterable[Row], Any], Iterable[Problem]]
    verifier: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None
    metric: Literal["accuracy", "score"] = "accuracy"
    columns: Mapping[str, str] = field(default_factory=dict)
    options: type | None = None
    max_new_tokens: int = 32_768
    samples: int = 1
    thinking: Sampling | None = None
    non_thinking: Sampling | None = None
    needs_thinking: bool = False
    reference: str = ""
