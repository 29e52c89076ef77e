"""Text, numbers, letters, patterns, JSON, programs and tool calls: what is right, wrong, and nothing to compare."""

import time

import pytest

from qwen3_jax.verifiers import verify
from qwen3_jax.verifiers.programs import program_of
from tests.helpers.isolated import require_isolation


def status(name, answer, reference, **settings):
    return verify(name, answer, reference, settings).status


@pytest.mark.parametrize(
    ("answer", "reference", "settings", "expected"),
    [
        (" Paris\n", "Paris", {}, "right"),
        ("New \n York", "New York", {}, "right"),
        ("New \n York", "New York", {"join_spaces": False}, "wrong"),
        ("e\u0301", "\u00e9", {}, "right"),  # the same letter, composed or not
        ("PARIS", "Paris", {}, "wrong"),
        ("PARIS", "Paris", {"ignore_case": True}, "right"),
        ("Straße", "STRASSE", {"ignore_case": True}, "right"),
        ("Paris!", "Paris", {"ignore_punctuation": True}, "right"),
        ("b", ["a", "b"], {}, "right"),
        ("", "Paris", {}, "unparsable"),
        ("", "", {}, "right"),
        ("1", 1, {}, "error"),
        ("1", [], {}, "error"),
    ],
)
def test_exact(answer, reference, settings, expected):
    assert status("exact", answer, reference, **settings) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "settings", "expected"),
    [
        ("It costs $1,234.50 in all.", 1234.5, {}, "right"),
        ("答案是89。", 89, {}, "right"),  # in scripts without spaces a number stands beside a word
        ("共89个", 89, {}, "right"),
        ("x89", 89, {}, "unparsable"),
        ("3 and then 4", 4, {}, "right"),
        ("3 and then 4", 3, {"take": "first"}, "right"),
        ("3 and then 4", 4, {"take": "only"}, "wrong"),
        ("3, so 3.", 3, {"take": "only"}, "right"),
        ("#### 1,234", "Text 5. #### 1234", {}, "right"),
        ("4\n#### 5\nCheck: 6", 5, {"take": "marked"}, "right"),
        ("the answer is 5, not 6", 5, {"take": "marked"}, "right"),
        (r"\boxed{5} of 6", 5, {"take": "marked"}, "right"),
        ("5", 5, {"take": "marked"}, "unparsable"),
        ("\u22125", -5, {}, "right"),  # the minus sign of typography
        ("-5", "-5.0", {}, "right"),
        ("3/4", 0.75, {}, "right"),
        (r"\boxed{1{,}234}", 1234, {}, "right"),
        (r"$1\,234$", 1234, {}, "right"),
        ("3-2", 2, {}, "right"),  # a difference, not -2
        ("3/0", 3, {}, "unparsable"),
        ("1e3", 1000, {}, "right"),
        ("1E+3", 1000, {}, "right"),
        ("50%", 50, {}, "right"),
        ("50%", 0.5, {"percent": True}, "right"),
        ("0.1", "0.10", {}, "right"),
        ("0.3333", 1 / 3, {"tolerance": 1e-4}, "right"),
        ("99", 100, {"relative_tolerance": 0.01}, "right"),
        ("98", 100, {"relative_tolerance": 0.01}, "wrong"),
        ("\uff15", 5, {}, "right"),  # a full-width digit
        ("version 1.2.3", 9, {}, "wrong"),
        ("none", 5, {}, "unparsable"),
        ("5", "none", {}, "error"),
        ("5", True, {}, "error"),
        ("9" * 300, "9" * 300, {}, "right"),
        ("1e999", 5, {}, "wrong"),
        (r"\boxed{-\frac{3}{4}}", -0.75, {}, "right"),
        (r"\frac{1}{2}", 2, {}, "wrong"),
        (r"$2\dfrac12$", 2.5, {}, "right"),
        ("½", 0.5, {}, "right"),
        ("1½ or 1 1/2", 1.5, {"take": "only"}, "right"),
        ("It is 3/4.", 0.75, {}, "right"),
        ("1/1,000", 0.001, {}, "right"),
        (r"1.5 \times 10^{3}", 1500, {}, "right"),
        ("1.5 × 10⁻³ m", 0.0015, {}, "right"),
        ("2^10", 1024, {}, "right"),
        ("12 cm^2", 12, {}, "right"),
        ("10²", 102, {}, "wrong"),
        ("9" * 900 + "^999", 5, {}, "unparsable"),  # not computed
        ("5\u202f000 €", 5000, {}, "right"),
        ("5'000", 5000, {}, "right"),
        ("1,00,000", 100000, {}, "right"),
        ("\u20135", -5, {}, "right"),
        ("- 5 apples", 5, {}, "right"),  # an item of a list
        ("x = - 5", -5, {}, "right"),
        ("10 - 5", 5, {}, "right"),
    ],
)
def test_number(answer, reference, settings, expected):
    assert status("number", answer, reference, **settings) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", "B"), ("(B)", "B"), ("b", "B"), ("**B**", "B"), ("B.", "B"), ("B) because", "B"), (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"), (r"$\boxed{(B)}$", "B"), ("The answer is B.", "B"), ("The answer is (B)", "B"),
        ("Answer: B", "B"), ("**Answer:** B", "B"), ("Answer: **B**", "B"), ("The correct choice is B because A is not", "B"),
        ("The answer is A. No, the answer is B.", "B"), ("A is wrong.\n\nAnswer: $\\boxed{B}$", "B"), ("答案是B", "B"),
        ("答案：B", "B"), ("A good question. I don't know", None), ("", None), ("The answer is Berlin", None), ("E", None),
        ("the answer is b) blue", "B"), ("The answer is b.", "B"),
        ("the answer is b which", None), ("I think so", None), ("B. Blue\n", "B"),
        # JSON, as Qwen's model cards ask for it
        ('"answer": "B"', "B"), ('{"answer": "B"}', "B"), ('```json\n{\n  "answer": "B"\n}\n```', "B"), ('"answer":"B"', "B"),
        ("{'answer': 'B'}", "B"), ('"answer": B', "B"), ('"answer": "b"', "B"), ('"answer": "(B)"', "B"),
        ("`answer`: `B`", "B"),
        ('"answer": "B. Blue"', "B"), ('**"answer": "B"**', "B"), ('"Answer": "B",\n"reason": "A is not"', "B"),
        ('"answer": "A"? No: A. x\nB. y\n"answer": "B"', "B"), ('"answer": "Because"', None),
        ('e.g. "answer": "C".\n\n"answer": "B"', "B"), ('"answer": ["B"]', "B"), ('"answer": ""', None),
        # other words and marks
        (r"\boxed{\mathbf{B}}", "B"), (r"\fbox{B}", "B"), ("<answer>B</answer>\nA is wrong", "B"), ("__B__", "B"),
        ("**B) 42**\n\nbecause", "B"), ("Therefore, B is the correct answer.", "B"), ("I choose B", "B"),
        ("A is wrong. B is right.", "B"), ("I would not choose B", None), ("Neither A nor B is correct", None),
        ("the answer is letter B", "B"), ("The answer depends on B", None), ("Vitamin B is healthy", None),
        ("La respuesta correcta es B", "B"), ("La réponse est B.", "B"), ("Die Antwort ist B.", "B"), ("Ответ: B", "B"),
        ("答えはBです", "B"), ("정답은 B입니다", "B"), ("الإجابة: B", "B"), ('"réponse": "B"', "B"),
        # several letters are no choice
        ("The answer is A or B", None), ("Answer: A, B", None), (r"\boxed{A, B}", None), ("Answer: A and B", None),
        ("A. x\nB. y", None), ("A) x\nB) y\n\nAnswer: B, A is wrong", "B"), ("Answer: B, A is wrong", "B"),
    ],
)  # fmt: skip
def test_choice(answer, expected):
    assert status("choice", answer, "B") == (
        "right" if expected == "B" else "unparsable" if expected is None else "wrong"
    )


