"""Multiple choice: GPQA-Diamond, MMLU, MMLU-Pro, MMLU-Redux, MMMLU and INCLUDE.

All are asked in one form (`prompts.multiple_choice`), with as many letters as there are choices, and judged by the letter.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qwen3_jax.bounds import Bound, check_bounds, whole
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Source, Task
from qwen3_jax.evaluation.tasks import prompts

ABCD = "ABCD"


def choice_problem(row: Row, name: str, question: str, choices: Sequence[str], answer: int, group: str) -> Problem:
    """One question; `answer` is the place of the right choice.

    Raises:
        RowError: there are fewer than two choices, or more than letters; the answer is not among them.
    """
    if not 2 <= len(choices) <= len(prompts.LETTERS):
        raise row.error(f"a question has from 2 to {len(prompts.LETTERS)} choices, and this one has {len(choices)}")
    if not 0 <= answer < len(choices):
        raise row.error(f"the answer is number {answer} (from 0), and there are {len(choices)} choices")
    letters = prompts.LETTERS[: len(choices)]
    prompt = prompts.multiple_choice(question, choices)
    return Problem(name, prompt, letters[answer], settings={"letters": letters}, group=group)


def place_of(answer: object, choices: Sequence[str]) -> int | None:
    """The place of an answer that is a place from 0, a letter, or the text of a choice; None if it is none of these."""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(choices) else None
    text = str(answer).strip()
    if len(text) == 1 and text.upper() in prompts.LETTERS[: len(choices)]:
        return prompts.LETTERS.index(text.upper())
    if text.isdecimal() and int(text) < len(choices):
        return int(text)
    stripped = [choice.strip().lower() for choice in choices]
    return stripped.index(text.lower()) if stripped.count(text.lower()) == 1 else None


def _answer(row: Row, choices: Sequence[str], *names: str) -> int:
    value = row.value(*names)
    place = place_of(value, choices)
    if place is None:
        last = prompts.LETTERS[len(choices) - 1] if choices else "A"
        wanted = f"a letter from A to {last} or a number from 0 to {len(choices) - 1}"
        raise row.error(f"the column {names[0]!r} must be {wanted}, got {value!r:.60}")
    return place


def kept(name: str, share: float) -> bool:
    """Whether a problem is among this share of all; depends on its id alone."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") < share * 2**64


def _of_groups(
    wanted: Sequence[str], rows: Iterable[Row], group: Callable[[Row], str], what: str
) -> Iterator[tuple[Row, str, str]]:
    """(row, group, id) of the rows of these groups; all where none is named. The id is the group and the number within it.

    Raises:
        UserError: no row is of a group that is wanted.
    """
    seen: dict[str, str] = {}
    numbers: dict[str, int] = {}
    known = {name.lower() for name in wanted}
    for row in rows:
        name = group(row)
        seen.setdefault(name.lower(), name)
        number = numbers[name] = numbers.get(name, -1) + 1
        if not known or name.lower() in known:
            yield row, name, f"{name}/{number}" if name else str(number)
    for name in wanted:
        if seen and name.lower() not in seen:
            raise UserError(
                f"the data has no {what} {name!r}; it has {', '.join(sorted(seen.values()))}."
                f"{nearest(name, list(seen.values()))}"
            )


@dataclass(frozen=True)
class Subjects:
    """Options of MMLU and MMLU-Pro.

    Attributes:
        subjects: only these; none is all.
    """

    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReduxOptions:
    """Options of MMLU-Redux.

    Attributes:
        answers: "ok": questions without an error; "corrected": also those with a wrong answer key, with the annotators' answer.
        subjects: only these; none is all.
    """

    answers: Literal["ok", "corrected"] = "ok"
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Languages:
    """Options of the multilingual sets.

    Attributes:
        languages: only these, as the data names them; none is all.
        share: of the questions, chosen by a hash of their ids; the report uses 0.1.
    """

    languages: tuple[str, ...] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), share=Bound(0, 1, low_excluded=True))


