"""Thinking and tool-call parsers: what they take, what they leave alone, and that chunking never matters."""

import json
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwen3_jax.text import AnswerParser, Piece, ThinkingParser, ToolCall, ToolCallParser, parse, render
from tests.helpers.real_tokenizer import official_template

PIECES = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<think", ">", "</", "<", "tool_call>", "\n", "\n\n", " ",
    "Hello", "思考", '{"name": "f", "arguments": {"x": 1}}', '{"name": "f", "arguments": "{}"}', '{"name": ', '"', "\\",
    '{"name": "g", "arguments": {"t": "</tool_call>"}}', '{"name": "h", "arguments": {"t": "<think>"}}', "{}", "}",
    '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "<think>\nWait.\n</think>\n\n", "`", "```\n",
    "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>", "</function>", "</parameter>\n",
    "<function=f>\n", "\n<parameter=x>\n1\n", "\n</function>\n</tool_call>\n",
]  # fmt: skip
ANSWERS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=20)


def merged(events: list) -> list:
    """Neighbouring deltas of a kind joined; calls without their random ids."""
    out: list = []
    for event in events:
        if isinstance(event, ToolCall):
            out.append((event.name, event.arguments))
        elif out and isinstance(out[-1], Piece) and out[-1].kind == event.kind:
            out[-1] = Piece(event.kind, out[-1].text + event.text)
        else:
            assert event.text, "an empty delta"
            out.append(event)
    return out


def run(parser, chunks: list[str]) -> list:
    return merged([event for chunk in chunks for event in parser.feed(chunk)] + parser.finish())


