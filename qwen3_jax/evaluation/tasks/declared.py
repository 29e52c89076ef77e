r"""A task that a user declares in a YAML file.

    # rivers.yaml
    data: rivers.jsonl                # {"question": "...", "answer": "..."} in each line
    prompt: |
      {question}
      Put the answer within \boxed{}.
    reference: answer
    verifier: math

`qwen3 eval --task rivers.yaml`. `Declaration` lists the keys; `{name}` in `prompt` and `system` is a column, `{{name}}` the
text {name}, `{{{name}}}` a column between braces. All other braces are text. A name that is no word, as {Correct Answer}, is a
column if the data has it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import NON_THINKING, THINKING, Problem, Source, Task
from qwen3_jax.evaluation.tasks import prompts
from qwen3_jax.evaluation.tasks.choices import place_of
from qwen3_jax.generation import Sampling

_COLUMN = re.compile(r"\{\{\{([^{}\n]+)\}\}\}|\{\{([^{}\n]+)\}\}|\{([^{}\n]+)\}")
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
)


@dataclass(frozen=True)
class Declaration:
    """The keys of the file. Those that name columns are marked *.

    Attributes:
        data: a file or folder, relative to this file; or `{dataset: owner/name, files: [patterns]}` on the hub. Without it
            `--data NAME=PATH` must be given.
        prompt: what the user says, with `{column}` for the texts of columns.
        messages: * messages in OpenAI's form, instead of a prompt.
        choices: * the choices of a question, a list; they are added to the prompt with letters, and the verifier is "choice".
        raw: the prompt is continued as it is, without a chat template.
        system: what the system message says, with columns as in `prompt`.
        reference: * what the answer is compared with; or a mapping of fields to columns, for verifiers that want an object.
        verifier, settings: see docs/verifiers.md.
        name: what results call it; the default is the file's name.
        about: one line.
        id: * a name for each problem; the default is its number.
        group: * by which results are reported too.
        tools: * functions that the model may call, in OpenAI's form.
        metric: "accuracy" (share of right answers) or "score" (mean score).
        thinking, non_thinking: sampling in the two modes: temperature, top_k, top_p, ...; what is left out is the report's.
        max_new_tokens, samples: of each problem.
        needs_thinking: a tokenizer without think tags is refused.
        enable_thinking: true or false for all problems, whatever the mode of the run.
        reference_url: where the data is described.
    """

    data: Any = None
    prompt: str | None = None
    messages: str | None = None
    choices: str | None = None
    raw: bool = False
    system: str | None = None
    reference: Any = None
    verifier: str = ""
    settings: Any = None
    name: str = ""
    about: str = ""
    id: str | None = None
    group: str | None = None
    tools: str | None = None
    metric: str = "accuracy"
    thinking: Any = None
    non_thinking: Any = None
    max_new_tokens: int = 32_768
    samples: int = 1
    needs_thinking: bool = False
    enable_thinking: bool | None = None
    reference_url: str = ""


_KINDS: dict[str, tuple[type, str]] = {
    "str": (str, "text"),
    "bool": (bool, "true or false"),
    "int": (int, "a whole number"),
}


def read_task(path: Path) -> Task:
    """The task of a YAML file.

    Raises:
        UserError: the file cannot be read; an unknown key, a wrong value (names key and value).
    """
    declaration = _declaration(path)
    _check(path, declaration)
    verifier = declaration.verifier or "choice"
    thinking = _sampling(path, "thinking", declaration.thinking, THINKING)
    non_thinking = _sampling(path, "non_thinking", declaration.non_thinking, NON_THINKING)
    return Task(
        name=declaration.name or path.stem,
        about=declaration.about,
        problems=lambda rows, options: _problems(declaration, rows),
        verifier=verifier,
        settings=declaration.settings or {},
        source=_source(path, declaration.data),
        metric="score" if declaration.metric == "score" else "accuracy",
        columns=_columns(declaration),
        max_new_tokens=declaration.max_new_tokens,
        samples=declaration.samples,
        thinking=thinking,
        non_thinking=non_thinking,
        needs_thinking=declaration.needs_thinking,
        reference=declaration.reference_url or str(path),
    )


def _declaration(path: Path) -> Declaration:
    from qwen3_jax.yaml_files import read_yaml

    value = read_yaml(path, "keys of a task, such as prompt, reference and verifier")
    known = [field.name for field in dataclasses.fields(Declaration)]
    for key in value:
        if key not in known:
            raise UserError(f"{path}: there is no key {key!r}; there are {', '.join(known)}.{nearest(str(key), known)}")
    for field in dataclasses.fields(Declaration):
        given, kind = value.get(field.name), str(field.type).split(" |")[0]
        if given is None:
            value.pop(field.name, None)  # a key without a value says nothing
        elif kind in _KINDS and (not isinstance(given, _KINDS[kind][0]) or (kind == "int" and isinstance(given, bool))):
            raise UserError(f"{path}: {field.name} is {given!r:.60}; it must be {_KINDS[kind][1]}.")
    return Declaration(**value)


def _check(path: Path, task: Declaration) -> None:
    """Check rules between several keys, and the values that types do not cover."""
    if (task.prompt is None) == (task.messages is None):
        raise UserError(
            f"{path}: a task has either prompt or messages{', and this one has neither' * (task.prompt is None)}."
        )
    for key in ("choices", "system", "raw"):
        if task.messages is not None and getattr(task, key):
            raise UserError(f"{path}: {key} goes with prompt, and this task has messages.")
    if task.raw and task.system:
        raise UserError(
            f"{path}: system is part of a chat, and raw continues the prompt without one; write it into the prompt."
        )
    if not task.verifier and task.choices is None:
        raise UserError(f"{path}: the key verifier is missing; it says how answers are judged, as in `verifier: math`.")
    if task.choices is not None and task.verifier not in ("", "choice"):
        raise UserError(f"{path}: choices are judged by the verifier choice, not {task.verifier!r}.")
    if task.settings is not None and not isinstance(task.settings, Mapping):
        raise UserError(f"{path}: settings is {task.settings!r:.60}; it must be a mapping of the verifier's settings.")
    if task.metric not in ("accuracy", "score"):
        raise UserError(f"{path}: metric is {task.metric!r}; it must be accuracy or score.")
    fields = task.reference.values() if isinstance(task.reference, Mapping) else [task.reference]
    if not all(isinstance(column, str) or (column is None and task.reference is None) for column in fields):
        raise UserError(
            f"{path}: reference is {task.reference!r:.60}; it must be a column, or a mapping of fields to columns."
        )
    if task.choices is not None and not isinstance(task.reference, str):
        raise UserError(
            f"{path}: with choices, reference must be the column of the right one: its letter, place or text."
        )


def _source(path: Path, data: Any) -> Source:
    if data is None or (isinstance(data, str) and data.strip()):
        return Source(path=None if data is None else path.parent / Path(data).expanduser())
    if isinstance(data, Mapping) and data.keys() <= {"dataset", "files"} and isinstance(data.get("dataset"), str):
        files = data.get("files") or []
        files = [files] if isinstance(files, str) else files
        if isinstance(files, list) and files and all(isinstance(file, str) and file for file in files):
            return Source(data["dataset"], tuple(files))
        raise UserError(
            f"{path}: files of data is {data.get('files')!r}; it must list patterns, such as data/test-*.parquet."
        )
    raise UserError(f"{path}: data is {data!r:.80}; it must be a path, or a mapping of dataset and files.")


def _sampling(path: Path, key: str, values: Any, default: Sampling) -> Sampling | None:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: {key} is {values!r:.60}; it must be a mapping such as {{temperature: 0.6}}.")
    for name in values:
        if name not in _SAMPLING:
            raise UserError(
                f"{path}: {key} has no option {name!r}; it has {', '.join(_SAMPLING)}.{nearest(str(name), list(_SAMPLING))}"
            )
    try:
        return dataclasses.replace(default, **values)
    except ValueError as error:
        raise UserError(f"{path}: {key}: {error}") from None


def _columns(task: Declaration) -> dict[str, str]:
    """What the rows must have, for messages."""
    columns = {name: "text" for template in (task.prompt, task.system) if template for name in columns_of(template)}
    if task.messages:
        columns[task.messages] = "list of messages"
    if task.choices:
        columns[task.choices] = "list of texts"
    references = task.reference.values() if isinstance(task.reference, Mapping) else [task.reference]
    columns.update({name: "reference" for name in references if name and name not in columns})
    columns.update({name: "text" for name in (task.id, task.group) if name})
    if task.tools:
        columns[task.tools] = "list of functions"
    return columns


def columns_of(template: str) -> list[str]:
    """The columns that a template names, in order; those whose names are words."""
    names = [match[1] or match[3] for match in _COLUMN.finditer(template)]
    return list(dict.fromkeys(name for name in names if name and name.isidentifier()))


def rendered(template: str, row: Row, columns: Container[str] = ()) -> str:
    """The template with the row's texts; what a text holds is not read as a template again.

    Args:
        columns: of the data, whose names may be no words.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[3]
        if not name.isidentifier() and name not in columns:
            return match[0]
        if match[2]:
            return f"{{{name}}}"
        found = row.value(name)
        text = json.dumps(found, ensure_ascii=False) if isinstance(found, list | dict | bool) else row.text(name)
        return f"{{{text}}}" if match[1] else text

    return _COLUMN.sub(value, template)