@dataclass(frozen=True)
class ShuffleOptions:
    """Options of GPQA.

    Attributes:
        seed: of the order of the choices, which depends on this and on the question alone.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_bounds(vars(self), seed=whole(0))


def read_gpqa(rows: Iterable[Row], options: ShuffleOptions) -> Iterator[Problem]:
    """Of `Question`, `Correct Answer` and `Incorrect Answer 1` to `3`; the choices are shuffled for each question."""
    for number, row in enumerate(rows):
        question = row.filled("Question")
        choices = [row.filled("Correct Answer"), *(row.filled(f"Incorrect Answer {i}") for i in (1, 2, 3))]
        order = list(range(4))
        name = row.text("Record ID", default=str(number))
        random.Random(f"gpqa/{options.seed}/{question}").shuffle(order)
        group = row.text("High-level domain", default="")
        yield choice_problem(row, name, question, [choices[place] for place in order], order.index(0), group)


def read_mmlu(rows: Iterable[Row], options: Subjects) -> Iterator[Problem]:
    """Of `question`, `choices`, `answer` (a place from 0, or a letter) and `subject`."""
    for row, subject, name in _of_groups(options.subjects, rows, _subject, "subject"):
        choices = row.texts("choices")
        place = _answer(row, choices, "answer")
        yield choice_problem(row, name, row.filled("question"), choices, place, subject)


def _subject(row: Row) -> str:
    """The column `subject`, or the folder of the row's file."""
    return row.text("subject", default=os.path.basename(os.path.dirname(row.file)))


def read_mmlu_pro(rows: Iterable[Row], options: Subjects) -> Iterator[Problem]:
    """Of `question`, `options` (up to ten), `answer` (a letter), `category` and `question_id`."""

    groups = _of_groups(options.subjects, rows, lambda row: row.text("category", default=""), "category")
    for row, category, name in groups:
        choices = row.texts("options")
        while len(choices) > 2 and choices[-1] == "N/A":  # the first release filled up to ten with them
            choices = choices[:-1]
        place = _answer(row, choices, "answer", "answer_index")
        yield choice_problem(
            row, row.text("question_id", default=name), row.filled("question"), choices, place, category
        )


_ERRORS = (
    "ok", "bad_question_clarity", "bad_options_clarity", "no_correct_answer", "multiple_correct_answers", "wrong_groundtruth",
    "expert",
)  # fmt: skip


def read_mmlu_redux(rows: Iterable[Row], options: ReduxOptions) -> Iterator[Problem]:
    """Of MMLU's columns, `error_type` and `correct_answer`; the subject is a column, or the folder of the file.

    Questions whose error has no single right answer are left out.
    """
    for row, subject, name in _of_groups(options.subjects, rows, _subject, "subject"):
        error = row.text("error_type", default="ok").strip()
        if error not in _ERRORS:
            raise row.error(f"the column 'error_type' is {error!r}; known are {', '.join(_ERRORS)}")
        choices = row.texts("choices")
        place: int | None = None
        if error == "ok":
            place = _answer(row, choices, "answer")
        elif error == "wrong_groundtruth" and options.answers == "corrected" and row.has("correct_answer"):
            place = place_of(row.value("correct_answer"), choices)
        if place is not None:
            yield choice_problem(row, name, row.filled("question"), choices, place, subject)


def read_mmmlu(rows: Iterable[Row], options: Languages) -> Iterator[Problem]:
    """Of `Question`, `A` to `D`, `Answer` (a letter) and `Subject`; the language is in the file's name (mmlu_FR-FR.csv)."""
    yield from _multilingual(rows, options, _language_of_file, "Question", ("A", "B", "C", "D"), "Answer")


def read_include(rows: Iterable[Row], options: Languages) -> Iterator[Problem]:
    """Of `question`, `option_a` to `option_d` (or `choices`), `answer` (a place from 0) and `language`."""
    names = ("option_a", "option_b", "option_c", "option_d")
    yield from _multilingual(rows, options, lambda row: row.text("language"), "question", names, "answer")


def _language_of_file(row: Row) -> str:
    match = re.search(r"mmlu_([A-Z]{2}-[A-Z]{2,3})\b", row.file)
    return row.text("language", "lang", default=match[1] if match else os.path.splitext(os.path.basename(row.file))[0])


