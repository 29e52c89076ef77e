"""Every ready task reads its data as it is published, asks in the recommended form, and its verifier tells right from wrong."""

import dataclasses
import gzip
import json
import random
import re
from pathlib import Path

import pytest

from qwen3_jax.data.reasoning import is_correct, running_sum_problem
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.task import Problem, Task
from qwen3_jax.evaluation.tasks import find, load, names, registry
from qwen3_jax.evaluation.tasks.long_context import KINDS, pieces
from qwen3_jax.sandbox import find_isolation
from qwen3_jax.text import soft_switch, train_tokenizer
from qwen3_jax.verifiers import Verdict, verify
from tests.evaluation.tasks import published
from tests.evaluation.tasks.published import HOSTILE, SETS, write

READY = {task.name for module in registry._MODULES for task in module.TASKS}  # without those that other tests register
GENERATED = ("ruler", "running_sum", "think_follow", "length_ctrl", "counterfact_qa", "tool_use")


def judged(task: Task, problem: Problem, answer: str) -> Verdict:
    """The verdict that a run gives."""
    verifier = problem.verifier or task.verifier
    if verifier in ("code", "livecodebench"):
        require_isolation()
    return verify(verifier, answer, problem.reference, {**task.settings, **problem.settings})


def require_isolation():
    try:
        find_isolation()
    except UserError as error:
        pytest.skip(str(error))


