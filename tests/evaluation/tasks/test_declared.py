"""Tasks that a user declares: in YAML, key by key, and in Python."""

import dataclasses
import re
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.rows import Row
from qwen3_jax.evaluation.task import THINKING, Problem, Task
from qwen3_jax.evaluation.tasks import find, load, names, register
from qwen3_jax.evaluation.tasks.declared import Declaration, rendered
from qwen3_jax.evaluation.tasks.options import options_of
from qwen3_jax.verifiers import verify
from tests.evaluation.tasks.published import HOSTILE, write_lines

RIVERS = r"""
data: rivers.jsonl
prompt: |
  {question}
  Put the answer within \boxed{}.
reference: answer
verifier: math
"""
ROWS = [{"question": HOSTILE, "answer": "3", "level": 2}, {"question": "2 + 2?", "answer": 4, "level": "x"}]


@pytest.fixture
def declared(tmp_path):
    def write(text, rows=ROWS):
        if rows is not None:
            write_lines(tmp_path / "rivers.jsonl", rows)
        (tmp_path / "rivers.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
        return str(tmp_path / "rivers.yaml")

    return write


def outcome(call):
    """(what is said of the input, problems)."""
    try:
        return "", call()
    except UserError as error:
        return str(error), []


def test_a_task_in_a_few_lines(declared):
    task = find(declared(RIVERS))
    assert (task.name, task.verifier, task.samples, task.max_new_tokens, task.thinking) == (
        "rivers",
        "math",
        1,
        32_768,
        None,
    )
    problems = load(task)
    assert [(p.id, p.reference) for p in problems] == [("0", "3"), ("1", 4)]
    assert problems[0].prompt == ({"role": "user", "content": f"{HOSTILE}\nPut the answer within \\boxed{{}}."},)
    assert verify("math", "\\boxed{4}", problems[1].reference).status == "right"


def test_the_documented_declaration_is_read(declared, tmp_path):
    page = (Path(__file__).parents[3] / "docs/evaluation_tasks.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    task = find(declared(text, [{"question": "1 + 1?", "answer": "2", "country": "Peru"}]))
    [problem] = load(task)
    assert (problem.group, problem.reference, task.samples) == ("Peru", "2", 4)
    for field in dataclasses.fields(Declaration):
        assert f"`{field.name}`" in page.split("## A task of your own")[1], field.name


def test_every_key_takes_effect(declared, tmp_path):
    rows = [
        {"q": "Which?", "opts": ["p", "q"], "right": "q", "n": 7, "subject": "law", "calls": [{"type": "function"}]}
    ]
    write_lines(tmp_path / "other.jsonl", rows)
    everything = {
        "data": "other.jsonl", "prompt": "{q} {{q}} {n}", "choices": "opts", "system": "About {subject}.", "reference": "right",
        "verifier": "choice", "settings": {"letters": "ABC"}, "name": "law", "about": "law", "id": "n", "group": "subject",
        "tools": "calls", "metric": "score", "thinking": {"temperature": 1, "min_p": 0.1}, "non_thinking": {"temperature": 0},
        "max_new_tokens": 9, "samples": 3, "needs_thinking": True, "enable_thinking": False, "reference_url": "here",
    }  # fmt: skip
    task = find(declared(everything))
    assert (task.name, task.about, task.metric, task.reference) == ("law", "law", "score", "here")
    assert (task.max_new_tokens, task.samples, task.needs_thinking, task.settings) == (9, 3, True, {"letters": "ABC"})
    assert task.thinking is not None
    assert (task.thinking.temperature, task.thinking.min_p, task.thinking.top_p) == (1, 0.1, THINKING.top_p)
    assert task.non_thinking is not None
    assert task.non_thinking.temperature == 0
    [problem] = load(task)
    system, user = problem.prompt
    assert system == {"role": "system", "content": "About law."}
    assert user["content"].startswith("Which? {q} 7\n\nA. p\nB. q\n\nPlease show your choice")
    assert (problem.id, problem.group, problem.reference, problem.settings) == ("7", "law", "B", {"letters": "AB"})
    assert (problem.enable_thinking, problem.tools) == (False, ({"type": "function"},))


def test_messages_raw_texts_and_objects_as_references(declared, tmp_path):
    chat = [{"role": "user", "content": "{x}"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    rows = [{"chat": chat, "tests": ["assert f() == 1"], "name": "f"}]
    text = "data: rivers.jsonl\nmessages: chat\nreference: {assertions: tests, entry_point: name}\nverifier: code\n"
    [problem] = load(find(declared(text, rows)))
    assert problem.prompt == tuple(chat)
    assert problem.reference == {"assertions": ["assert f() == 1"], "entry_point": "f"}
    [problem] = load(find(declared("data: rivers.jsonl\nprompt: '{name} is'\nraw: true\nverifier: repetition\n", rows)))
    assert (problem.prompt, problem.reference) == ("f is", None)
    task = find(declared("prompt: '{name}'\nverifier: repetition\n", rows))  # no data: --data gives it
    assert len(load(task, tmp_path / "rivers.jsonl")) == 1
    with pytest.raises(UserError, match="has no data; give it with --data rivers=PATH, or with the key data"):
        load(task)


@pytest.mark.parametrize(
    ("right", "choices", "expected"),
    [
        ("B", ["p", "q"], "B"),
        ("b", ["p", "q"], "B"), (1, ["p", "q"], "B"), ("1", ["p", "q"], "B"), ("Q ", ["p", "q"], "B"),
        ("A", ["A", "B"], "A"), ("A", ["B", "A"], None),
        ("1", ["1", "2"], None), ("1", ["0", "1"], "B"), ("r", ["p", "q"], None),
        (2, ["p", "q"], None), ("p", ["p", "p"], None), ("A", ["p"], None),
    ],
)  # fmt: skip
def test_the_right_choice_is_a_letter_a_place_or_a_text(right, choices, expected, declared):
    path = declared(
        "data: rivers.jsonl\nprompt: '{q}'\nchoices: c\nreference: r\n", [{"q": "x", "c": choices, "r": right}]
    )
    refused, problems = outcome(lambda: load(find(path)))
    assert [problem.reference for problem in problems] == [expected][: 0 if refused else 1]
    assert bool(refused) is (expected is None)


@pytest.mark.parametrize(
    ("verifier", "given", "expected"),
    [
        ("math", "[1, 2]", "[1, 2]"), ("exact", "{}", "{}"),
        ("exact", 4, "4"), ("exact", ["a", "b"], ["a", "b"]), ("number", 4, 4),
        ("regex", "[a]", "[a]"), ("json", '{"type": "object"}', {"type": "object"}), ("recall", '["a", "b"]', ["a", "b"]),
        ("recall", "[a", "[a"), ("length", 30, 30), ("tool_calls", [], []),
    ],
)  # fmt: skip
def test_references_are_what_the_verifier_wants(verifier, given, expected, declared):
    text = f"data: rivers.jsonl\nprompt: '{{q}}'\nreference: r\nverifier: {verifier}\n"
    assert load(find(declared(text, [{"q": "x", "r": given}])))[0].reference == expected


def test_data_of_the_hub_is_declared_too(declared):
    task = find(declared("data: {dataset: me/rivers, files: 'data/*.parquet'}\nprompt: '{q}'\nverifier: repetition\n"))
    with pytest.raises(UserError, match=r"hf download --repo-type dataset me/rivers --include 'data/\*\.parquet'"):
        load(task)


GOOD = {"data": "rivers.jsonl", "prompt": "{question}", "reference": "answer", "verifier": "math"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"promt": "x"}, "there is no key 'promt'; there are data, prompt, .* Did you mean 'prompt'"),
        ({3: "x"}, "there is no key 3"),
        ({"prompt": None}, "has either prompt or messages, and this one has neither"),
        ({"messages": "m"}, "has either prompt or messages"),
        ({"prompt": 3}, "prompt is 3; it must be text"),
        ({"prompt": None, "messages": "m", "system": "x"}, "system goes with prompt, and this task has messages"),
        ({"raw": True, "system": "x"}, "system is part of a chat"),
        ({"raw": "yes"}, "raw is 'yes'; it must be true or false"),
        ({"verifier": None}, "the key verifier is missing"),
        ({"verifier": "maths"}, "there is no verifier 'maths'; .* Did you mean 'math'"),
        ({"settings": {"secnds": 1}}, "the verifier 'math' has no setting 'secnds'; .* Did you mean 'seconds'"),
        ({"settings": ["x"]}, "settings is .*; it must be a mapping"),
        ({"samples": 0}, "samples is 0; it must be a whole number of at least 1"),
        ({"samples": True}, "samples is True; it must be a whole number"),
        ({"max_new_tokens": "many"}, "max_new_tokens is 'many'; it must be a whole number"),
        ({"metric": "f1"}, "metric is 'f1'; it must be accuracy or score"),
        ({"thinking": {"temprature": 1}}, "thinking has no option 'temprature'; .* Did you mean 'temperature'"),
        ({"thinking": {"temperature": -1}}, "thinking: sampling option 'temperature' is -1; it must be at least 0"),
        ({"thinking": 0.6}, "thinking is 0.6; it must be a mapping"),
        ({"reference": ["a"]}, "reference is .*; it must be a column, or a mapping of fields to columns"),
        ({"reference": {"a": 3}}, "reference is .*; it must be a column, or a mapping of fields to columns"),
        ({"choices": "c"}, "choices are judged by the verifier choice, not 'math'"),
        (
            {"choices": "c", "verifier": None, "reference": None},
            "with choices, reference must be the column of the right one",
        ),
        ({"data": 3}, "data is 3; it must be a path, or a mapping of dataset and files"),
        ({"data": {"dataset": "a/b"}}, "files of data is None; it must list patterns"),
        ({"data": {"dataset": "a/b", "file": "x"}}, "data is .*; it must be a path, or a mapping of dataset and files"),
        ({"name": "a b"}, "a task's name must be letters, digits"),
        ({"reference": "anser"}, "the column 'anser' is missing; the row has answer, .* Did you mean 'answer'"),
        ({"prompt": "{question} {levle}"}, "the column 'levle' is missing; .* Did you mean 'level'"),
        ({"group": "lvl"}, "the column 'lvl' is missing"),
        ({"tools": "question"}, "the column 'question' must be a list"),
        ({"tools": "functions"}, "the column 'functions' is missing"),
        ({"data": "none.jsonl"}, "none.jsonl, does not exist"),
    ],
)
def test_a_wrong_declaration_is_one_sentence(change, expected, declared):
    path = declared({key: value for key, value in {**GOOD, **change}.items() if value is not None})
    with pytest.raises(UserError, match=expected) as caught:
        load(find(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "prompt: [", "3", "\ufffe", "a: &a [*a]", "prompt: {a}\n  b"])
def test_a_file_that_declares_nothing_is_refused(text, declared):
    with pytest.raises(UserError, match=r"rivers\.yaml"):
        find(declared(text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        find(str(tmp_path / "none.yaml"))


WORDS = st.text(string.ascii_letters + "{}%\\$'\"\n :-漢🙂", max_size=30)
OUTSIDE = WORDS.filter(lambda text: not re.search(r"\{[^{}\n]+\}", text) and text[-1:] != "{" and text[:1] != "}")


@given(OUTSIDE, WORDS, OUTSIDE)
def test_texts_of_columns_are_never_read_as_templates(before, value, after):
    row = Row({"q": value, "n": 3}, "here")
    assert rendered(f"{before}{{q}}{{n}}{after}", row) == f"{before}{value}3{after}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (r"{q} \frac{\sqrt{2}}{3}", r"Why? \frac{\sqrt{2}}{3}"),
        ('{q} As JSON: {"a": {"b": 1}}', 'Why? As JSON: {"a": {"b": 1}}'),
        (r"{{q}} \boxed{{{q}}} {}", r"{q} \boxed{Why?} {}"),
        ("{the answer}: {no column}", "5: {no column}"),
    ],
)
def test_all_other_braces_of_a_prompt_are_text(template, expected, declared, tmp_path):
    write_lines(tmp_path / "rows.jsonl", [{"q": "Why?", "the answer": 5}])
    [problem] = load(find(declared({**GOOD, "data": "rows.jsonl", "prompt": template, "reference": "the answer"})))
    assert problem.prompt[0]["content"] == expected


KEYS = st.sampled_from(
    sorted({**GOOD, "choices": 0, "settings": 0, "thinking": 0, "samples": 0, "raw": 0, "system": 0, "id": 0, "x": 0})
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | WORDS
    | st.sampled_from(["question", "answer", "math", "choice"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=150)
@given(change=st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_declaration_is_a_task_or_one_sentence(change, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "declared"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "rivers.jsonl", ROWS)
    (folder / "a.yaml").write_text(yaml.safe_dump({**GOOD, **change}, allow_unicode=True), encoding="utf-8")
    refused, problems = outcome(lambda: load(find(str(folder / "a.yaml"))))
    assert "\n" not in refused
    assert refused or len(problems) == 2


@settings(max_examples=150)
@given(st.dictionaries(st.sampled_from(["question", "answer", "x"]), VALUES, max_size=3))
def test_any_row_is_a_problem_or_one_sentence(body):
    for task in (
        "gsm8k",
        "math_500",
        "aime24",
        "mmlu",
        "mmlu_pro",
        "gpqa_diamond",
        "ifeval",
        "mbpp",
        "humaneval",
        "bfcl",
    ):
        made = find(task)
        refused, problems = outcome(lambda: list(made.problems([Row(body, "f:1")], options_of(made, {}))))  # noqa: B023
        assert "\n" not in refused
        assert refused.startswith("f:1: ") or all(isinstance(problem, Problem) for problem in problems)


def test_python_registers_a_task():
    def squares(rows, options):
        return (Problem(str(n), f"{n} squared is", n * n) for n in range(3))

    task = Task("squares_of_a_test", "squares", squares, "number")
    assert register(task) is register(task) is find("squares_of_a_test")
    assert "squares_of_a_test" in names()
    assert [problem.reference for problem in load(task)] == [0, 1, 4]
    with pytest.raises(UserError, match="there is a task 'squares_of_a_test' already"):
        register(Task("squares_of_a_test", "others", squares, "number"))
    for bad, expected in (
        ({"name": "a b"}, "a task's name"), ({"verifier": "numbr"}, "Did you mean 'number'"),
        ({"settings": {"tolerance": -1}}, "tolerance is -1"), ({"samples": 0}, "samples is 0"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=expected):
            register(Task(**{"name": "x", "about": "", "problems": squares, "verifier": "number", **bad}))
    from qwen3_jax.evaluation.tasks import registry

    del registry._TASKS["squares_of_a_test"]


def test_a_task_whose_prompts_are_empty_is_refused(tmp_path):
    empty = Task("empty", "", lambda rows, options: [Problem("0", " ", 1)], "number")
    with pytest.raises(UserError, match="the prompt of problem 0 is empty"):
        load(empty)
    assert Path(tmp_path).exists()