def test_choice_of_other_letters_and_by_index():
    assert status("choice", "The answer is J.", "J", letters="ABCDEFGHIJ") == "right"
    assert status("choice", "C", 2) == "right"
    assert status("choice", "C", 4) == "error"
    assert status("choice", "C", "(C)") == "right"


def test_regex():
    assert status("regex", " abc ", "a.c") == "right"
    assert status("regex", "xabcx", "a.c") == "wrong"
    assert status("regex", "xabcx", "a.c", whole=False) == "right"
    assert status("regex", "ABC", "abc", ignore_case=True) == "right"
    assert status("regex", "a", "(") == "error"
    assert status("regex", "a", 5) == "error"


def test_a_pattern_that_takes_for_ever_is_timed_out():
    began = time.monotonic()
    assert status("regex", "a" * 40, "(a+)+b", seconds=0.3) == "timed_out"
    assert time.monotonic() - began < 15


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "d": {"format": "date"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("answer", "schema", "expected"),
    [
        ('{"a": 1}', SCHEMA, "right"),
        ('Here:\n```json\n{"a": 1}\n```\nDone.', SCHEMA, "right"),
        ('```\n{"a": 1}\n```', SCHEMA, "right"),
        ('{"a": "1"}', SCHEMA, "wrong"),
        ("{}", SCHEMA, "wrong"),
        ('{"a": 1, "d": "2020-13-01"}', SCHEMA, "wrong"),
        ('{"a": 1', SCHEMA, "unparsable"),
        ('{"a": NaN}', None, "unparsable"),
        ('{"a": 1, "a": 2}', None, "unparsable"),
        ("text", None, "unparsable"),
        ("[1]", None, "right"),
        ("```\n1\n```\n```\n2\n```", None, "unparsable"),
        ('Run\n```python\nx = 1\n```\nto get\n```json\n{"a": 1}\n```', SCHEMA, "right"),
        ('```JSON5\n{"a": 1}\n```', SCHEMA, "right"),
        ('~~~json\n{"a": 1}\n~~~', SCHEMA, "right"),
        ('```json\n{"a": 1, "d": "2020-01-01",\n "e": "```"}\n```', SCHEMA, "right"),
        ('```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```', SCHEMA, "unparsable"),
        ("1", {"type": "nothing"}, "error"),
        ("1", {"$ref": "https://example.com/schema.json"}, "error"),
        ("1", {"$ref": "#/$defs/x"}, "error"),
        ('{"x": {}}', {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"x": {"$ref": "#/$defs/x"}}}}}, "right"),
        ("1", "schema", "error"),
    ],
)
def test_json(answer, schema, expected):
    assert status("json", answer, schema) == expected