def _problems(task: Declaration, rows: Iterable[Row]) -> Iterator[Problem]:
    row, with_tools = None, False
    rows = list(rows)
    columns = {column for row in rows for column in row.body}
    for number, row in enumerate(rows):
        settings: dict[str, Any] = {}
        reference = _reference(task, row)
        prompt = _prompt(task, row, columns)
        if task.choices is not None:
            choices = row.texts(task.choices)
            if not 2 <= len(choices) <= len(prompts.LETTERS):
                raise row.error(f"the column {task.choices!r} must have from 2 to {len(prompts.LETTERS)} choices")
            reference, settings = _right_letter(task, row, choices), {"letters": prompts.LETTERS[: len(choices)]}
        tools = row.items(task.tools) if task.tools and row.has(task.tools) else []  # some rows may have none
        if not all(isinstance(tool, dict) for tool in tools):
            raise row.error(f"the column {task.tools!r} must be a list of functions in OpenAI's form")
        with_tools = with_tools or bool(task.tools and row.has(task.tools))
        yield Problem(
            row.text(task.id) if task.id else str(number),
            prompt,
            reference,
            tools=tuple(tools),
            settings=settings,
            enable_thinking=task.enable_thinking,
            group=row.text(task.group) if task.group else "",
        )
    if task.tools and row is not None and not with_tools:
        row.value(task.tools)  # no row has the column: names it


