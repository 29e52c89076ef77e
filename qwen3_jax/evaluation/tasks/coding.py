"""Programs: HumanEval, MBPP and LiveCodeBench. What a model writes runs in the sandbox (`qwen3_jax.sandbox`)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Source, Task
from qwen3_jax.evaluation.tasks import prompts

_FENCED = "Put the complete program into one block that begins with ```python and ends with ```."
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def read_humaneval(rows: Iterable[Row], options: None) -> Iterator[Problem]:
    """Of `task_id`, `prompt` (the beginning of a function), `test` (a function `check`) and `entry_point`."""
    del options
    for number, row in enumerate(rows):
        start, test, entry = row.filled("prompt"), row.filled("test"), row.filled("entry_point")
        if "def check(" not in test:
            raise row.error("the column 'test' must define the function check(candidate)")
        question = f"Complete this Python function.\n\n```python\n{start.rstrip()}\n```\n\n{_FENCED}"
        reference = {"prompt": start, "assertions": [test], "entry_point": entry}
        yield Problem(row.text("task_id", default=str(number)), prompts.user(question), reference)


def read_mbpp(rows: Iterable[Row], options: None) -> Iterator[Problem]:
    """Of `text` (`prompt` in the sanitized part), `test_list`, `test_setup_code` or `test_imports`, and `task_id`."""
    del options
    for number, row in enumerate(rows):
        tests = row.texts("test_list")
        if not tests:
            raise row.error("the column 'test_list' is empty")
        shown = "\n".join(tests)
        question = (
            f"{row.filled('text', 'prompt').strip()}\n\nWrite it in Python. Your code should pass these tests:\n\n"
            f"```python\n{shown}\n```\n\n{_FENCED}"
        )
        imports = dict.fromkeys([*row.texts("test_imports", default=[]), *_imports(shown)])
        setup = "\n".join([row.text("test_setup_code", default=""), *imports]).strip()
        reference = {"assertions": tests, "setup": setup} if setup else {"assertions": tests}
        yield Problem(row.text("task_id", default=str(number)), prompts.user(question), reference)


_MODULES = ("math", "sys", "re", "collections", "itertools", "functools", "datetime", "cmath", "string", "operator")


def _imports(tests: str) -> list[str]:
    """Imports of the modules that tests use as if the program had imported them; they run beside another process than its."""
    used = set(re.findall(r"\b([a-z]+)\.\w", tests))
    return [f"import {name}" for name in _MODULES if name in used]


@dataclass(frozen=True)
class DateWindow:
    """Options of LiveCodeBench.

    Attributes:
        start, end: the first and the last day of contests (YYYY-MM-DD, both included); null is open. The default is the
            window of the Qwen3 report.
        difficulty: only "easy", "medium" or "hard"; empty is all.
    """

    start: str | None = "2024-10-01"
    end: str | None = "2025-02-28"
    difficulty: str = ""

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if isinstance(value, datetime.date):
                object.__setattr__(self, name, value.isoformat()[:10])
            elif value is not None and not _is_date(value):
                raise UserError(f"{name} is {value!r}; it must be a day, YYYY-MM-DD.")
        if self.start and self.end and self.start > self.end:
            raise UserError(f"start {self.start} is after end {self.end}.")
        if self.difficulty not in ("", "easy", "medium", "hard"):
            raise UserError(f"difficulty is {self.difficulty!r}; it must be easy, medium or hard.")


def _is_date(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(_DATE.fullmatch(value)) and bool(datetime.date.fromisoformat(value))
    except ValueError:
        return False


def read_livecodebench(rows: Iterable[Row], options: DateWindow) -> Iterator[Problem]:
    """Of `question_content`, `starter_code`, `contest_date`, `public_test_cases`, `private_test_cases` and `metadata`.

    The tests stay as they are in the data, mostly compressed: all of them together take gigabytes. The verifier unpacks those
    of one problem at a time.
    """
    days: list[str] = []
    kept = False
    for row in rows:
        day = _day(row)
        days.append(day)
        level = row.text("difficulty", default="")
        if (options.start or "") <= day <= (options.end or "9999") and options.difficulty in ("", level):
            kept = True
            yield _livecodebench_problem(row, level)
    if days and not kept:
        raise UserError(
            f"the task livecodebench has no problems from {options.start} to {options.end}"
            f"{f' of difficulty {options.difficulty}' * bool(options.difficulty)}; those of the data are from {min(days)} to "
            f"{max(days)}: set livecodebench.start and livecodebench.end."
        )


def _day(row: Row) -> str:
    value = row.value("contest_date")
    text = value.isoformat() if isinstance(value, datetime.date) else str(value)
    if not _is_date(text[:10]):
        raise row.error(f"the column 'contest_date' must begin with a day (YYYY-MM-DD), got {value!r:.60}")
    return text[:10]


def _livecodebench_problem(row: Row, level: str) -> Problem:
    starter = row.text("starter_code", default="")
    question = row.filled("question_content").strip()
    if starter.strip():
        form = f"Use this starter code to write the solution.\n\n```python\n{starter.rstrip()}\n```\n\n{_FENCED}"
    else:
        form = f"Read the input from standard input and write the answer to standard output. {_FENCED}"
    function = row.mapping("metadata", default={}).get("func_name")
    if function is not None and not isinstance(function, str):
        raise row.error(f"func_name in the column 'metadata' must be text, got {function!r:.60}")
    if starter.strip() and not function:
        raise row.error("a problem with starter_code needs func_name in the column 'metadata'")
    reference = {
        "public_test_cases": row.value("public_test_cases"),
        "private_test_cases": row.value("private_test_cases", default="[]"),
        "func_name": function,
    }
    return Problem(row.filled("question_id"), prompts.user(f"{question}\n\n{form}"), reference, group=level)


HUMANEVAL = Task(
    name="humaneval",
    about="164 functions from their documentation",
    problems=read_humaneval,
    verifier="code",
    source=Source("openai/openai_humaneval", ("openai_humaneval/test-*.parquet",)),
    columns={"task_id": "text, may be missing", "prompt": "text", "test": "text", "entry_point": "text"},
    reference="arXiv 2107.03374",
)
_MBPP_COLUMNS = {
    "text": "text (`prompt` in the sanitized part)",
    "test_list": "list of texts",
    "test_setup_code": "text, may be missing",
    "test_imports": "list of texts, may be missing",
    "task_id": "number, may be missing",
}
MBPP = Task(
    name="mbpp",
    about="257 short functions, the part that was checked by hand",
    problems=read_mbpp,
    verifier="code",
    source=Source("google-research-datasets/mbpp", ("sanitized/test-*.parquet",)),
    columns=_MBPP_COLUMNS,
    reference="arXiv 2108.07732",
)
MBPP_FULL = Task(
    name="mbpp_full",
    about="500 short functions, all of the test split",
    problems=read_mbpp,
    verifier="code",
    source=Source("google-research-datasets/mbpp", ("full/test-*.parquet",)),
    columns=_MBPP_COLUMNS,
    reference="arXiv 2108.07732",
)
LIVECODEBENCH = Task(
    name="livecodebench",
    about="problems of programming contests within a window of dates",
    problems=read_livecodebench,
    verifier="livecodebench",
    settings={
        "limits": {"seconds": 6, "memory_mb": 2048, "file_mb": 256, "output_kb": 16_384},  # inputs of megabytes
        "tolerance": 1e-12,
    },
    source=Source("livecodebench/code_generation_lite", ("test5.jsonl", "test6.jsonl")),
    columns={
        "question_id": "text", "question_content": "text", "starter_code": "text, may be missing",
        "contest_date": "day or time", "public_test_cases": "JSON list of input, output and testtype",
        "private_test_cases": "the same, or compressed (base64, zlib, pickle)", "metadata": "JSON object with func_name",
        "difficulty": "text, may be missing",
    },
    options=DateWindow,
    reference="arXiv 2403.07974",
)  # fmt: skip
TASKS = (HUMANEVAL, MBPP, MBPP_FULL, LIVECODEBENCH)