def test_json_reasons_name_the_place():
    verdict = verify("json", '{"list": [{"a": 1}, {"a": "x"}]}', {"properties": {"list": {"items": SCHEMA}}})
    assert verdict.reason == "at ['list'][1]['a']: 'x' is not of type 'integer'"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("```python\nx\n```", "x\n"),
        ("Text\n```python\nx\n```\nand\n```python\ny\n```\n", "y\n"),
        ("```python\nx\n```\nOutput:\n```text\n5\n```", "x\n"),
        ("```\nx\n```", "x\n"),
        ("```cpp\nx\n```", ""),
        ("print(1)", "print(1)"),
        ("Text\n```python\nx\ny", "x\ny"),  # cut off
        ("```python\nprint('```')\n```", "print('```')\n"),
        ("```python\r\nx\r\n```\r\n", "x\n"),
        ("```py3\nx\n```", "x\n"),
        ("```python3.11\nx\n```", "x\n"),
        ("```python:main.py\nx\n```", "x\n"),
        ("```{.python .numberLines}\nx\n```", "x\n"),
        ('```python title="x"\nx\n```', "x\n"),
        ("```pycon\n>>> x\n```", ""),
        ("~~~python\nx\n~~~", "x\n"),
        ("1. First:\n   ```python\n   if x:\n     y\n   ```", "if x:\n  y\n"),
        ("````python\n'''\n```\n'''\n````", "'''\n```\n'''\n"),
    ],
)
def test_the_program_is_the_last_python_block(answer, program):
    assert program_of(answer) == program