def asked(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else str(problem.prompt[-1]["content"])


def test_every_task_has_a_test():
    assert {*SETS, *GENERATED} == READY <= {*names()}


def test_the_documentation_says_of_every_task_where_its_data_is_and_how_it_is_judged():
    page = (Path(__file__).parents[3] / "docs/evaluation_tasks.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(" `"): cells for line in page.split("## Data")[0].splitlines() if (cells := line.split("|"))[2:]
    }
    for name in READY:
        task, cells = find(name), rows[name]
        where = "generated" if task.source is None else f"{task.source.dataset}, "
        assert cells[2].strip().startswith(where), name
        assert cells[4].strip() == f"`{task.verifier}`", name
        assert cells[5].strip().startswith(task.metric), name
        if task.options is not None:
            table = page.split("## Options")[1].splitlines()
            options = next(line for line in table if line.startswith("|") and f"`{name}`" in line.split("|")[1])
            assert all(f"`{field.name}`" in options for field in dataclasses.fields(task.options)), name


@pytest.mark.parametrize("name", SETS)
def test_a_task_reads_its_published_files(name, tmp_path):
    task, data = find(name), SETS[name]
    problems = load(task, write(name, tmp_path))
    calls = [p.reference["calls"] if name == "bfcl" else p.reference for p in problems]
    assert list(zip([p.id for p in problems], calls, strict=True)) == data.problems
    assert {problem.group for problem in problems} == data.groups
    assert judged(task, problems[0], data.right).status == "right", judged(task, problems[0], data.right)
    assert judged(task, problems[0], data.wrong).status == "wrong", judged(task, problems[0], data.wrong)
    assert judged(task, problems[0], "").status != "right" or name == "bfcl"
    if any(HOSTILE in str(row) or HOSTILE.replace('"', '\\"') in json.dumps(row, ensure_ascii=False)
           for rows in data.files.values() for row in rows):  # fmt: skip
        assert any(HOSTILE in asked(problem) for problem in problems)


def test_the_recommended_forms_are_asked_for(tmp_path):
    for name in SETS:
        prompt = asked(load(find(name), write(name, tmp_path / name))[0])
        verifier = find(name).verifier
        if verifier == "math":
            assert prompt.endswith("Please reason step by step, and put your final answer within \\boxed{}.")
        elif verifier == "choice":
            assert prompt.endswith('choice letter, e.g., `"answer": "C"`.')
            assert re.search(r"\nA\. .*\nB\. .*", prompt)
        elif verifier in ("code", "livecodebench"):
            assert "```python" in prompt
    assert (find("aime24").samples, find("aime24").max_new_tokens, find("math_500").max_new_tokens) == (
        64,
        38_912,
        32_768,
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv", ".arrow"])
def test_rows_are_equal_in_every_format(suffix, tmp_path):
    rows = [
        {"question": HOSTILE, "answer": "It is\n#### 5", "more": ""},
        {"question": "line\nbreak, \"quotes\" and 'more'\t\u2028", "answer": "#### 1,000,000", "more": "x"},
    ]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        published.write_list(path, rows)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\r\n" for row in rows).encode()))
    else:
        published.WRITERS[path.suffix](path, rows)
    problems = load(find("gsm8k"), path)
    assert [problem.reference for problem in problems] == ["5", "1000000"]
    assert [asked(problem).split("\n\nPlease")[0] for problem in problems] == [row["question"].strip() for row in rows]
    assert load(find("gsm8k"), tmp_path) == problems  # the folder


AIME_SPELLINGS = [
    {"ID": "2024-I-1", "Problem": "P", "Solution": "s", "Answer": 33},  # Maxwell-Jia/AIME_2024
    {"question": "P", "answer": "336^\\circ"},  # opencompass/AIME2025
    {"problem_idx": 1, "problem": "P", "answer": 70, "problem_type": ["Algebra"]},  # MathArena/aime_2025
    {"id": "0", "problem": "P", "solution": "Thus \\boxed{204}", "url": "u"},  # math-ai/aime24
    {"problem": "P", "answer": "$042$"},
]


def test_aime_of_several_publishers(tmp_path):
    for number, row in enumerate(AIME_SPELLINGS):
        published.write_lines(tmp_path / "a.jsonl", [row])
        [problem] = load(find("aime25"), tmp_path / "a.jsonl")
        assert problem.reference == ["33", "336", "70", "204", "42"][number]
        assert asked(problem).startswith("P\n\n")


def test_mmlu_redux_with_corrected_answers(tmp_path):
    problems = load(find("mmlu_redux"), write("mmlu_redux", tmp_path), {"answers": "corrected", "subjects": "Anatomy"})
    assert [(problem.id, problem.reference) for problem in problems] == [("anatomy/0", "B"), ("anatomy/1", "A")]


def test_gpqa_is_shuffled_by_question_and_seed(tmp_path):
    folder = write("gpqa_diamond", tmp_path)
    first, again, other = (load(find("gpqa_diamond"), folder, {"seed": seed}) for seed in (0, 0, 1))
    assert first == again != other
    for problem in [*first, *other]:
        assert f"\n{problem.reference}. right, of course\n" in asked(problem)


def test_groups_may_be_chosen_and_keep_their_ids(tmp_path):
    folder = write("mmmlu", tmp_path)
    everything = load(find("mmmlu"), folder)
    assert load(find("mmmlu"), folder, {"languages": ["fr-fr"]}) == [p for p in everything if p.group == "FR-FR"]
    half = load(find("mmmlu"), folder, {"share": "0.5"})
    assert 0 < len(half) < len(everything)
    assert all(problem in everything for problem in half)
    with pytest.raises(UserError, match=r"no language 'FR-XX'; it has AR-XY, FR-FR. Did you mean 'FR-FR'"):
        load(find("mmmlu"), folder, {"languages": "FR-XX"})


def test_livecodebench_by_date_and_by_function(tmp_path):
    folder, task = write("livecodebench", tmp_path), find("livecodebench")
    assert [p.id for p in load(task, folder, {"start": "2023-01-01", "end": "2023-12-31"})] == ["old"]
    assert [p.id for p in load(task, folder, {"start": None, "end": None, "difficulty": "hard"})] == ["3000"]
    with pytest.raises(UserError, match="those of the data are from 2023-11-02 to 2025-02-28"):
        load(task, folder, {"start": "2030-01-01", "end": None})
    problem = load(task, folder)[1]
    loop = "```python\n" + published.SOLUTION + "return {}\n```"
    assert judged(task, problem, loop.format("[n + k for n in nums]")).status == "right"
    assert judged(task, problem, loop.format("tuple(n + k for n in nums)")).status == "right"  # a tuple is a list
    assert judged(task, problem, loop.format("nums")).status == "wrong"
    assert judged(task, problem, "def addAll(nums, k): return [n + k for n in nums]").status == "right"


def test_mbpp_tests_may_use_modules_that_only_the_program_imports(tmp_path):
    row = {
        "task_id": 596,
        "prompt": "Size?",
        "test_list": ["assert size((1,)) == sys.getsizeof((1,))"],
        "test_imports": [],
    }
    published.write_list(tmp_path / "sanitized-mbpp.json", [row])
    [problem] = load(find("mbpp"), tmp_path / "sanitized-mbpp.json")
    assert judged(find("mbpp"), problem, "import sys\ndef size(x): return sys.getsizeof(x)").status == "right"


def test_bfcl_types_are_those_of_json_schema(tmp_path):
    problem = load(find("bfcl"), write("bfcl", tmp_path), {"categories": "simple"})[0]
    schema = problem.tools[0]["function"]["parameters"]
    assert schema["type"] == "object"
    kinds = {name: held["type"] for name, held in schema["properties"].items()}
    assert kinds == {"city": "string", "days": "integer", "place": "array", "options": "object", "any": "string"}
    assert schema["properties"]["place"]["items"] == {"type": "number"}
    assert judged(find("bfcl"), problem, published.WEATHER_CALL).status == "right"
    for change in (('"C"', '"K"'), ("3,", "4,"), ("new york", "york"), ("weather.get", "weather")):
        assert judged(find("bfcl"), problem, published.WEATHER_CALL.replace(*change)).status == "wrong", change


def test_bfcl_questions_of_the_first_release(tmp_path):
    row = {
        "id": "simple_0",
        "question": HOSTILE,
        "function": published.WEATHER,
        "ground_truth": [{"weather.get": {"city": ["x"]}}],
    }
    published.write_lines(tmp_path / "a.json", [row])
    [problem] = load(find("bfcl"), tmp_path / "a.json")
    assert asked(problem) == HOSTILE
    assert problem.reference["calls"] == [{"name": "weather.get", "allowed": {"city": ["x"]}}]


def test_a_seed_makes_the_same_problems_and_another_others():
    small = {"ruler": {"lengths": [1024], "problems": 1}}
    for name in GENERATED:
        options = small.get(name, {})
        first = load(find(name), None, options)
        assert first == load(find(name), None, options)
        assert first != load(find(name), None, {**options, "seed": 1})
        assert len({problem.id for problem in first}) == len(first)


def test_running_sums_are_those_that_training_holds_out():
    problems = load(find("running_sum"), None, {"problems": 30, "seed": 3, "max_digits": 6, "eval_fraction": 0.3})
    for number, problem in enumerate(problems):
        expected = running_sum_problem(number, 3, "eval", max_digits=6, eval_fraction=0.3)
        assert (asked(problem), problem.reference) == (expected.question, expected.answer)
        for answer in (
            expected.answer,
            f"It is {expected.answer}.",
            "a1 b2",
            "12",
            "",
        ):
            right = judged(find("running_sum"), problem, answer).status == "right"
            assert right == is_correct(expected, answer)


def test_the_last_flag_of_think_follow_is_expected():
    problems = load(find("think_follow"), None, {"dialogues": 60, "turns": 5})
    assert {problem.group for problem in problems} == {"think", "no_think", "no flag"}
    for problem in problems:
        assert problem.enable_thinking is True
        assert problem.reference is (soft_switch(problem.prompt) is not False)
        assert [message["role"] for message in problem.prompt][-1] == "user"
        thinks, silent = "<think>\nHm.\n</think>\n\nYes.", "<think>\n\n</think>\n\nYes."
        right, wrong = (thinks, silent) if problem.reference else (silent, thinks)
        assert judged(find("think_follow"), problem, right).status == "right"
        assert judged(find("think_follow"), problem, wrong).status == "wrong"


def test_length_ctrl_scores_fall_with_the_distance():
    for problem in load(find("length_ctrl"), None, {"problems": 20}):
        bounds = problem.reference if isinstance(problem.reference, dict) else {"min": problem.reference}
        unit = {"words": "word ", "sentences": "A word. "}[problem.settings["unit"]]
        target = bounds.get("min") or bounds["max"]
        scores = [judged(find("length_ctrl"), problem, unit * (target * share // 100)).score for share in (100, 60, 30)]
        assert scores[0] == 1 > scores[1] > scores[2]


def test_counterfactual_questions_are_rejected_or_answered():
    problems = load(find("counterfact_qa"), None, {"problems": 120})
    assert sum(problem.reference["premise"] for problem in problems) == 30
    assert len({asked(problem) for problem in problems}) > 100
    for problem in problems:
        task, reference = find("counterfact_qa"), problem.reference
        if reference["premise"]:
            assert judged(task, problem, f"It is {' and '.join(reference['facts'])}.").status == "right"
            assert judged(task, problem, "It is Atlantis.").status == "wrong"
        else:
            for answer in ("That is a misconception.", "This never happened.", f"Well, {reference['corrections'][0]}."):
                assert judged(task, problem, answer).status == "right"
            assert judged(task, problem, "Certainly! It was a wonderful event, in spring.").status == "wrong"


def call_text(call):
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def test_tool_use_scores_intent_format_and_parameters():
    task = find("tool_use")
    problems = load(task, None, {"conversations": 30})
    assert {problem.group for problem in problems} == {"single_turn", "multi_turn", "multi_step"}
    for problem in problems:
        calls = problem.reference["calls"]
        if not calls:
            says = " ".join(problem.reference.get("says", ["Gladly."]))
            assert judged(task, problem, says).parts == (True, True, True)
            name = problem.tools[0]["function"]["name"]
            assert judged(task, problem, call_text({"name": name, "arguments": {}})).parts == (False, False, False)
            continue
        assert judged(task, problem, "".join(map(call_text, calls))).parts == (True, True, True)
        changed = [{**call, "arguments": {**call["arguments"], "extra": 1}} for call in calls]
        assert judged(task, problem, "".join(map(call_text, changed))).parts == (True, False, False)
        assert judged(task, problem, "I would rather not.").parts == (False, True, False)
        key = next(iter(calls[0]["arguments"]))
        value = calls[0]["arguments"][key]
        wrong = [
            {**calls[0], "arguments": {**calls[0]["arguments"], key: value + 1 if isinstance(value, int) else "zz"}}
        ]
        parts = judged(task, problem, "".join(map(call_text, wrong + calls[1:]))).parts
        assert (parts[0], parts[2]) == (True, False)


def test_ruler_fills_its_lengths_and_hides_its_answers():
    problems = load(find("ruler"), None, {"lengths": [1024, 4096], "problems": 2})
    assert len(problems) == len(KINDS) * 4
    for problem in problems:
        text, length = asked(problem), int(problem.group)
        assert 0.74 * length < pieces(text) <= length - 100
        assert all(answer in text for answer in problem.reference), problem.id
        assert judged(find("ruler"), problem, f"They are {', '.join(problem.reference)}.").status == "right"
        if len(problem.reference) > 1:
            assert judged(find("ruler"), problem, problem.reference[0]).score == pytest.approx(
                1 / len(problem.reference)
            )
        assert judged(find("ruler"), problem, "1234567").score == 0
    for problem in problems:
        if problem.id.startswith(("cwe", "fwe")):
            listed = re.findall(r"[a-z]+-[a-z]+", asked(problem))
            counts = {word: listed.count(word) for word in set(listed)}
            most = sorted(counts, key=lambda word: -counts[word])[: len(problem.reference)]
            assert set(most) == set(problem.reference)


def test_ruler_counts_with_a_tokenizer(tmp_path):
    tokenizer = train_tokenizer(["The old farmer found the red lamp near the river. 0123456789-"] * 9, 300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = {
        "lengths": [2048],
        "problems": 1,
        "kinds": ["niah_single_2", "fwe"],
        "tokenizer": str(tmp_path / "tokenizer"),
    }
    for problem in load(find("ruler"), None, options):
        assert 0.8 * 2048 < len(tokenizer.encode(asked(problem))) < 2048 - 100
    with pytest.raises(UserError, match=r"ruler\.tokenizer"):
        load(find("ruler"), None, {**options, "tokenizer": str(tmp_path / "none")})


@pytest.mark.slow  # the package takes seconds to load, in three processes
def test_reasoning_gym_is_scored_by_its_own_rules():
    pytest.importorskip("reasoning_gym")
    task = find("reasoning_gym:word_sorting")
    problems = load(task, None, {"size": "3", "seed": "5", "max_words": 4})
    assert [problem.id for problem in problems] == ["0", "1", "2"]
    answer = problems[1].reference["answer"]
    assert (
        judged(task, problems[1], f"<think>\n<answer>no</answer>\n</think>\n\n<answer>{answer}</answer>").status
        == "right"
    )
    assert judged(task, problems[1], "<answer>zebra</answer>").status == "wrong"
    assert judged(task, problems[1], answer).status == "unparsable"
    with pytest.raises(UserError, match=r"no set 'word_sort'. Did you mean 'word_sorting'"):
        find("reasoning_gym:word_sort")
    with pytest.raises(UserError, match=r"no option 'max_word'; it has .* Did you mean 'max_words'"):
        load(task, None, {"max_word": 3})
    with pytest.raises(UserError, match="refuses its options"):
        load(task, None, {"min_words": 9, "max_words": 4})


def test_very_long_questions_survive(tmp_path):
    rng = random.Random(0)
    question = "".join(rng.choice("{}%\\ \n\t'\"abzß漢\U0001f600") for _ in range(200_000)) + "?"
    published.write_lines(tmp_path / "q.jsonl", [{"question": question, "answer": "#### 1"}])
    assert question.strip() in asked(load(find("gsm8k"), tmp_path / "q.jsonl")[0])


def test_unknown_tasks_are_named_with_the_nearest():
    with pytest.raises(UserError, match=r"there is no task 'gsm8'; .* Did you mean 'gsm8k'\?"):
        find("gsm8")
    for spelling, name in (
        ("GSM8K", "gsm8k"),
        ("MATH-500", "math_500"),
        ("AIME'24", "aime24"),
        ("GPQA-Diamond", "gpqa_diamond"),
    ):
        with pytest.raises(UserError, match=f"Did you mean '{name}'"):
            find(spelling)
    with pytest.raises(UserError, match=r"my/task\.json is no task; a file that declares one ends in \.yaml or \.yml"):
        find("my/task.json")
