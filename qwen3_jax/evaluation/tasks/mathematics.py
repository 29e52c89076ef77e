"""Mathematics: GSM8K, MATH-500, AIME'24 and AIME'25. The answer is boxed; math-verify compares it with the reference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Source, Task
from qwen3_jax.evaluation.tasks import prompts

_QUESTION = ("problem", "Problem", "question", "Question")
_ANSWER = ("answer", "Answer")
_ID = ("id", "ID", "problem_id", "problem_idx")
_CONTEST = {"problem": "text", "answer": "a whole number from 0 to 999", "id": "text or number, may be missing"}


def read_gsm8k(rows: Iterable[Row], options: Any) -> Iterator[Problem]:
    """Of `question` and `answer`, a solution that ends with `#### 1,234`."""
    del options
    for number, row in enumerate(rows):
        answer = row.text("answer")
        marked = answer.rpartition("####")[2].strip().replace(",", "").lstrip("$").strip()
        if "####" not in answer or not re.fullmatch(r"-?\d+(\.\d+)?", marked):
            raise row.error(f"the column 'answer' must end with #### and a number, got {answer[-60:]!r}")
        yield Problem(str(number), prompts.mathematics(row.filled("question")), marked)


def read_math_500(rows: Iterable[Row], options: Any) -> Iterator[Problem]:
    """Of `problem`, `answer` (LaTeX), `subject`, `level` and `unique_id`."""
    del options
    for number, row in enumerate(rows):
        group = f"level {row.text('level')}" if row.has("level") else row.text("subject", default="")
        yield Problem(
            row.text("unique_id", default=str(number)),
            prompts.mathematics(row.filled("problem")),
            row.filled("answer"),
            group=group,
        )


def read_aime(rows: Iterable[Row], options: Any) -> Iterator[Problem]:
    """Of a problem and an answer, under the names that publishers give them; see `_QUESTION`."""
    del options
    for number, row in enumerate(rows):
        answer = _contest_answer(row)
        digits = re.sub(r"\^\{?\\circ\}?$", "", answer)  # one data set keeps the degree sign of a problem
        if not re.fullmatch(r"\d{1,3}", digits):
            raise row.error(f"the answer must be a whole number from 0 to 999, got {answer!r:.60}")
        yield Problem(
            row.text(*_ID, default=str(number)), prompts.mathematics(row.filled(*_QUESTION)), str(int(digits))
        )


def _contest_answer(row: Row) -> str:
    """The answer as the data writes it; one data set has it in the solution alone."""
    if not row.has(*_ANSWER) and row.has("solution", "Solution"):
        boxed = re.findall(r"\\boxed\{(\d+)\}", row.text("solution", "Solution"))
        if boxed:
            return boxed[-1]
    return row.filled(*_ANSWER).strip().strip("$").strip()


GSM8K = Task(
    name="gsm8k",
    about="grade-school word problems (1,319)",
    problems=read_gsm8k,
    verifier="math",
    source=Source("openai/gsm8k", ("main/test-*.parquet",)),
    columns={"question": "text", "answer": "text that ends with #### and the number"},
    reference="arXiv 2110.14168",
)
MATH_500 = Task(
    name="math_500",
    about="500 problems of MATH, by level",
    problems=read_math_500,
    verifier="math",
    source=Source("HuggingFaceH4/MATH-500", ("test.jsonl",)),
    columns={
        "problem": "text", "answer": "LaTeX", "level": "1 to 5, may be missing", "subject": "text, may be missing",
        "unique_id": "text, may be missing",
    },
    reference="arXiv 2305.20050",
)  # fmt: skip
AIME24 = Task(
    name="aime24",
    about="AIME 2024, both contests (30)",
    problems=read_aime,
    verifier="math",
    source=Source("HuggingFaceH4/aime_2024", ("data/train-*.parquet",)),
    columns=_CONTEST,
    max_new_tokens=38_912,
    samples=64,
    reference="Qwen3 technical report, section 4.6",
)
AIME25 = Task(
    name="aime25",
    about="AIME 2025, both contests (30)",
    problems=read_aime,
    verifier="math",
    source=Source("math-ai/aime25", ("test.jsonl",)),
    columns=_CONTEST,
    max_new_tokens=38_912,
    samples=64,
    reference="Qwen3 technical report, section 4.6",
)
TASKS = (GSM8K, MATH_500, AIME24, AIME25)
