"""Small files in the form in which each data set is published: layout, columns and types. The rows are written for the tests.

folder = write("gsm8k", tmp_path)      # tmp_path/main/test-00000-of-00001.parquet
"""

import base64
import csv
import json
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

HOSTILE = 'What is {x} in {question!r:>{10}} %s \\frac{1}{2} "quoted" <|x|> ζ 数 🙂 {}?'


@dataclass(frozen=True)
class Published:
    """A data set.

    Attributes:
        files: rows by path; the suffix says the format.
        problems: ids in order, with their references.
        right, wrong: answers to the first problem, in the form that its prompt asks for.
        groups: of the problems.
    """

    files: dict[str, list[dict[str, Any]]]
    problems: list[tuple[str, Any]]
    right: str
    wrong: str
    groups: set[str] = field(default_factory=lambda: {""})


def write(name: str, folder: Path) -> Path:
    """The files of a data set, below `folder`."""
    for path, rows in SETS[name].files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[target.suffix](target, rows)
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_list(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".jsonl": write_lines, ".parquet": write_parquet, ".arrow": write_arrow, ".csv": write_csv, ".json": write_lines,
}  # fmt: skip


def packed(tests: list[dict[str, str]]) -> str:
    """Hidden tests as LiveCodeBench packs them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def choice_rows(**names: str) -> list[dict[str, Any]]:
    rows = [
        {"question": HOSTILE, "choices": ["B. is no choice", "the right one", "A", ""], "answer": 1},
        {"question": "2 + 2?", "choices": ["3", "5", "4", "22"], "answer": 2},
    ]
    return [{**row, **names} for row in rows]


def lettered(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(names, row["choices"], strict=True))


IN_JSON = 'The choices differ.\n\n```json\n{"answer": "%s"}\n```'
BOXED = "<think>\nLet me see.\n</think>\n\nSo it is $\\boxed{%s}$."
ADD = "```python\ndef add(a, b):\n    return a + b\n```"
WEATHER = {
    "name": "weather.get",
    "description": "The weather.",
    "parameters": {
        "type": "dict",
        "required": ["city"],
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "place": {"type": "tuple", "items": {"type": "float"}},
            "options": {"type": "dict", "properties": {"unit": {"type": "string"}}}, "any": {"type": "any"},
        },
    },
}  # fmt: skip
_WEATHER_ARGUMENTS = '{"city": "new york, ny", "days": 3, "options": {"unit": "C"}}'
WEATHER_CALL = f'<tool_call>\n{{"name": "weather.get", "arguments": {_WEATHER_ARGUMENTS}}}\n</tool_call>'
POSSIBLE = {"city": ["New York, NY"], "days": [3, ""], "place": ["", [1.5, 2]], "options": [{"unit": ["c", "F"]}, ""]}
STDIN = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]
FUNCTIONAL = [{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]
LCB = {
    "question_title": "Sum", "platform": "atcoder", "contest_id": "abc1", "starter_code": "", "difficulty": "easy",
    "public_test_cases": json.dumps(STDIN), "private_test_cases": packed(STDIN * 2), "metadata": "{}",
}  # fmt: skip
SOLUTION = "class Solution:\n    def addAll(self, nums: List[int], k: int) -> List[int]:\n        "
IFEVAL_ROW = {
    "key": 1000, "prompt": f"Write about rivers. {HOSTILE}",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"num_words": None, "relation": None}, {"num_words": 3.0, "relation": "at least"}],
}  # fmt: skip

SETS: dict[str, Published] = {
    "gsm8k": Published(
        {
            "main/test-00000-of-00001.parquet": [
                {"question": HOSTILE, "answer": "He has <<600+634=1234>>1,234.\n#### 1,234"},
                {"question": "Owed?", "answer": "#### -7"},
            ],
            "main/train-00000-of-00001.parquet": [{"question": "not this", "answer": "#### 1"}],
        },
        [("0", "1234"), ("1", "-7")],
        BOXED % "1234",
        BOXED % "12",
    ),
    "math_500": Published(
        {
            "test.jsonl": [
                {
                    "problem": HOSTILE,
                    "solution": "\\boxed{\\frac{1}{2}}",
                    "answer": "\\frac{1}{2}",
                    "subject": "Algebra",
                    "level": 2,
                    "unique_id": "test/algebra/1.json",
                },
                {
                    "problem": "Roots?",
                    "solution": "",
                    "answer": "\\{1,2\\}",
                    "subject": "Algebra",
                    "level": 5,
                    "unique_id": "test/algebra/2.json",
                },
            ]
        },
        [("test/algebra/1.json", "\\frac{1}{2}"), ("test/algebra/2.json", "\\{1,2\\}")],
        BOXED % "0.5",
        BOXED % "2",
        {"level 2", "level 5"},
    ),
    "aime24": Published(
        {
            "data/train-00000-of-00001.parquet": [
                {"id": 60, "problem": HOSTILE, "solution": "", "answer": "204", "url": "https://x", "year": "2024"},
                {"id": 61, "problem": "Next?", "solution": "", "answer": "025", "url": "https://x", "year": "2024"},
            ]
        },
        [("60", "204"), ("61", "25")],
        BOXED % "204",
        BOXED % "205",
    ),
    "aime25": Published(
        {
            "test.jsonl": [
                {"problem": HOSTILE, "answer": "70", "id": "0"},
                {"problem": "Next?", "answer": "588", "id": "1"},
            ]
        },
        [("0", "70"), ("1", "588")],
        BOXED % "70",
        BOXED % "7",
    ),
    "gpqa_diamond": Published(
        {
            "gpqa_diamond.csv": [
                {
                    "Record ID": f"rec{i}",
                    "Question": f"{HOSTILE}\n{i}",
                    "Correct Answer": "right, of course",
                    "Incorrect Answer 1": "A",
                    "Incorrect Answer 2": "B) no",
                    "Incorrect Answer 3": "C",
                    "High-level domain": "Physics",
                    "Canary String": "x",
                }
                for i in range(2)
            ]
        },
        [("rec0", "D"), ("rec1", "D")],
        IN_JSON % "D",
        IN_JSON % "A",
        {"Physics"},
    ),
    "mmlu": Published(
        {
            "all/test-00000-of-00001.parquet": choice_rows(subject="anatomy"),
            "all/dev-00000-of-00001.parquet": choice_rows(subject="x"),
        },
        [("anatomy/0", "B"), ("anatomy/1", "C")],
        IN_JSON % "B",
        IN_JSON % "C",
        {"anatomy"},
    ),
    "mmlu_pro": Published(
        {
            "data/test-00000-of-00001.parquet": [
                {
                    "question_id": 70,
                    "question": HOSTILE,
                    "options": [f"{n} {chr(65 + n)}" for n in range(10)],
                    "answer": "J",
                    "answer_index": 9,
                    "cot_content": "",
                    "category": "law",
                    "src": "x",
                },
                {
                    "question_id": 71,
                    "question": "Which?",
                    "options": ["p", "q", "r", "N/A", "N/A"],
                    "answer": "A",
                    "answer_index": 0,
                    "cot_content": "",
                    "category": "math",
                    "src": "x",
                },
            ]
        },
        [("70", "J"), ("71", "A")],
        IN_JSON % "J",
        IN_JSON % "I",
        {"law", "math"},
    ),
    "mmlu_redux": Published(
        {
            f"{subject}/data-00000-of-00001.arrow": [
                {**row, "error_type": error, "source": None, "correct_answer": correct, "potential_reason": None}
                for row, error, correct in zip(choice_rows() * 2, errors, ("D", "A", None, "2"), strict=True)
            ]
            for subject, errors in (
                ("anatomy", ("ok", "wrong_groundtruth", "no_correct_answer", "multiple_correct_answers")),
                ("virology", ("expert", "ok", "bad_question_clarity", "bad_options_clarity")),
            )
        },
        [("anatomy/0", "B"), ("virology/1", "C")],
        IN_JSON % "B",
        IN_JSON % "D",
        {"anatomy", "virology"},
    ),
    "mmmlu": Published(
        {
            f"test/mmlu_{language}.csv": [
                {
                    "": n,
                    "Question": row["question"],
                    **lettered(row, ("A", "B", "C", "D")),
                    "Answer": "ABCD"[row["answer"]],
                    "Subject": "anatomy",
                }
                for n, row in enumerate(choice_rows())
            ]
            for language in ("FR-FR", "AR-XY")
        },
        [("AR-XY/0", "B"), ("AR-XY/1", "C"), ("FR-FR/0", "B"), ("FR-FR/1", "C")],
        IN_JSON % "B",
        IN_JSON % "A",
        {"FR-FR", "AR-XY"},
    ),
    "include": Published(
        {
            f"{language}/test-00000-of-00001.parquet": [
                {
                    "language": language,
                    "country": "x",
                    "domain": "x",
                    "subject": "x",
                    "regional_feature": "x",
                    "level": "x",
                    "question": row["question"],
                    **lettered(row, ("option_a", "option_b", "option_c", "option_d")),
                    "answer": row["answer"],
                }
                for row in choice_rows()
            ]
            for language in ("Greek", "Korean")
        },
        [("Greek/0", "B"), ("Greek/1", "C"), ("Korean/0", "B"), ("Korean/1", "C")],
        IN_JSON % "B",
        IN_JSON % "A",
        {"Greek", "Korean"},
    ),
    "ifeval": Published(
        {"ifeval_input_data.jsonl": [IFEVAL_ROW]},
        [
            (
                "1000",
                {
                    "instruction_id_list": IFEVAL_ROW["instruction_id_list"],
                    "kwargs": [{}, {"num_words": 3.0, "relation": "at least"}],
                },
            )
        ],
        "Rivers run to the sea.",
        "Rivers, they run.",
    ),
    "humaneval": Published(
        {
            "openai_humaneval/test-00000-of-00001.parquet": [
                {
                    "task_id": "HumanEval/0",
                    "prompt": 'def add(a, b):\n    """Add {x} %s."""\n',
                    "canonical_solution": "    return a + b\n",
                    "test": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
                    "entry_point": "add",
                },
            ]
        },
        [
            (
                "HumanEval/0",
                {
                    "prompt": 'def add(a, b):\n    """Add {x} %s."""\n',
                    "entry_point": "add",
                    "assertions": ["METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"],
                },
            )
        ],
        ADD,
        ADD.replace("+", "-"),
    ),
    "mbpp": Published(
        {
            "sanitized/test-00000-of-00001.parquet": [
                {
                    "source_file": "x",
                    "task_id": 11,
                    "prompt": HOSTILE,
                    "code": "",
                    "test_imports": ["import math"],
                    "test_list": ["assert add(1, 2) == math.floor(3.5)"],
                },
            ]
        },
        [("11", {"assertions": ["assert add(1, 2) == math.floor(3.5)"], "setup": "import math"})],
        ADD,
        ADD.replace("+", "-"),
    ),
    "mbpp_full": Published(
        {
            "full/test-00000-of-00001.parquet": [
                {
                    "task_id": 12,
                    "text": HOSTILE,
                    "code": "",
                    "test_list": ["assert add(1, 2) == 3"],
                    "test_setup_code": "",
                    "challenge_test_list": [],
                },
            ]
        },
        [("12", {"assertions": ["assert add(1, 2) == 3"]})],
        ADD,
        ADD.replace("+", "-"),
    ),
    "livecodebench": Published(
        {
            "test5.jsonl": [
                {**LCB, "question_content": HOSTILE, "question_id": "abc1_a", "contest_date": "2024-11-02T00:00:00"},
                {**LCB, "question_content": "Old.", "question_id": "old", "contest_date": "2023-11-02T00:00:00"},
                {
                    **LCB,
                    "question_content": "Add.",
                    "question_id": "3000",
                    "contest_date": "2025-02-28T00:00:00",
                    "difficulty": "hard",
                    "starter_code": SOLUTION,
                    "metadata": '{"func_name": "addAll"}',
                    "public_test_cases": json.dumps(FUNCTIONAL),
                    "private_test_cases": json.dumps(FUNCTIONAL),
                },
            ]
        },
        [
            (
                "abc1_a",
                {"public_test_cases": json.dumps(STDIN), "private_test_cases": packed(STDIN * 2), "func_name": None},
            ),
            (
                "3000",
                {
                    "public_test_cases": json.dumps(FUNCTIONAL),
                    "private_test_cases": json.dumps(FUNCTIONAL),
                    "func_name": "addAll",
                },
            ),
        ],
        "```python\nprint(sum(map(int, input().split())))\n```",
        "```python\nprint(4)\n```",
        {"easy", "hard"},
    ),
    "bfcl": Published(
        {
            "BFCL_v3_simple.json": [
                {"id": "simple_0", "question": [[{"role": "user", "content": HOSTILE}]], "function": [WEATHER]}
            ],
            "possible_answer/BFCL_v3_simple.json": [{"id": "simple_0", "ground_truth": [{"weather.get": POSSIBLE}]}],
            "BFCL_v3_live_irrelevance.json": [
                {
                    "id": "live_irrelevance_5-2-0",
                    "question": [[{"role": "user", "content": "Hi."}]],
                    "function": [WEATHER],
                }
            ],
            "BFCL_v3_exec_simple.json": [
                {"id": "exec_simple_0", "question": [], "function": [], "ground_truth": ["f(1)"]}
            ],
        },
        [("live_irrelevance_5-2-0", []), ("simple_0", [{"name": "weather.get", "allowed": POSSIBLE}])],
        "No function fits.",
        WEATHER_CALL,
        {"live_irrelevance", "simple"},
    ),
}
