"""IFEval: verifiable instructions. An answer is right if it follows all of its instructions; the score is the share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import Problem, Source, Task
from qwen3_jax.evaluation.tasks import prompts


@dataclass(frozen=True)
class IFEvalOptions:
    """Options of IFEval.

    Attributes:
        loose: the paper's loose criterion, which forgives a first and a last line and asterisks.
    """

    loose: bool = False


def read_ifeval(rows: Iterable[Row], options: IFEvalOptions) -> Iterator[Problem]:
    """Of `key`, `prompt`, `instruction_id_list` and `kwargs`. The prompt is asked as it is."""
    for number, row in enumerate(rows):
        names = row.texts("instruction_id_list")
        arguments = row.items("kwargs")
        if not names or len(names) != len(arguments):
            raise row.error(
                f"there are {len(names)} instructions in 'instruction_id_list' and {len(arguments)} in 'kwargs'"
            )
        if not all(isinstance(fields, dict | None) for fields in arguments):
            raise row.error("the column 'kwargs' must be a list of objects")
        kept = [{key: value for key, value in (fields or {}).items() if value is not None} for fields in arguments]
        yield Problem(
            row.text("key", default=str(number)),
            prompts.user(row.filled("prompt")),
            {"instruction_id_list": names, "kwargs": kept},
            settings={"loose": options.loose},
        )


IFEVAL = Task(
    name="ifeval",
    about="541 prompts with instructions that a program checks",
    problems=read_ifeval,
    verifier="ifeval",
    source=Source("google/IFEval", ("ifeval_input_data.jsonl",)),
    columns={
        "prompt": "text", "instruction_id_list": "list of texts", "kwargs": "list of objects, one for each instruction",
        "key": "number, may be missing",
    },
    options=IFEvalOptions,
    reference="arXiv 2311.07911",
)  # fmt: skip
TASKS = (IFEVAL,)
