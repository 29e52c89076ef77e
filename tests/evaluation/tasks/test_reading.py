"""Where rows come from, and what is said of data that is missing or in another form."""

import json

import huggingface_hub
import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.tasks import find, load
from tests.evaluation.tasks import published
from tests.evaluation.tasks.published import SETS, write, write_lines

GSM8K = {"question": "Why?", "answer": "#### 4"}


def refusal(task, data, options=None):
    with pytest.raises(UserError) as caught:
        load(find(task), data, options)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        (
            "gsm8k",
            {"questions": "x", "answer": "#### 1"},
            "rows.jsonl:2: the column 'question' is missing; the row has answer, questions. Did you mean 'questions'? "
            "The task gsm8k reads question: text; answer: text that ends with #### and the number.",
        ),
        ("gsm8k", {"question": "x", "answer": "4"}, "the column 'answer' must end with #### and a number, got '4'"),
        ("gsm8k", {"question": " ", "answer": "#### 1"}, "the column 'question' is empty"),
        ("gsm8k", {"question": ["x"], "answer": "#### 1"}, "the column 'question' must be text, got ['x']"),
        ("gsm8k", {"question": "\ud800", "answer": "#### 1"}, "half of a surrogate pair"),
        ("math_500", {"problem": "x"}, "the column 'answer' is missing"),
        ("aime24", {"problem": "x", "answer": "1000"}, "must be a whole number from 0 to 999, got '1000'"),
        ("aime25", {"problem": "x", "answer": "x + 1"}, "must be a whole number from 0 to 999, got 'x + 1'"),
        ("gpqa_diamond", {"Question": "x", "Correct Answer": "y"}, "the column 'Incorrect Answer 1' is missing"),
        (
            "mmlu",
            {"question": "x", "choices": ["a", "b"], "answer": 2},
            "must be a letter from A to B or a number from 0 to 1, got 2",
        ),
        ("mmlu", {"question": "x", "choices": "a, b", "answer": 0}, "the column 'choices' must be a list, got 'a, b'"),
        ("mmlu", {"question": "x", "choices": ["a", 1], "answer": 0}, "must be a list of texts, got 1 in it"),
        (
            "mmlu",
            {"question": "x", "choices": ["a"], "answer": 0},
            "a question has from 2 to 26 choices, and this one has 1",
        ),
        ("mmlu_pro", {"question": "x", "options": ["a", "b"], "answer": "C"}, "must be a letter from A to B"),
        (
            "mmlu_redux",
            {"question": "x", "choices": ["a", "b"], "answer": 0, "error_type": "bad"},
            "'error_type' is 'bad'; known are ok",
        ),
        ("mmmlu", {"Question": "x", "A": "1", "B": "2", "C": "3", "Answer": "A"}, "the column 'D' is missing"),
        (
            "include",
            {"question": "x", "option_a": "1", "option_b": "2", "answer": 0, "language": "Greek"},
            "'option_c' is missing",
        ),
        ("ifeval", {"prompt": "x", "instruction_id_list": ["a"], "kwargs": []}, "there are 1 instructions"),
        (
            "humaneval",
            {"prompt": "x", "test": "assert f", "entry_point": "f"},
            "must define the function check(candidate)",
        ),
        ("mbpp", {"text": "x", "test_list": []}, "the column 'test_list' is empty"),
        (
            "livecodebench",
            {"question_content": "x", "contest_date": "May", "question_id": "1"},
            "must begin with a day (YYYY-MM-DD)",
        ),
        (
            "bfcl",
            {"id": "multi_turn_base_0", "question": [[]], "function": []},
            "of the category 'multi_turn_base', which is not read",
        ),
        (
            "bfcl",
            {"id": "simple_0", "question": [[{"role": "user", "content": "x"}]], "function": [{"name": "f"}]},
            "there is no possible answer for simple_0",
        ),
        (
            "bfcl",
            {
                "id": "irrelevance_0",
                "question": [[{"role": "user", "content": "x"}]],
                "function": [{"name": "f", "parameters": {"type": "dict", "properties": {"x": {"type": "flaot"}}}}],
            },
            "the type 'flaot' of f.x is not known. Did you mean 'float'",
        ),
        ("bfcl", {"id": "simple_0"}, "has the column 'question', 'ground_truth' or both"),
    ],
)
def test_a_row_in_another_form_is_named_with_file_row_and_column(task, row, expected, tmp_path):
    good = next(iter(SETS[task].files.values()))[0] if task in ("gsm8k", "math_500", "aime25") else row
    write_lines(tmp_path / "rows.jsonl", [good, row])
    text = refusal(task, tmp_path / "rows.jsonl", {"start": None, "end": None} if task == "livecodebench" else None)
    assert expected in text
    assert text.startswith(str(tmp_path / "rows.jsonl"))
    assert f"The task {task} reads " in text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", "", "the task gsm8k has no problems in"),
        ("a.json", "[]", "the task gsm8k has no problems in"),
        ("a.jsonl", '{"question": "x"', "a.jsonl:1: not valid JSON"),
        ("a.jsonl", "[1]\n", "a JSON object is wanted, got list"),
        ("a.json", '[{"question": "x"}, 3]', "a.json record 2: an object is wanted, got 3"),
        (
            "a.json",
            json.dumps({"data": [GSM8K], "n": 1}, indent=1),
            "holds one object, and rows are a list of objects, or one object a line; "
            "write the list 'data' alone (`jq '.data'`)",
        ),
        ("a.json", "3", "holds a int"),
        ("a.parquet", "PAR1 no", "not a whole Parquet file"),
        ("a.arrow", "no arrow", "not a whole Arrow file"),
        ("a.csv", "question,answer\nx\n", "a.csv:2: the row has 1 cells, and the first row names 2 columns"),
        ("a.txt", "question", "is a .txt; JSONL, JSON, CSV"),
        ("a.pkl", "x", "is a .pkl; JSONL, JSON, CSV"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, expected, tmp_path):
    (tmp_path / name).write_text(content)
    text = refusal("gsm8k", tmp_path / name)
    assert expected in text
    assert name in text