@settings(max_examples=600)
@given(ANSWERS, st.data(), st.booleans(), st.booleans())
def test_chunking_never_matters(text: str, data: st.DataObject, in_thinking: bool, tools: bool):
    """Any cuts, and one character at a time: each parser alone, and both in a row."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for make in (
        lambda: ThinkingParser(in_thinking),
        lambda: ThinkingParser(begun=True),
        lambda: ToolCallParser([{"function": {"name": "f"}}]),
        ToolCallParser,
        lambda: AnswerParser(in_thinking, tools),
    ):
        assert run(make(), chunks) == run(make(), [text]) == run(make(), list(text))
        parser = make()
        events = [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()
        assert all(text.startswith(e.text, e.start) for e in events if isinstance(e, Piece)), (
            "places are those of the text"
        )
    parsed = parse(text, in_thinking, tools)
    whole = run(AnswerParser(in_thinking, tools), [text])
    assert parsed.content == "".join(e.text for e in whole if isinstance(e, Piece) and e.kind == "content")
    assert [(c.name, c.arguments) for c in parsed.tool_calls] == [e for e in whole if not isinstance(e, Piece)]


@pytest.mark.parametrize(
    ("text", "in_thinking", "thinking", "content"),
    [
        ("Just an answer.\n", False, None, "Just an answer.\n"),
        ("<think>\nHm.\n</think>\n\nFour.", False, "Hm.", "Four."),
        ("<think>\n\n</think>\n\nFour.", False, "", "Four."),
        ("\n\n<think>\n\n a\n\nb \n\n\n</think>\n\n\n Four.\n\n", False, " a\n\nb ", " Four.\n\n"),
        ("\n\nNo tag.", False, None, "\n\nNo tag."),
        ("Hm.\n</think>\n\nFour.", True, "Hm.", "Four."),
        ("<think>\nHm.\n</think>\n\nFour.", True, "Hm.", "Four."),  # the tag repeated
        ("Is <think> a tag?</think>Yes.", True, "Is <think> a tag?", "Yes."),
        ("Cut off\n", True, "Cut off\n", ""),
        ("", True, "", ""),
        ("<think>\nCut </thi", False, "Cut </thi", ""),
        # Once the answer has begun, a tag is text that it quotes; so is one right behind the thinking.
        ("<think>a</think>One. <think>\nb\n</think>\n\nTwo.", False, "a", "One. <think>\nb\n</think>\n\nTwo."),
        (
            "<think>\nok\n</think>\n\nUse `re.sub(r'<think>.*?</think>', '', s)`.",
            False,
            "ok",
            "Use `re.sub(r'<think>.*?</think>', '', s)`.",
        ),
        ("<think>\nok\n</think>\n\n<think> opens a thought.", False, "ok", "<think> opens a thought."),
        ("ok\n</think>\n\n`</think>` closes it.\n", True, "ok", "`</think>` closes it.\n"),
        ("The tags are <think> and </think>.\n\nDone.", False, None, "The tags are <think> and </think>.\n\nDone."),
        ("Four.\n</think>\n\nFive.", False, None, "Four.\n</think>\n\nFive."),
        ("</think>\n\nFive.", False, None, "Five."),  # closes what the prompt had closed
        ("a < b <thinking> </thinker>", False, None, "a < b <thinking> </thinker>"),
    ],
)
def test_thinking(text: str, in_thinking: bool, thinking: str | None, content: str):
    parsed = parse(text, in_thinking)
    assert (parsed.thinking, parsed.content, parsed.tool_calls) == (thinking, content, ())


@settings(max_examples=200)
@given(PLAIN, PLAIN, st.lists(st.tuples(st.text(min_size=1, max_size=8), JSON), max_size=3), st.data())
def test_what_qwen3_writes_is_read_back(thinking: str, content: str, values: list, data: st.DataObject):
    """The form of Qwen3's own template: think block, content, calls; arguments with their JSON types, in any layout."""
    calls = [(name, {"value": value, "<think>": "</tool_call>"}) for name, value in values]
    indent, ascii_only = data.draw(st.sampled_from([None, 2])), data.draw(st.booleans())
    text = f"<think>\n{thinking}\n</think>\n\n{content}"
    for i, (name, arguments) in enumerate(calls):
        text += "\n" if content or i else ""
        as_string = data.draw(st.booleans())
        call = {"name": name, "arguments": json.dumps(arguments) if as_string else arguments}
        text += f"<tool_call>\n{json.dumps(call, indent=indent, ensure_ascii=ascii_only)}\n</tool_call>"
    assume("```" not in content)  # opens a block of code, where calls are quoted
    parsed = parse(text)
    assert parsed.thinking == thinking.strip("\n")
    expected = content.lstrip("\n")
    # Spaces are all that is dropped before a call.
    assert parsed.content == (expected.rstrip() if calls else expected)
    assert [(c.name, c.arguments_dict()) for c in parsed.tool_calls] == calls
    assert repr([c.arguments_dict() for c in parsed.tool_calls]) == repr([a for _, a in calls])  # 1 is not 1.0 or True
    assert len({c.id for c in parsed.tool_calls}) == len(calls)
    assert all(c.id.startswith("call_") for c in parsed.tool_calls)


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (f"Let me look. \n\n{CALL}\n{CALL}\n", "Let me look.", ['{"x": 1}', '{"x": 1}']),
        (f"A\n{CALL}\nB", "A\nB", ['{"x": 1}']),
        (f"\n{CALL}\n\nB", "B", ['{"x": 1}']),
        ('<tool_call>{"arguments":{"x":1.0,"y":1e2,"z":"\\u00e9"},"name":"f"}</tool_call>', "",
         ['{"x":1.0,"y":1e2,"z":"\\u00e9"}']),  # the numbers and escapes as they were written
        ('<tool_call>\n{"name": "f"}\n</tool_call>', "", ["{}"]),
        ('<tool_call>\n{"name": "f", "arguments": null}\n</tool_call>', "", ["{}"]),
        ('<tool_call>\n{"name": "f", "arguments": ""}\n</tool_call>', "", ["{}"]),
        ('<tool_call>\n{"name": "f", "arguments": "{\\"x\\": [1]}"}\n</tool_call>', "", ['{"x": [1]}']),
        ('<tool_call>\n{"name": "f", "arguments": {"code": "a\nb"}}\n</tool_call>', "", ['{"code": "a\\nb"}']),
        *[(CALL.replace("arguments", name), "", ['{"x": 1}']) for name in ("parameters", "args", "input")],
        (CALL.replace('"arguments"', '"args": {"x": 2}, "arguments"'), "", ['{"x": 1}']),
        (f"{CALL[:-13]}\n{CALL}", "", ['{"x": 1}', '{"x": 1}']),  # without its end tag
        (f"<tool_call>\n{{oops\n{CALL[:-13]}\n<tool_call>\n{{\n{CALL}", "<tool_call>\n{oops<tool_call>\n{", ['{"x": 1}'] * 2),
        (f"{CALL[:-13]}\n<tool_call>\n{{oops\n</tool_call>", "<tool_call>\n{oops\n</tool_call>", ['{"x": 1}']),
        ('<tool_call>\n[{"name": "f", "arguments": {"x": 1.0}}, {"name": "f"}]\n</tool_call>', "", ['{"x": 1.0}', "{}"]),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n{"name": "f", "arguments": {"x": "],"}}\n</tool_call>', "",
         ["{}", '{"x": "],"}']),
        (CALL[:-5], "", ['{"x": 1}']),  # cut off inside the closing tag
        (CALL.replace("\n</tool_call>", ""), "", ['{"x": 1}']),
        (f"<tool_call>\n{{oops\n{CALL}", "<tool_call>\n{oops", ['{"x": 1}']),  # begun again
        (f'<tool_call>\n{{"name": "f, "arguments": {{}}}}\n</tool_call>\n{CALL}',
         '<tool_call>\n{"name": "f, "arguments": {}}\n</tool_call>', ['{"x": 1}']),
    ],
)  # fmt: skip
def test_tool_calls(text: str, content: str, calls: list[str]):
    parsed = parse(text)
    assert (parsed.content, [call.arguments for call in parsed.tool_calls]) == (content, calls)
    assert all(call.name == "f" and isinstance(call.arguments_dict(), dict) for call in parsed.tool_calls)