_OF_TEXT = ("math", "number", "exact", "regex", "choice", "language")  # their references are never read as JSON


def _reference(task: Declaration, row: Row) -> Any:
    if task.reference is None:
        return None
    if isinstance(task.reference, Mapping):
        return {field: row.parsed(column) for field, column in task.reference.items()}
    value = row.value(task.reference)
    if task.verifier not in _OF_TEXT:
        return row.parsed(task.reference)
    if task.verifier in ("exact", "regex") and not isinstance(value, list):
        return row.text(task.reference)
    return value


def _right_letter(task: Declaration, row: Row, choices: list[str]) -> str:
    """The letter of the right choice, which the data gives as a letter, a place from 0 or the choice's text.

    Raises:
        RowError: it is not among the choices, or matches two of them.
    """
    value = row.value(task.reference)
    place = place_of(value, choices)
    same = [
        number for number, choice in enumerate(choices) if isinstance(value, str) and choice.strip() == value.strip()
    ]
    if place is None:
        raise row.error(f"the column {task.reference!r} is {value!r:.60}, none of the {len(choices)} choices")
    if same and same != [place]:
        raise row.error(
            f"the column {task.reference!r} is {value!r:.60}, which names choice {prompts.LETTERS[place]} and is the text of "
            f"choice {prompts.LETTERS[same[0]]}; give a letter or place, and choices that are no letters or places"
        )
    return prompts.LETTERS[place]


def _prompt(task: Declaration, row: Row, columns: Container[str]) -> str | tuple[Mapping[str, Any], ...]:
    if task.messages is not None:
        messages = row.items(task.messages)
        if not messages or not all(
            isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages
        ):
            raise row.error(f"the column {task.messages!r} must be a list of messages with role and content")
        return tuple(messages)
    text = rendered(task.prompt or "", row, columns).strip("\n")
    if task.choices is not None:
        text = str(prompts.multiple_choice(text, row.texts(task.choices))[0]["content"])
    if task.raw:
        return text
    system = (
        () if task.system is None else ({"role": "system", "content": rendered(task.system, row, columns).strip("\n")},)
    )
    return (*system, *prompts.user(text))