def test_folders(tmp_path):
    assert "holds no data of gsm8k: expected main/test-*.parquet" in refusal("gsm8k", tmp_path)
    write_lines(tmp_path / "rows.jsonl", [GSM8K])
    (tmp_path / "README.md").write_text("# no rows")
    (tmp_path / ".hidden.jsonl").write_text("no rows")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(load(find("gsm8k"), tmp_path)) == 1
    write_lines(tmp_path / "train.jsonl", [GSM8K])
    write_lines(tmp_path / "test.jsonl", [GSM8K, GSM8K])
    assert "holds several splits" in refusal("gsm8k", tmp_path)
    assert len(load(find("gsm8k"), write("gsm8k", tmp_path))) == 2  # the files that the data set names come first
    assert "does not exist; `hf download --repo-type dataset openai/gsm8k" in refusal("gsm8k", tmp_path / "none")


def test_a_folder_of_the_hub_s_cache(tmp_path):
    cache = tmp_path / "datasets--openai--gsm8k"
    write("gsm8k", cache / "snapshots" / "abc")
    write_lines(tmp_path / "x.jsonl", [])
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    assert len(load(find("gsm8k"), cache)) == 2


def test_the_hub_is_asked_for_the_files_that_a_task_reads(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(dataset, *, repo_type, allow_patterns):
        asked.append((dataset, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert "(there is no file main/test-*.parquet)" in refusal("gsm8k", None)
    write("gsm8k", tmp_path)
    assert len(load(find("gsm8k"))) == 2
    assert asked == [("openai/gsm8k", "dataset", ["main/test-*.parquet"])] * 2


def test_without_a_network_the_command_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = refusal("gsm8k", None)
    assert text.startswith("the data of gsm8k (openai/gsm8k) is not in the cache and could not be downloaded (")
    assert (
        "run `hf download --repo-type dataset openai/gsm8k --include 'main/test-*.parquet' --local-dir gsm8k` where there is a "
        "network, and give the folder: --data gsm8k=PATH."
    ) in text
    assert "it is gated: accept its terms" in refusal("gpqa_diamond", None)
    assert "Leaderboard --include '*.json' --include 'possible_answer/*.json' --local-dir bfcl`" in refusal(
        "bfcl", None
    )
    assert "code_generation_lite --include test5.jsonl --include test6.jsonl --local-dir" in refusal(
        "livecodebench", None
    )


def test_without_a_network_the_hub_s_cache_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cache = tmp_path / "datasets--openai--gsm8k"
    write("gsm8k", cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    asked = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked(*a, **k, cache_dir=str(tmp_path)))
    assert len(load(find("gsm8k"))) == 2


def test_ids_that_come_twice_are_made_different_in_the_same_way(tmp_path):
    rows = [{"problem": str(n), "answer": "1", "unique_id": name} for n, name in enumerate(["a", "a", "a#2", "a"])]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert [problem.id for problem in load(find("math_500"), tmp_path / "rows.jsonl")] == ["a", "a#2", "a#2#2", "a#3"]


def test_data_of_a_generated_task_is_refused(tmp_path):
    assert "is generated and reads no data; remove --data running_sum=" in refusal("running_sum", tmp_path)


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("gsm8k", {"seed": 1}, "the task gsm8k has no options; remove seed"),
        (
            "running_sum",
            {"problem": 1},
            "has no option 'problem'; it has problems, seed, min_digits, max_digits, eval_fraction. Did you",
        ),
        ("running_sum", {"problems": "many"}, "the option running_sum.problems is 'many'; it must be a whole number"),
        ("running_sum", {"problems": True}, "the option running_sum.problems is True; it must be a whole number"),
        ("running_sum", {"problems": 0}, "problems is 0; it must be at least 1"),
        ("running_sum", {"min_digits": 9, "max_digits": 5}, "max_digits is 5; it must be between 9 and 26"),
        ("running_sum", {"eval_fraction": "2"}, "eval_fraction is 2.0; it must be between 0 and 1"),
        ("ruler", {"kinds": "niah"}, "there is no kind 'niah'; there are niah_single_1"),
        ("ruler", {"lengths": "4096,x"}, "the option ruler.lengths is 'x'; it must be a whole number"),
        ("ruler", {"lengths": "100"}, "lengths is 100; it must be at least 1024"),
        ("ruler", {"lengths": [2048, 2048]}, "lengths has 2048 twice"),
        ("livecodebench", {"start": "2024-13-01"}, "start is '2024-13-01'; it must be a day, YYYY-MM-DD"),
        ("livecodebench", {"start": "2025-03-01"}, "start 2025-03-01 is after end 2025-02-28"),
        ("bfcl", {"categories": "sinple"}, "there is no category 'sinple'; .* Did you mean 'simple'"),
        ("mmlu_redux", {"answers": "all"}, "the option mmlu_redux.answers is 'all'; it must be one of ok, corrected"),
        ("ifeval", {"loose": "maybe"}, "the option ifeval.loose is 'maybe'; it must be true or false"),
    ],
)
def test_options_are_checked_and_read_from_texts(task, options, expected):
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        load(find(task), None, options)


def test_options_from_a_command_line_equal_those_of_python(tmp_path):
    folder = write("ifeval", tmp_path)
    assert load(find("ifeval"), folder, {"loose": "True"})[0].settings == {"loose": True}
    texts = {"lengths": "1024, 2048", "problems": "1", "kinds": "vt,qa_1"}
    assert load(find("ruler"), None, texts) == load(
        find("ruler"), None, {"lengths": [1024, 2048], "problems": 1.0, "kinds": ("vt", "qa_1")}
    )


def test_a_row_with_a_column_twice_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("question,question,answer\nx,y,#### 1\n")
    assert "two columns are named 'question'" in refusal("gsm8k", tmp_path / "a.csv")
    published.write_csv(tmp_path / "b.csv", [GSM8K])
    assert len(load(find("gsm8k"), tmp_path / "b.csv")) == 1