@pytest.mark.parametrize(
    "body",
    ['[{"name": "f", "arguments": {}}, 3]', "[]", '{"name": "f", "x": 1}', "", "{", "not json",
     '{"arguments": {}}', '{"name": 5, "arguments": {}}', '{"name": "", "arguments": {}}',
     '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": "x"}', '{"name": "f", "arguments": {"x": NaN}}',
     '["f", {}]', '{"name": "f", "arguments": {}} {}', '{"name": "f", "arguments": {}', '{"name": "f",}',
     '{"name" "f"}', '{"name": "f", "arguments": ' + "[" * 100_000, '{5: "f"}'],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n</tool_call>", "\n</tool_call>\n\nSorry. ", ""])
def test_what_is_no_call_stays_in_the_content(body: str, end: str):
    """Nothing is lost: the same text comes back, spaces and tags included; with tools=False so do good calls."""
    text = f"Look: \n <tool_call>\n{body}{end}"
    assert (parse(text).content, parse(text).tool_calls) == (text, ())
    assert parse(f"{text}{CALL}", tools=False).content == f"{text}{CALL}"


@pytest.mark.parametrize(
    "text",
    [
        f"The form is `{CALL}`, with both tags.",
        f'It says "{CALL}".',
        f"Write this:\n\n```\n{CALL}\n```\n\nThat is all.",
        f"- so:\n  ```xml\n  {CALL}\n  ```\n- or `<tool_call>` alone\n",
        f"Write `x = {CALL}` there.",
        f"Write ``{CALL} `` there.",
        f"> {CALL.replace(chr(10), ' ')}\n",
        f"~~~\n```\n{CALL}\n~~~\n",
        f"````\n```\n{CALL}\n```\n{CALL}\n````\n",
        "`<tool_call>` opens a call and `</tool_call>` closes it.",
        "<tools>, <tool_response>, <|im_start|> and </tools> are tags of the prompt.",
    ],
)
def test_quoted_tags_of_calls_stay_content(text: str):
    """Whole, by characters, and behind thinking; a call that follows is still one."""
    for chunks in ([text], list(text)):
        assert run(AnswerParser(), chunks) == [Piece("content", text)]
    parsed = parse(f"<think>\nok\n</think>\n\n{text}\n{CALL}")
    assert (parsed.content, len(parsed.tool_calls)) == (text.rstrip(), 1)


XML = "<tool_call>\n<function=f>\n{}</function>\n</tool_call>"
SCHEMA = {
    "type": "object",
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "integer"}}}, "Node": {"$ref": "#/$defs/Node"}},
    "properties": {
        "n": {"type": "integer"}, "x": {"type": "number"}, "on": {"type": "boolean"}, "text": {"type": "string"},
        "list": {"type": "array", "items": {"type": "integer"}}, "place": {"$ref": "#/$defs/Place"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "one": {"allOf": [{"type": "integer"}]},
        "both": {"type": ["string", "integer"]}, "kind": {"enum": ["a", "b"]}, "level": {"const": 3}, "any": {},
        "loop": {"$ref": "#/$defs/Node"}, "text_or_null": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
}  # fmt: skip
TYPED = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n", "3", 3), ("n", " 3 ", 3), ("n", "3.0", 3), ("n", "three", "three"), ("n", "3.5", "3.5"), ("x", "3", 3),
        ("x", "1e3", 1000.0), ("x", "inf", "inf"), ("on", "true", True), ("on", "False", False), ("on", "1", "1"),
        ("text", "3", "3"), ("text", " a\n", " a\n"), ("text", "", ""), ("text", "\n\na", "\n\na"),
        ("text", "</tool_call>\n<b>&amp;</b>", "</tool_call>\n<b>&amp;</b>"), ("text", "a</parameter>b", "a</parameter>b"),
        ("text", "<think>x</think>", "<think>x</think>"), ("text", "null", "null"), ("list", "[1, 2]", [1, 2]),
        ("list", "[1, None]", [1, None]), ("place", '{"x": 1}', {"x": 1}), ("place", "{'x': True}", {"x": True}),
        ("maybe", "null", None), ("maybe", "4", 4), ("one", "5", 5), ("both", "6", 6), ("both", "six", "six"),
        ("kind", "a", "a"), ("level", "3", 3), ("any", "7", "7"), ("unknown", "7", "7"), ("loop", "8", "8"),
        ("text_or_null", "null", None), ("text_or_null", "9", "9"),
    ],
)  # fmt: skip
def test_arguments_of_xml_calls_have_the_types_of_the_schema(name: str, text: str, value: object):
    """Qwen3-Coder's form, whole and by characters."""
    call = XML.format(f"<parameter={name}>\n{text}\n</parameter>\n")
    for chunks in ([call], list(call)):
        ((called, arguments),) = run(AnswerParser(tools=TYPED), chunks)
        assert called == "f"
        assert repr(json.loads(arguments)) == repr({name: value})
    assert parse(call).tool_calls[0].arguments_dict() == {name: text}  # without a schema they are texts


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string", "nullable": True}, "null", None), ({"type": "integer", "nullable": True}, "null", None),
        ({"type": "int"}, "3", 3), ({"type": "dict"}, '{"a": 1}', {"a": 1}), ({"type": "STRING"}, "3", "3"),
        ({"$ref": "#/$defs/Box%5Bint%5D"}, '{"a": 1}', {"a": 1}), ({"$ref": "#/properties/two/anyOf/0"}, "3", 3),
        ({"$ref": "#whole"}, "3", 3), ({"$ref": "#/nowhere"}, "3", "3"), ({"enum": [1, 2, "a"]}, "2", 2),
        ({"enum": [1, 2, "a"]}, "a", "a"), ({"const": None}, "null", None), ({"prefixItems": [{}]}, "[1]", [1]),
        ({"properties": {"a": {}}}, "{'a': None}", {"a": None}), (True, "3", "3"), ({"type": "array"}, "a, b", "a, b"),
        ({"oneOf": [{"type": "boolean"}, {"type": "number"}]}, "1.5", 1.5), ({"type": "integer"}, "12345678901234567890",
         12345678901234567890),
    ],
)  # fmt: skip
def test_types_in_the_spellings_of_generators(schema: object, text: str, value: object):
    """Of a property, behind references, of a part of the parameters, and of any further property."""
    defs = {"Box[int]": {"type": "object"}, "W": {"$anchor": "whole", "type": "integer"}}
    two = {"two": {"anyOf": [{"type": "integer"}]}}
    for parameters in (
        {"type": "object", "properties": {"x": schema, **two}},
        {"allOf": [{"type": "object", "properties": {"x": schema}}, {"$ref": "#/$defs/No"}], "properties": two},
        {"properties": two, "additionalProperties": schema},
        {"properties": two, "patternProperties": {"^x": schema}, "additionalProperties": False},
    ):
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters | {"$defs": defs}}}]
        call = parse(XML.format(f"<parameter=x>\n{text}\n</parameter>\n"), tools=tools).tool_calls[0]
        assert repr(call.arguments_dict()) == repr({"x": value})