def test_an_example_of_its_use_is_not_the_program():
    answer = "```python\ndef f(x):\n    return x\n```\nUse it:\n```python\nprint(f(1))\n```"
    assert program_of(answer, "f") == "def f(x):\n    return x\n"
    assert status("code", answer, {"assertions": "def check(g): assert g(2) == 2", "entry_point": "f"}) == "right"


TESTS = {"tests": [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10"}]}


def test_code_against_input_and_output():
    require_isolation()
    right = verify("code", "```python\nprint(sum(map(int, input().split())))  \n```", TESTS)
    assert (right.status, right.parts, right.reason) == ("right", (True, True), "the program passes 2 tests")
    half = verify("code", "input()\nprint(3)", TESTS)
    assert (half.score, half.status, half.parts) == (0.5, "wrong", (True, False))
    assert half.reason == "test 2 of 2: line 1 of the output is '3', not '10'"
    assert verify("code", "print(3); print(4)", TESTS).reason == "test 1 of 2: the output has 2 lines, not 1"
    assert (
        verify("code", "print(3.00001)", {"tests": [{"input": "", "output": "3"}]}, {"tolerance": 1e-3}).status
        == "right"
    )
    assert verify("code", "1 / 0", TESTS).reason.endswith("ZeroDivisionError: division by zero")
    assert verify("code", "```cpp\nx\n```", TESTS).status == "unparsable"


def test_code_by_assertions():
    require_isolation()
    reference = {"assertions": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
    assert verify("code", "def add(a, b): return a + b", reference).status == "right"
    both = verify("code", "def add(a, b): return a * b", reference, {"stop_at_first": False})
    assert (both.score, both.status, both.parts) == (0.5, "wrong", (False, True))


PROMPT = 'import math\n\ndef root(x):\n    """The root."""\n'
CHECK = "def check(candidate):\n    assert candidate(9) == 3\n    assert candidate(16) == 4\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("    return math.isqrt(x)\n", "right"),  # goes on where the prompt ends
        (
            "```python\ndef root(x):\n    return math.isqrt(x)\n```",
            "right",
        ),  # writes the function anew, without the import
        ("    return x\n", "wrong"),
    ],
)
def test_code_that_continues_a_prompt(answer, expected):
    require_isolation()
    reference = {"prompt": PROMPT, "assertions": CHECK, "entry_point": "root"}
    assert status("code", answer, reference) == expected


@pytest.mark.parametrize(
    "reference",
    [
        None,
        {},
        {"tests": []},
        {"tests": [{"input": 1, "output": "1"}]},
        {"assertions": []},
        {**TESTS, "assertions": ["x"]},
    ],
)
def test_code_without_tests_is_an_error(reference):
    assert status("code", "print(1)", reference) == "error"


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


IN_PARIS = call("weather", '{"city": "Paris", "days": 5}')
PARIS = {"name": "weather", "arguments": {"city": "Paris", "days": 5}}


@pytest.mark.parametrize(
    ("answer", "reference", "settings", "expected", "score"),
    [
        (call("weather", '{"city": "Paris", "days": 5.0}'), [PARIS], {}, "right", 1),
        ("I look. " + call("weather", '{"days": 5, "city": "Paris"}'), [PARIS], {}, "right", 1),
        (call("weather", '{"city": "paris", "days": 5}'), [PARIS], {}, "wrong", 0),
        (call("weather", '{"city": "paris", "days": 5}'), [PARIS], {"ignore_case": True}, "right", 1),
        (call("f", '{"a": true}'), [{"name": "f", "arguments": {"a": 1}}], {}, "wrong", 0),
        (call("weather", '{"city": "Paris"}'), [PARIS], {}, "wrong", 0),
        (call("weather", '{"city": "Paris", "days": 5, "x": 1}'), [PARIS], {}, "wrong", 0),
        (call("time", "{}") + IN_PARIS, [PARIS, {"name": "time", "arguments": {}}], {}, "right", 1),
        (call("time", "{}") + IN_PARIS, [PARIS, {"name": "time", "arguments": {}}], {"ordered": True}, "wrong", 0),
        (call("time", "{}") * 2, [{"name": "time", "arguments": {}}], {}, "wrong", 0.5),
        (call("time", "{}"), [{"name": "time", "arguments": {}}] * 2, {}, "wrong", 0.5),
        ("no call", [PARIS], {}, "unparsable", 0),
        ("<tool_call>\n{broken\n</tool_call>", [PARIS], {}, "unparsable", 0),
        ("no call", [], {}, "right", 1),
        (call("time", "{}"), [], {}, "wrong", 0),
        (call("f", '{"a": 1}'), [{"name": "f", "allowed": {"a": [1, 2], "b": ["x", ""]}}], {}, "right", 1),
        (call("f", '{"a": 3}'), [{"name": "f", "allowed": {"a": [1, 2], "b": ["x", ""]}}], {}, "wrong", 0),
        (call("f", '{"b": "x"}'), [{"name": "f", "allowed": {"a": [1, 2], "b": ["x", ""]}}], {}, "wrong", 0),
        (call("f", '{"a": {"x": [1, 2]}}'), [{"name": "f", "arguments": {"a": {"x": [1, 2]}}}], {}, "right", 1),
        ("x", [{"name": "f"}], {}, "error", 0),
        ("x", [{"name": "f", "allowed": {"a": 1}}], {}, "error", 0),
        ("x", {"name": "f", "arguments": {}}, {}, "error", 0),
    ],
)  # fmt: skip
def test_tool_calls(answer, reference, settings, expected, score):
    verdict = verify("tool_calls", answer, reference, settings)
    assert (verdict.status, verdict.score) == (expected, score), verdict


def test_texts_of_tool_calls_are_equal_in_any_form_of_unicode():
    reference = [{"name": "weather", "arguments": {"city": "Orl\u00e9ans"}}]
    assert status("tool_calls", call("weather", '{"city": "Orle\u0301ans"}'), reference) == "right"


def test_tool_call_reasons_name_the_argument():
    assert verify("tool_calls", call("weather", '{"city": "Rom", "days": 5}'), [PARIS]).reason == (
        "call 1: the argument 'city' of weather is 'Rom', not 'Paris'"
    )
    assert verify("tool_calls", call("time", "{}"), [PARIS]).reason == "call 1: it calls 'time', not 'weather'"


def test_tools_give_xml_arguments_their_types():
    answer = "<tool_call>\n<function=f>\n<parameter=x>\n5\n</parameter>\n</function>\n</tool_call>"
    calls = [{"name": "f", "arguments": {"x": 5}}]
    properties = {"type": "object", "properties": {"x": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": properties}}]
    assert status("tool_calls", answer, {"calls": calls, "tools": tools}) == "right"
    assert status("tool_calls", answer, calls) == "wrong"


def test_a_test_that_can_not_be_sent_is_the_reference_s_fault():
    require_isolation()
    assert status("code", "def f(g): return g(1)", {"assertions": ["assert f(lambda x: x) == 1"]}) == "error"


def test_a_call_in_the_thinking_section_is_no_call():
    assert status("tool_calls", "<think>\n" + call("time", "{}") + "\n</think>\n\nNo call.", []) == "right"


def test_what_was_read_is_given_in_a_normal_form():
    pairs = [
        ("number", "It is $1,000.50.", "3", "2001/2"), ("number", "1000.5", "1000.5", "2001/2"), ("choice", "(b)", "C", "B"),
        ("exact", " A  b ", "a b", "A b"), ("number", "none", "3", None),
    ]  # fmt: skip
    assert [verify(name, answer, reference).extracted for name, answer, reference, _ in pairs] == [
        pair[3] for pair in pairs
    ]
    long = [verify("exact", letter * 500, "x").extracted for letter in "aab"]
    assert max(map(len, long)) <= 200
    assert long[0] == long[1] != long[2]