def _multilingual(
    rows: Iterable[Row],
    options: Languages,
    language: Callable[[Row], str],
    question: str,
    names: tuple[str, ...],
    answer: str,
) -> Iterator[Problem]:
    chosen = list(_of_groups(options.languages, rows, language, "language"))
    columns = {column for row, _, _ in chosen for column in row.body}
    for row, group, name in chosen:
        if not kept(name, options.share):
            continue
        if row.has("choices"):
            choices = row.texts("choices")
        else:  # an empty cell of CSV is absent in its row, and there in others
            choices = [row.text(column, default="" if column in columns else None) for column in names]
        place = _answer(row, choices, answer)
        yield choice_problem(row, name, row.filled(question), choices, place, group)


_MMLU_COLUMNS = {
    "question": "text",
    "choices": "list of texts",
    "answer": "place from 0, or a letter",
    "subject": "text, or the file's folder",
}
GPQA_DIAMOND = Task(
    name="gpqa_diamond",
    about="198 questions of graduate level in biology, physics and chemistry",
    problems=read_gpqa,
    verifier="choice",
    source=Source("Idavidrein/gpqa", ("gpqa_diamond.csv",), gated=True),
    columns={
        "Question": "text", "Correct Answer": "text", "Incorrect Answer 1": "text", "Incorrect Answer 2": "text",
        "Incorrect Answer 3": "text", "Record ID": "text, may be missing", "High-level domain": "text, may be missing",
    },
    options=ShuffleOptions,
    reference="arXiv 2311.12022",
)  # fmt: skip
MMLU = Task(
    name="mmlu",
    about="57 subjects (14,042 questions)",
    problems=read_mmlu,
    verifier="choice",
    source=Source("cais/mmlu", ("all/test-*.parquet",)),
    columns=_MMLU_COLUMNS,
    options=Subjects,
    reference="arXiv 2009.03300",
)
MMLU_PRO = Task(
    name="mmlu_pro",
    about="14 categories, up to ten choices (12,032 questions)",
    problems=read_mmlu_pro,
    verifier="choice",
    source=Source("TIGER-Lab/MMLU-Pro", ("data/test-*.parquet",)),
    columns={
        "question": "text", "options": "list of up to ten texts", "answer": "letter", "category": "text, may be missing",
        "question_id": "number, may be missing",
    },
    options=Subjects,
    reference="arXiv 2406.01574",
)  # fmt: skip
MMLU_REDUX = Task(
    name="mmlu_redux",
    about="MMLU annotated anew, questions with errors left out",
    problems=read_mmlu_redux,
    verifier="choice",
    source=Source("edinburgh-dawg/mmlu-redux-2.0", ("*/data-*.arrow",)),
    columns={**_MMLU_COLUMNS, "error_type": "text", "correct_answer": "letter, place or text, may be missing"},
    options=ReduxOptions,
    reference="arXiv 2406.04127",
)
MMMLU = Task(
    name="mmmlu",
    about="MMLU in 14 languages, translated by people",
    problems=read_mmmlu,
    verifier="choice",
    source=Source("openai/MMMLU", ("test/mmlu_*.csv",)),
    columns={"Question": "text", "A": "text", "B": "text", "C": "text", "D": "text", "Answer": "letter"},
    options=Languages,
    reference="https://huggingface.co/datasets/openai/MMMLU",
)
INCLUDE = Task(
    name="include",
    about="examinations of their own in 44 languages",
    problems=read_include,
    verifier="choice",
    source=Source("CohereLabs/include-base-44", ("*/test-*.parquet",)),
    columns={
        "question": "text", "option_a": "text", "option_b": "text", "option_c": "text", "option_d": "text",
        "answer": "place from 0", "language": "text",
    },
    options=Languages,
    reference="arXiv 2411.19799",
)  # fmt: skip
TASKS = (GPQA_DIAMOND, MMLU, MMLU_PRO, MMLU_REDUX, MMMLU, INCLUDE)
