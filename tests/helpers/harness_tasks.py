"""Small tasks of lm-eval, one of each type, on generated data: nothing of a hub is needed.

from tests.helpers import harness_tasks
results = harness_tasks.evaluate("hf", folder, tasks, dtype="float32")
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import yaml

TEXT = "one two three four five six seven eight nine ten red green blue the a of and then not 2 3 5 7 11 + - ="
COMMON = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0, "metadata": {"version": 1}}
TASKS: dict[str, dict[str, Any]] = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_letters": {  # one token each: lm-eval's own model computes these from one pass
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "{{label}}",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "metric_list": [{"metric": "acc"}],
    },
    "local_last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
        "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
    },
    "local_pages": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "local_answers": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{text}}",
        "fewshot_split": "test",
        "num_fewshot": 2,
        "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 20, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def sentence(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choice(TEXT.split()) for _ in range(rng.randint(least, most)))


def write(folder: Path, count: int = 6, seed: int = 0) -> Path:
    """Write the data and a YAML file for each of the `TASKS`; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(seed), []
    for index in range(count):
        choices = [sentence(rng, 1, 4) for _ in range(3)]
        rows.append({
            "question": sentence(rng, 3, 12), "choices": [*choices, choices[0] + " more"], "label": index % 4,
            "text": sentence(rng, 4, 10), "page": sentence(rng, 1, 60) if index else "",
        })  # fmt: skip
    rows[1]["question"] = sentence(rng, 80, 90)  # longer than the context that the tests give the model
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in TASKS.items():
        fields = COMMON | {"dataset_kwargs": {"data_files": {"test": str(data)}}} | task
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | fields))
    return folder


def manager(folder: Path):
    from lm_eval.tasks import TaskManager

    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    return TaskManager(include_path=str(folder), include_defaults=False)


def evaluate(
    model: Any, folder: Path, tasks=tuple(TASKS), arguments: dict[str, Any] | None = None, **options: Any
) -> dict:
    """Run tasks with a model of lm-eval, by name or made; return its results, with all samples."""
    import lm_eval

    from qwen3_jax.evaluation import harness

    harness.register()
    return lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=list(tasks), task_manager=manager(folder), bootstrap_iters=0,
        log_samples=True, **options,
    )  # fmt: skip


def responses(results: dict, task: str) -> list[list[Any]]:
    """The model's responses to the requests of each document, in order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [[response for (response,) in sample["resps"]] for sample in samples]


def prompts(results: dict, task: str) -> list[Any]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["arguments"] for sample in samples]
