"""Function calling in the form of the Berkeley Function Calling Leaderboard (BFCL): calls judged by their arguments.

Questions and their possible answers lie in files of their own, with equal ids:

    {"id": "simple_0", "question": [[{"role": "user", "content": "..."}]], "function": [{"name": "f", "parameters": {...}}]}
    {"id": "simple_0", "ground_truth": [{"f": {"x": [1], "unit": ["m", ""]}}]}
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Source, Task

CATEGORIES = (
    "simple", "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple",
    "live_parallel", "live_parallel_multiple", "live_irrelevance",
)  # fmt: skip
# Names of types in several programming languages -> JSON Schema's.
TYPES = {
    **dict.fromkeys(("dict", "object", "HashMap", "Hashtable", "map", "Map"), "object"),
    **dict.fromkeys(("float", "double", "number"), "number"),
    **dict.fromkeys(("integer", "int", "byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("array", "list", "tuple", "set", "Array", "ArrayList", "Set", "Queue", "Stack"), "array"),
    **dict.fromkeys(("boolean", "bool", "Boolean"), "boolean"),
    **dict.fromkeys(("string", "str", "String", "char", "any", "Any"), "string"),
    "null": "null",
}  # fmt: skip


@dataclass(frozen=True)
class BfclOptions:
    """Options of BFCL.

    Attributes:
        categories: only these; none is all that the data has.
    """

    categories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.categories:
            if name not in CATEGORIES:
                raise UserError(
                    f"there is no category {name!r}; there are {', '.join(CATEGORIES)}.{nearest(name, CATEGORIES)}"
                )


def read_bfcl(rows: Iterable[Row], options: BfclOptions) -> Iterator[Problem]:
    """Of `id`, `question` (turns of messages), `function` (a list of functions) and `ground_truth` (possible answers).

    Raises:
        RowError: a category that needs more than one request, a question without its answer.
    """
    questions: list[Row] = []
    answers: dict[str, Row] = {}
    for row in rows:
        if row.has("question"):
            questions.append(row)
        if row.has("ground_truth"):
            name = row.filled("id")
            if name in answers:
                raise row.error(f"the answer of {name} is there twice; the first is {answers[name].location}")
            answers[name] = row
        elif not row.has("question"):
            raise row.error("a row has the column 'question', 'ground_truth' or both, and this one has neither")
    if answers and not questions:
        raise next(iter(answers.values())).error(
            "there are answers and no questions; give the folder that holds both, with the answers in possible_answer/"
        )
    for row in questions:
        category = _category(row)
        if not options.categories or category in options.categories:
            yield _problem(row, category, answers)


def _category(row: Row) -> str:
    name = row.filled("id")
    category = re.sub(r"(_\d+)(-\d+)*$", "", name)
    if category not in CATEGORIES:
        raise row.error(
            f"{name} is of the category {category!r}, which is not read; those of one request in Python's types are: "
            f"{', '.join(CATEGORIES)}"
        )
    return category


def _problem(row: Row, category: str, answers: Mapping[str, Row]) -> Problem:
    name = row.filled("id")
    messages = row.parsed("question")
    if isinstance(messages, str):  # the leaderboard's first release
        messages = [{"role": "user", "content": messages}]
    elif isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], list):
        messages = messages[0]
    else:
        messages = None
    if not messages or not all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages):
        raise row.error("the column 'question' must be one turn: a list of a list of messages with role and content")
    functions = row.parsed("function")
    tools = tuple(
        openai_tool(row, function) for function in (functions if isinstance(functions, list) else [functions])
    )
    if category.endswith("irrelevance"):
        reference: list[dict[str, Any]] = []
    elif name not in answers:
        raise row.error(
            f"there is no possible answer for {name}; the data needs the file of its category in possible_answer/ too"
        )
    else:
        reference = _calls(answers[name])
    return Problem(name, tuple(messages), {"calls": reference, "tools": list(tools)}, tools=tools, group=category)


def _calls(row: Row) -> list[dict[str, Any]]:
    calls = []
    for call in row.items("ground_truth"):
        if not isinstance(call, dict) or len(call) != 1:
            raise row.error(
                f"the column 'ground_truth' must be a list of objects {{function: arguments}}, got {call!r:.80}"
            )
        ((name, allowed),) = call.items()
        if not isinstance(allowed, dict) or not all(isinstance(values, list) for values in allowed.values()):
            raise row.error(f"the arguments of {name} in 'ground_truth' must be lists of the values that are right")
        calls.append({"name": name, "allowed": allowed})
    return calls


def openai_tool(row: Row, function: Any) -> dict[str, Any]:
    """A function of the data in OpenAI's form, its types those of JSON Schema.

    Raises:
        RowError: it is no function with a name, or has a type that is not known.
    """
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise row.error(f"the column 'function' must hold functions with a name, got {function!r:.80}")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    schema = _schema(row, parameters, f"{function['name']}")
    return {"type": "function", "function": {**function, "parameters": schema}}


def _schema(row: Row, schema: Any, place: str) -> Any:
    """A schema with its types renamed, at every depth."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    kind = schema.get("type")
    if isinstance(kind, str):
        if kind not in TYPES:
            raise row.error(f"the type {kind!r} of {place} is not known.{nearest(kind, list(TYPES))}".rstrip("."))
        out["type"] = TYPES[kind]
    if isinstance(schema.get("properties"), dict):
        out["properties"] = {
            name: _schema(row, inner, f"{place}.{name}") for name, inner in schema["properties"].items()
        }
    for key in ("items", "additionalProperties"):
        if key in schema:
            out[key] = _schema(row, schema[key], f"{place}.{key}")
    return out


def _patterns() -> tuple[str, ...]:
    names = [f"BFCL_v[0-9]_{category}.json" for category in CATEGORIES]
    with_answers = [name for name in names if "irrelevance" not in name]
    return (*names, *(f"possible_answer/{name}" for name in with_answers))


BFCL = Task(
    name="bfcl",
    about="function calling: one request, one or several functions, one or several calls, or none",
    problems=read_bfcl,
    verifier="tool_calls",
    settings={"loose": True},
    source=Source("gorilla-llm/Berkeley-Function-Calling-Leaderboard", _patterns()),
    columns={
        "id": "category and number", "question": "one turn: a list of a list of messages", "function": "list of functions",
        "ground_truth": "list of {function: {argument: list of right values}}, in a file of its own or in the same row",
    },
    options=BfclOptions,
    reference="https://github.com/ShishirPatil/gorilla/tree/main/berkeley-function-call-leaderboard",
)  # fmt: skip
TASKS = (BFCL,)
