"""The verifiers of the evaluation tasks: what an answer must hold or say, tool use in parts, LiveCodeBench's packed tests."""

import base64
import json
import pickle
import zlib

import pytest

from qwen3_jax.errors import UserError
from qwen3_jax.sandbox import find_isolation
from qwen3_jax.verifiers import BadReference, verify
from qwen3_jax.verifiers.livecodebench import unpacked


def status(name, answer, reference, **settings):
    return verify(name, answer, reference, settings).status


@pytest.mark.parametrize(
    ("answer", "reference", "settings", "expected", "score"),
    [
        ("They are 12 and 345.", ["12", "345"], {}, "right", 1),
        ("They are 12 and 34.", ["12", "345"], {}, "wrong", 0.5),
        ("123", "12", {}, "wrong", 0),
        ("123", "12", {"whole_words": False}, "right", 1),
        ("PARIS", "Paris", {}, "right", 1),
        ("PARIS", "Paris", {"ignore_case": False}, "wrong", 0),
        ("one", ["one", "two"], {"need": "any"}, "right", 1),
        ("three", ["one", "two"], {"need": "any"}, "wrong", 0),
        ("cafe\u0301", "café", {}, "right", 1),
        ("it is a.b(c", "a.b(c", {}, "right", 1),
        ("它的首都是北京市。", "北京", {}, "right", 1),
        ("共7123个", "7123", {}, "right", 1),
        ("_12_", "12", {}, "right", 1),
        ("12_3 x_12", "12", {}, "wrong", 0),
        ("<think>12</think>no", "12", {}, "wrong", 0),
        ("", "12", {}, "unparsable", 0),
        ("12", [], {}, "error", 0),
        ("12", ["12", ""], {}, "error", 0),
        ("12", 12, {}, "error", 0),
    ],
)
def test_recall(answer, reference, settings, expected, score):
    verdict = verify("recall", answer, reference, settings)
    assert (verdict.status, verdict.score) == (expected, score), verdict


FALSE = {"premise": False, "corrections": ["capital of France is Paris"]}
TRUE = {"premise": True, "facts": ["Paris", "Europe"]}


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("Rome is not the capital of France. It is in Italy.", FALSE, "right"),
        ("Rome isn't the capital of France.", FALSE, "right"),
        ("There is no record of that.", FALSE, "right"),
        ("That is a common misconception.", FALSE, "right"),
        ("The capital of France is Paris.", FALSE, "right"),
        ("I'm not aware of such an event.", FALSE, "right"),
        ("罗马并不是法国的首都，并未发生。", FALSE, "right"),
        ("Rome became the capital of France in 1871.", FALSE, "wrong"),
        ("In 1871. It was grand. People came. They sang. It was not cheap.", FALSE, "wrong"),  # said too late
        ("It was not only the capital but a jewel.", FALSE, "wrong"),
        ("", FALSE, "unparsable"),
        ("Paris, in Europe.", TRUE, "right"),
        ("Paris.", TRUE, "wrong"),
        ("That is false.", TRUE, "wrong"),
        ("x", {"premise": "no"}, "error"),
        ("x", {"premise": True, "facts": "Paris"}, "error"),
        ("x", None, "error"),
    ],
)
def test_premise(answer, reference, expected):
    assert status("premise", answer, reference) == expected


def tool(name, **properties):
    schema = {"type": "object", "properties": {k: {"type": v} for k, v in properties.items()}, "required": ["x"]}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [tool("f", x="integer", y="string"), tool("g", x="number")]
ONE = {"calls": [{"name": "f", "arguments": {"x": 1}}], "tools": TOOLS}