TWO = XML.format("<parameter=a>\n1\n</parameter>\n<parameter=b>\nx\ny\n</parameter>\n")
BARE = TWO.removeprefix("<tool_call>\n")
NAMED = [
    {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "b": {}}}}}
]


def test_xml_calls_among_text():
    parsed = parse(f"<think>\nok\n</think>\n\nLet me look.\n\n{TWO}\n{XML.format('')}")
    assert (parsed.thinking, parsed.content) == ("ok", "Let me look.")
    assert [call.arguments_dict() for call in parsed.tool_calls] == [{"a": "1", "b": "x\ny"}, {}]
    assert parse(TWO[: -len("\n</tool_call>")]).tool_calls[0].name == "f"  # cut off behind the call
    for text in (TWO[:-30], TWO.replace("=b>", "=a>"), XML.format("and text\n"), f"`{BARE}`", f"```\n{BARE}\n```"):
        for tools in (True, NAMED):
            assert (parse(text, tools=tools).content, parse(text, tools=tools).tool_calls) == (text, ())
    assert parse(BARE).content == BARE  # without tools their names are not known


WHOLE = [{"a": 1, "b": "x\ny"}]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [  # what Qwen3-Coder leaves out, and several calls in one block
        (TWO.replace("</parameter>\n", ""), "", WHOLE),
        (TWO.replace("1\n</parameter>\n", "1\n"), "", WHOLE),
        (TWO.replace("y\n</parameter>\n", "y\n"), "", WHOLE),
        (TWO.replace("</function>\n", ""), "", WHOLE),
        (TWO.replace("</parameter>\n</function>\n", ""), "", WHOLE),
        (TWO.replace("\n</tool_call>", ""), "", WHOLE),
        (f"Look.\n{TWO.replace('</parameter>', '').replace('</function>', '')}\n{TWO}", "Look.", None),
        (BARE, "", WHOLE),
        (f"Let me look.\n\n{BARE}\n", "Let me look.", WHOLE),
        (BARE.replace("\n</tool_call>", ""), "", WHOLE),
        (BARE.replace("\n</tool_call>", "\n\nDone."), "Done.", WHOLE),
        (BARE.replace("\n</tool_call>", "\n") + TWO, "", WHOLE * 2),
        (f"{BARE}\n{BARE}", "", WHOLE * 2),
        (TWO.replace("</function>", "</function>\n<function=f>\n</function>"), "", [*WHOLE, {}]),
        ("<tool_call><function=f><parameter=a>1</parameter><parameter=b>x\ny</parameter></function></tool_call>", "", WHOLE),
        (TWO.replace("x\ny", "<tool_call>\n<parameter=c>\n</tool_call>"), "",
         [{"a": 1, "b": "<tool_call>\n<parameter=c>\n</tool_call>"}]),  # an argument about calls
        (TWO.replace("x\ny", "def f():\n    return '</think>'\n"), "", [{"a": 1, "b": "def f():\n    return '</think>'\n"}]),
        (TWO.replace("=f>", "='f'>").replace("=a>", '="a">'), "", WHOLE),
        ("Call <function=f> with a number.", "Call <function=f> with a number.", []),
        ("Write <function=f>\n</function> for that.", "Write <function=f>\n</function> for that.", []),
        ("<function=g>\n</function>", "<function=g>\n</function>", []),  # no tool of this name
    ],
)  # fmt: skip
def test_xml_calls_with_tags_left_out(text: str, content: str, calls: list | None):
    """Whole, by characters, and behind thinking."""
    for chunks in ([text], list(text)):
        events = run(AnswerParser(tools=NAMED), chunks)
        assert "".join(e.text for e in events if isinstance(e, Piece)) == content
        made = [json.loads(arguments) for _, arguments in (e for e in events if not isinstance(e, Piece))]
        assert made == calls if calls is not None else made[-1:] == WHOLE
    parsed = parse(f"<think>\nok\n</think>\n\n{text}", tools=NAMED)
    assert (parsed.thinking, parsed.content) == ("ok", content)