def call(name, arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize(
    ("answer", "reference", "parts"),
    [
        (call("f", {"x": 1}), ONE, (True, True, True)),
        (call("f", {"x": 2}), ONE, (True, True, False)),
        (call("f", {"x": "1"}), ONE, (True, False, False)),
        (call("f", {"x": True}), ONE, (True, False, False)),
        (call("f", {"x": 1, "z": 1}), ONE, (True, False, False)),
        (call("f", {}), ONE, (True, False, False)),
        (call("g", {"x": 1}), ONE, (False, True, False)),
        (call("h", {"x": 1}), ONE, (False, False, False)),
        (call("f", {"x": 1}) * 2, ONE, (False, True, False)),
        ("<tool_call>\n{broken\n</tool_call>", ONE, (False, False, False)),
        ("No.", ONE, (False, True, False)),
        ("It is 7.", {"calls": [], "tools": TOOLS, "says": ["7"]}, (True, True, True)),
        ("It is 8.", {"calls": [], "tools": TOOLS, "says": ["7"]}, (True, True, False)),
        ("", {"calls": [], "tools": TOOLS}, (True, False, True)),
        (call("f", {"x": 1}), {"calls": [], "tools": TOOLS}, (False, True, False)),
    ],
)
def test_tool_use(answer, reference, parts):
    verdict = verify("tool_use", answer, reference)
    assert verdict.parts == parts, verdict
    assert verdict.score == pytest.approx(sum(parts) / 3)


@pytest.mark.parametrize(
    "reference", [None, {"calls": []}, {"tools": TOOLS}, {"calls": [{"name": "f"}], "tools": TOOLS}]
)
def test_tool_use_without_calls_or_tools_is_an_error(reference):
    assert status("tool_use", "x", reference) == "error"


ALLOWED = {
    "name": "f",
    "allowed": {"city": ["New York, NY"], "box": [{"w": [1, 2], "unit": ["cm", ""]}, ""], "names": [["A b"], ["c"]]},
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"city": "new york ny", "names": ["a-b"]}, "right"),
        ({"city": "New York", "names": ["c"]}, "wrong"),
        ({"city": "new york, ny", "names": ["C"], "box": {"w": 2}}, "right"),
        ({"city": "new york, ny", "names": ["C"], "box": {"w": 2, "unit": "CM"}}, "right"),
        ({"city": "new york, ny", "names": ["C"], "box": {"w": 3}}, "wrong"),
        ({"city": "new york, ny", "names": ["C"], "box": {"unit": "cm"}}, "wrong"),
        ({"city": "new york, ny", "names": ["C"], "box": {"w": 1, "h": 1}}, "wrong"),
        ({"city": "new york, ny", "names": ["A b", "c"]}, "wrong"),
        ({"city": 3, "names": ["c"]}, "wrong"),
    ],
)  # fmt: skip
def test_tool_calls_are_compared_loosely_as_the_leaderboard_does(arguments, expected):
    assert status("tool_calls", call("f", arguments), [ALLOWED], loose=True) == expected
    exact = {"city": "New York, NY", "names": ["c"]}
    assert status("tool_calls", call("f", exact), [ALLOWED]) == "right"
    assert status("tool_calls", call("f", {**exact, "city": "new york, ny"}), [ALLOWED]) == "wrong"


TESTS = [{"input": "2\n", "output": "4\n", "testtype": "stdin"}]


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Hostile:
    def __reduce__(self):
        return print, ("a class was unpickled",)


def test_packed_tests_are_read():
    for form in (TESTS, json.dumps(TESTS), packed(json.dumps(TESTS)), "\n" + json.dumps(TESTS)):
        assert unpacked(form) == TESTS


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (packed(Hostile()), "it refers to builtins.print"),
        (packed(TESTS), "must be a text, got list"),
        (packed(json.dumps(TESTS))[:40], "cut off|no JSON"),
        ("!!!", "no JSON"),
        (base64.b64encode(b"x").decode(), "no JSON"),
        (packed("[3]"), "a test must have the texts input and output"),
        (packed("{"), "no valid JSON"),
        ('[{"input": 1}]', "a test must have the texts input and output"),
        (7, "must be a list, got int"),
    ],
)
def test_packed_tests_of_another_form_are_the_reference_s_fault(form, expected, capsys):
    with pytest.raises(BadReference, match=expected):
        unpacked(form)
    assert "unpickled" not in capsys.readouterr().out
    assert status("livecodebench", "x", {"public_test_cases": "[]", "private_test_cases": form}) == "error"


def test_livecodebench_programs():
    try:
        find_isolation()
    except UserError as error:
        pytest.skip(str(error))
    reference = {"public_test_cases": TESTS, "private_test_cases": packed(json.dumps(TESTS * 2)), "func_name": None}
    doubles = "x: List[int] = [int(input())]\nprint(2 * x[0])"  # List is not imported, as in the contests' starter code
    settings = {"tolerance": 1e-12}
    assert verify("livecodebench", doubles, reference, settings).reason == "the program passes 3 tests"
    assert status("livecodebench", "print(' 4.0 ')", reference, **settings) == "right"  # numbers are equal by value
    assert status("livecodebench", "print(5)", reference, **settings) == "wrong"
    functional = [{"input": '[3, 1]\n"a"', "output": "[1, 3]"}, {"input": '[]\n""', "output": "[]"}]
    reference = {"public_test_cases": json.dumps(functional), "func_name": "sort"}
    method = "class Solution:\n    def sort(self, nums: List[int], text: Optional[str]):\n        return {}"
    assert status("livecodebench", method.format("sorted(nums)"), reference) == "right"
    assert status("livecodebench", method.format("nums"), reference) == "wrong"
    assert status("livecodebench", "def sort(nums, text): return tuple(sorted(nums))", reference) == "right"
    assert status("livecodebench", "def other(): pass", reference) == "wrong"
    for bad in (
        {},
        None,
        {"public_test_cases": "[]"},
        {**reference, "func_name": "a b"},
        {**reference, "func_name": 3},
    ):
        assert status("livecodebench", "x", bad) == "error"
    assert (
        status("livecodebench", "x", {"public_test_cases": [{"input": "x", "output": "1"}], "func_name": "f"})
        == "error"
    )