TYPES = {
    "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["\n", " a\n\n", "null", "3", "<b>"]),
    "integer": st.integers(), "number": st.floats(allow_nan=False, allow_infinity=False), "boolean": st.booleans(),
    "null": st.none(), "array": st.lists(JSON, max_size=2), "object": st.dictionaries(st.text(max_size=4), JSON, max_size=2),
}  # fmt: skip


@settings(max_examples=150)
@given(st.data())
def test_what_a_template_in_xml_writes_is_read_back(data: st.DataObject):
    """Arguments of a call in a history of Qwen3.5's template, under the types of their schema."""
    names = [f"a{place}" for place in range(data.draw(st.integers(0, 4)))]
    types = {name: data.draw(st.sampled_from(sorted(TYPES))) for name in names}
    arguments = {name: data.draw(TYPES[kind]) for name, kind in types.items()}
    properties = {name: {"type": kind} for name, kind in types.items()}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]
    call = {"name": "f", "arguments": data.draw(st.sampled_from([dict, json.dumps]))(arguments)}
    ask = {"role": "user", "content": "?"}
    said = {"role": "assistant", "content": "Look.", "reasoning_content": "Hm.", "tool_calls": [call, call]}
    text = render(official_template("qwen3_5_think"), [ask, said], add_generation_prompt=False)
    parsed = parse(text.partition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n"), tools=tools)
    assert (parsed.thinking, parsed.content, len(parsed.tool_calls)) == ("Hm.", "Look.", 2)
    for each in parsed.tool_calls:
        assert repr(each.arguments_dict()) == repr(arguments)


def test_an_answer_that_the_prompt_has_begun_has_no_thinking():
    for text in ("<think> is a tag.", "</think> closes it.", "\n\nSo <think>x</think>."):
        for chunks in ([text], list(text)):
            assert run(AnswerParser(begun=True), chunks) == [Piece("content", text)]
            assert not AnswerParser(begun=True).seen_thinking


def test_think_tags_inside_a_call_are_arguments():
    """A coding agent writes about templates."""
    text = '<tool_call>\n{"name": "write", "arguments": {"text": "<think>\\n</think>"}}\n</tool_call>'
    assert parse(text).tool_calls[0].arguments_dict() == {"text": "<think>\n</think>"}
    assert parse(text).thinking is parse(text, tools=False).thinking is None
    assert parse(text, tools=False).content == text
    inside = parse(f"<think>\nI could call {CALL}\n</think>\n\nNo.")
    assert (inside.content, inside.tool_calls) == ("No.", ())


def test_text_is_given_out_as_soon_as_it_is_certain():
    """Only what may become a tag, or what a tag may take, waits."""
    parser = AnswerParser()
    assert parser.feed("<thi") == []
    assert parser.feed("nk>\nLet") == [Piece("thinking", "Let")]
    assert parser.feed(" me\n") == [Piece("thinking", " me")]
    assert parser.feed("see</") == [Piece("thinking", "\nsee")]
    assert parser.feed("b>") == [Piece("thinking", "</b>")]
    assert parser.feed("</think>\n\n4 <") == [Piece("content", "4")]
    assert parser.feed(" 5") == [Piece("content", " < 5")]
    assert parser.feed(CALL[:-1]) == []
    (call,) = parser.feed(">")
    assert isinstance(call, ToolCall)
    assert parser.finish() == []


@pytest.mark.parametrize("unit", ["\n", " ", "<", "</tool_call>", "<tool_call>", "<think>", '"', "\\", "x"])
@pytest.mark.parametrize("head", ["", "<think>\nx", '<tool_call>\n{"name": "'])
def test_cost_is_linear(head: str, unit: str):
    """A model stuck on one token: 20,000 pieces, fed one by one."""
    start = time.process_time()
    parser = AnswerParser()
    for _ in parser.feed(head):
        pass
    for _ in range(20_000):
        parser.feed(unit)
    parser.finish()
    assert time.process_time() - start < 3


def test_types_are_found_in_time_whatever_the_schema_is():
    twice = {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}, {"type": "integer"}]}
    bad = {"$id": "http://[", "$ref": "http://[#a"}
    for schema in (
        twice,
        {"$ref": "#/$defs/A"},
        {"$ref": "#/properties/x"},
        {"$ref": f"#/{'9' * 5000}"},
        bad,
        [],
        5,
        {"type": [5]},
    ):
        parameters = {"properties": {"x": schema}, "patternProperties": {"(x+)+$": {}}, "$defs": {"A": twice}, **twice}
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        start = time.process_time()
        assert parse(XML.format("<parameter=x>\n7\n</parameter>\n"), tools=tools).tool_calls
        assert time.process_time() - start < 1
