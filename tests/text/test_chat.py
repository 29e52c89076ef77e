"""Chat templates: the built-in one and our renderer against the official templates rendered by transformers."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.text import ChatTemplateError, Tokenizer, built_in_template, parse, render, soft_switch
from tests.helpers.real_tokenizer import official_template

WORDS = [
    "Hello", " ", "\n", "\n\n", "<think>", "</think>", "<think>\nHm.\n</think>\n\n", "/no_think", "/think", "你好",
    "🤔", "<tool_response>", "</tool_response>", "<tool_call>", "<|im_end|>", "{{ x }}", "{% if %}", "<b>&'\"", "\\n",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(WORDS) | st.text(max_size=6), max_size=5).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON, max_size=3)
# Infinity and NaN are no JSON, and refused in a text.
ARGUMENTS_TEXT = ARGUMENTS.map(json.dumps).filter(lambda text: "Infinity" not in text and "NaN" not in text)
FUNCTION = st.fixed_dictionaries({"name": TEXT, "arguments": ARGUMENTS | ARGUMENTS_TEXT})
CALLS = st.lists(
    FUNCTION | FUNCTION.map(lambda f: {"id": "call_1", "type": "function", "function": f}), min_size=1, max_size=3
)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": TEXT, "description": TEXT, "parameters": ARGUMENTS}),
        }
    ),
    max_size=2,
)


def message(role: str, **fields: Any):
    return st.fixed_dictionaries({"role": st.just(role), **fields})


SPACE = st.text("\n ", max_size=3)
THOUGHT = st.builds("{}<think>{}{}{}</think>{}{}".format, SPACE, SPACE, TEXT, SPACE, SPACE, TEXT)


# An answer as a model writes it: one thinking section at most, at the start, and no other tag that ends one.
WRITTEN = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>(?:(?!</think>).)*|(?:(?!</think>).)*", re.DOTALL)


def said_once(message: dict) -> dict:
    """Without what templates read otherwise than we do: thinking under two names, and quoted tags they look into."""
    if message.get("reasoning_content") is not None and message.get("reasoning"):
        message = message | {"reasoning": None}
    is_quoting = message.get("reasoning_content") is None and not WRITTEN.fullmatch(message.get("content") or "")
    return message | {"reasoning_content": ""} if is_quoting and message.get("reasoning") is None else message


ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant")},
    optional={
        "content": st.none() | TEXT | THOUGHT,
        "reasoning_content": st.none() | TEXT,
        "reasoning": st.none() | TEXT,
        "tool_calls": st.none() | CALLS,
    },
).map(said_once)
SYSTEM = message("system", content=TEXT)
TOOL = message("tool", content=TEXT) | message("tool", content=TEXT, tool_call_id=st.just("call_1"))
# A tool result that a client sends as user text counts as one, but only if it is wrapped on both sides.
WRAPS = ["{}", "{}", "<tool_response>\n{}\n</tool_response>", "<tool_response>{}", "{}</tool_response>"]
USER = message("user", content=st.builds(str.format, st.sampled_from(WRAPS), TEXT))
ANYTHING = st.lists(USER | ASSISTANT | TOOL | SYSTEM, min_size=1, max_size=6)
# As conversations go: a question, steps with tools, an answer.
STEPS = st.lists(ASSISTANT | st.builds(lambda a, r: [a, *r], ASSISTANT, st.lists(TOOL | USER, max_size=2)), max_size=3)
FLAT = STEPS.map(lambda steps: [m for step in steps for m in (step if isinstance(step, list) else [step])])
TURNS = st.lists(st.builds(lambda user, steps: [user, *steps], USER, FLAT), min_size=1, max_size=2)
CONVERSATION = st.builds(
    lambda system, turns: system + turns,
    st.lists(SYSTEM, max_size=1),
    ANYTHING | TURNS.map(lambda turns: [m for turn in turns for m in turn]),
)


def theirs(official, template: str, messages, tools=None, **options) -> str:
    return official.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False, **options)


@settings(max_examples=300)
@given(CONVERSATION, st.none() | TOOLS, st.booleans(), st.booleans())
def test_renders_what_the_official_templates_render(
    real: Tokenizer, official, messages: list, tools: list | None, prompt: bool, thinking: bool
):
    """Byte for byte: our built-in template, and the official ones in our renderer, against transformers."""
    options = {"add_generation_prompt": prompt, "enable_thinking": thinking}
    qwen3 = official_template()
    expected = theirs(official, qwen3, messages, tools, **options)
    assert real.chat_template == qwen3
    assert real.apply_chat_template(messages, tools, **options) == expected
    assert render(built_in_template(), messages, tools, **options) == expected
    assert theirs(official, built_in_template(), messages, tools, **options) == expected
    # Without the switch, as transformers calls it when the caller says nothing.
    assert theirs(official, built_in_template(), messages, tools) == theirs(official, qwen3, messages, tools)
    instruct = official_template("qwen3_instruct_2507")
    assert render(instruct, messages, tools, **options) == theirs(official, instruct, messages, tools, **options)
    theirs_ids = official.encode(expected, add_special_tokens=False)
    assert real.encode(expected) == theirs_ids
    if "<|im_end|>" not in json.dumps([messages, tools]):
        assert real.apply_chat_template(messages, tools, **options, tokenize=True) == theirs_ids


def test_what_clients_send(real: Tokenizer):
    """Forms that the templates themselves would choke on or lose."""
    question = {"role": "user", "content": "Weather?"}
    call = {"name": "f", "arguments": {"x": "<é>"}}
    plain = real.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            question,
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
    )
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    parsed_calls = parse('<tool_call>\n{"name": "f", "arguments": {"x": "<é>"}}\n</tool_call>').tool_calls
    for content, calls in (
        ({"content": None}, [{"type": "function", "function": call}]),
        ({}, [{"function": {**call, "arguments": '{"x": "<é>"}'}}]),
        ({"content": []}, list(parsed_calls)),
        ({"content": [""]}, parsed_calls),
    ):
        messages = [
            {"role": "system", "content": parts},
            question,
            {"role": "assistant", **content, "tool_calls": calls, "refusal": None},
        ]
        before = repr(messages)
        assert real.apply_chat_template(messages) == plain
        assert repr(messages) == before, "the caller's messages were changed"
    assert '{"name": "f", "arguments": {"x": "<é>"}}' in plain  # neither HTML-escaped nor \u-escaped
    nothing = [question, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": None}}]}]
    assert '"arguments": {}' in real.apply_chat_template(nothing)
    for field in ("reasoning_content", "reasoning", "thinking"):
        text = real.apply_chat_template([question, {"role": "assistant", field: "Hm.", "content": "Rain."}])
        assert "<think>\nHm.\n</think>\n\nRain.<|im_end|>" in text


def with_call(arguments: Any) -> list[dict]:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


CODER = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
<function={{ call.function.name }}>
{% for name, value in call.function.arguments|items %}<parameter={{ name }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% endfor %}"""


@pytest.mark.parametrize(
    ("arguments", "rendered", "fields"),
    [
        (None, "{}", {}), ("", "{}", {}), (" \n", "{}", {}), ("null", "{}", {}), ({}, "{}", {}), ('""', "{}", {}),
        ("{}", "{}", {}), ('{"x":1.0}', '{"x":1.0}', {"x": "1.0"}), ({"x": 1.0}, '{"x": 1.0}', {"x": "1.0"}),
        ('"{\\"x\\": 1}"', '{"x": 1}', {"x": "1"}),  # encoded twice
        ('{"x": "a\nb"}', '{"x": "a\\nb"}', {"x": "a\nb"}),  # a raw line break, which is not JSON
        ('{"x": null, "y": [1]}', '{"x": null, "y": [1]}', {"x": "null", "y": "[1]"}),
    ],
)  # fmt: skip
def test_arguments_of_calls_in_a_history(arguments: Any, rendered: str, fields: dict):
    """Text stays as it was written, in a template that goes through the arguments it is decoded; nothing is `{}`."""
    text = render(built_in_template(), with_call(arguments))
    assert f'<tool_call>\n{{"name": "f", "arguments": {rendered}}}\n</tool_call>' in text
    parameters = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in fields.items())
    assert f"<tool_call>\n<function=f>\n{parameters}</function>\n</tool_call>" in render(CODER, with_call(arguments))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"x": ', "is not valid JSON"), ("[1]", "is a list"), ("3", "is a number"), ('"text"', "is not valid JSON"),
        ("true", "is true or false"), ("{'x': 1}", "is not valid JSON"), ('{"x": NaN}', "is not valid JSON"),
        ([1], "it is a list"), (3, "it is a number"), ("[" * 10**5, "nested too deeply"), ('"\\"{}\\""', "is a text"),
    ],
)  # fmt: skip
def test_arguments_that_are_no_object_are_refused_by_message_and_call(arguments: Any, reason: str):
    place = r"^messages\[1\]\.tool_calls\[0\]\.function\.arguments \(a call of 'f'\) must be a JSON object"
    for template in (built_in_template(), CODER):
        with pytest.raises(ChatTemplateError, match=f"{place}.*{reason}"):
            render(template, with_call(arguments))


def test_developer_is_system_and_nothing_a_message_says_is_dropped():
    ask = {"role": "user", "content": "Hi"}
    system = render(built_in_template(), [{"role": "system", "content": "Be brief. /no_think"}, ask])
    developer = [{"role": "developer", "content": "Be brief. /no_think"}, ask]
    assert render(built_in_template(), developer) == system
    assert soft_switch(developer) is False
    said = render(built_in_template(), [ask, {"role": "assistant", "content": "No."}, ask])
    for fields in ({"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}):
        assert render(built_in_template(), [ask, {"role": "assistant", **fields}, ask]) == said
    for fields, words in (
        ({"content": "Yes.", "refusal": "No."}, "both content and a refusal"),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "function_call is not supported: give"),
        ({"content": None, "audio": {"id": "a"}}, "audio is not supported"),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "f", "input": "x"}}]}, r"tool_calls\[0\] must be"),
    ):
        with pytest.raises(ChatTemplateError, match=words):
            render(built_in_template(), [ask, {"role": "assistant", **fields}])
    for role in ("function", "critic", "human", 5, None):
        with pytest.raises(ChatTemplateError, match=r"messages\[0\] has the role"):
            render(built_in_template(), [{"role": role, "content": "x"}])


@pytest.mark.parametrize(
    ("content", "thinking", "answer"),
    [
        ("Use `re.sub(r'<think>.*?</think>', '', s)`.", "", None), ("The tag `</think>` ends it.", "", None),
        ("```\n<think>\n</think>\n```", "", None), ("Close it with </think>.\n\nThat is all.", "", None),
        ("<think>\nok\n</think>\n\nUse `</think>`, then `</think>`.", "ok", "Use `</think>`, then `</think>`."),
        ("<think>\nIs `<think>` a tag?\n</think>\n\nYes.", "Is `<think>` a tag?", "Yes."),
        ("ok, `</think>` ends\n</think>\n\nYes.", "ok, `</think>` ends", "Yes."),  # the prompt had opened it
        ("ok\n</think>\n\nYes.", "ok", "Yes."), ("<think>ok</think>Yes.", "ok", "Yes."), ("No tag.", "", None),
    ],
)  # fmt: skip
def test_think_tags_that_an_answer_of_the_history_quotes_stay_in_it(content: str, thinking: str, answer: str | None):
    """Templates look for thinking in the text, and would drop what stands before the last tag."""
    ask, said = {"role": "user", "content": "?"}, {"role": "assistant", "content": content}
    split = {"role": "assistant", "content": content if answer is None else answer, "reasoning_content": thinking}
    for template in (built_in_template(), official_template()):
        for behind in ([], [ask]):
            expected = render(template, [ask, split, *behind])
            assert render(template, [ask, said, *behind]) == expected
            assert split["content"] in expected
            assert behind or thinking in expected
        kept = render(template, [ask, said, ask], preserve_thinking=True)
        assert all(text in kept for text in (split["content"], thinking))
    instruct = official_template("qwen3_instruct_2507")  # which looks for no thinking
    assert content in render(instruct, [ask, said, ask])


def test_thinking_is_kept_only_while_it_matters():
    """The rules in words, so that they stand without the official file."""
    turn = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "reasoning_content": "Easy.", "content": "4"}]
    step = {"role": "assistant", "reasoning_content": "Look.", "tool_calls": [{"name": "f", "arguments": {}}]}
    result = {"role": "tool", "content": "5"}
    text = render(built_in_template(), [*turn, {"role": "user", "content": "3+2?"}, step, result, step, result, result])
    assert "Easy." not in text
    assert text.count("<think>\nLook.\n</think>") == 2
    assert text.count("<|im_start|>user\n<tool_response>") == 2
    assert text.endswith("</tool_response>\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert "<|im_start|>system" not in text
    assert render(built_in_template(), turn[:1], enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")


@settings(max_examples=150)
@given(CONVERSATION, TEXT, st.none() | TEXT, st.none() | TOOLS)
def test_continued_message_keeps_its_text(
    official, messages: list, text: str, reasoning: str | None, tools: list | None
):
    """Whatever the last message says, it stands at the end to the letter; where transformers keeps it, all is equal."""
    last = {"role": "assistant", "content": text}
    if reasoning is not None:
        last["reasoning_content"] = reasoning
    messages = [*messages, last]
    for template in (built_in_template(), official_template("qwen3_instruct_2507")):
        rendered = render(template, messages, tools, continue_final_message=True)
        assert rendered.endswith(text)
        head = rendered.removesuffix(text)
        assert "<|im_start|>assistant\n" in head
        assert not head.endswith("<|im_end|>\n")
        if text and text == text.strip() and "think>" not in text:
            options = {"continue_final_message": True, "add_generation_prompt": False}
            assert rendered == theirs(official, template, messages, tools, **options)


def test_continuing_a_thought(real: Tokenizer, official):
    """Qwen's budget example: a thought cut off, closed by the stop text, and handed back."""
    ask = [{"role": "user", "content": "Why?"}]
    prompt = real.apply_chat_template(ask)

    def continued(**fields: str) -> str:
        messages = [*ask, {"role": "assistant", **fields}]
        assert real.apply_chat_template(messages, continue_final_message=True, add_generation_prompt=False) == (
            real.apply_chat_template(messages, continue_final_message=True)
        )
        return real.apply_chat_template(messages, continue_final_message=True)

    stopped = "<think>\nBecause.\n\nConsidering the limited time...\n</think>\n\n"
    assert continued(content=stopped) == prompt + stopped
    assert continued(content=stopped) == theirs(
        official,
        real.chat_template,
        [*ask, {"role": "assistant", "content": stopped}],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert continued(content="<think>\nBecause") == prompt + "<think>\nBecause"  # transformers writes an empty block
    assert continued(content="Because\n</think>\n\nSo") == prompt + "<think>\nBecause\n</think>\n\nSo"
    assert continued(content="The <think> tag") == prompt + "<think>\n\n</think>\n\nThe <think> tag"  # not a thought
    assert continued(content="\n\nSo") == prompt + "<think>\n\n</think>\n\n\n\nSo"
    assert continued(content="So", reasoning_content="Hm.") == prompt + "<think>\nHm.\n</think>\n\nSo"
    assert continued(content="", reasoning_content="Hm.") == prompt + "<think>\nHm.\n</think>\n\n"
    assert continued(reasoning_content="Hm.\n") == prompt + "<think>\nHm.\n"
    instruct = official_template("qwen3_instruct_2507")
    messages = [*ask, {"role": "assistant", "content": "<think>\nSo"}]
    assert render(instruct, messages, continue_final_message=True).endswith("<|im_start|>assistant\n<think>\nSo")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["Hi"], None),
        (["Hi /no_think"], False),
        (["Hi /no_think", "Now /think."], True),
        (["/think first", "/no_think\nthen /think then /no_think"], False),
        (["你好/no_think"], False),
        (["https://example.com/think and a/think/b and /thinking and </think> and /no_thinking"], None),
        (["/no_think", "<tool_response>\n/think\n</tool_response>"], False),
        ([[{"type": "text", "text": "a /no_"}, {"type": "text", "text": "think"}]], False),
    ],
)
def test_soft_switch(messages: list, expected: bool | None):
    chat = [{"role": "user", "content": content} for content in messages]
    assert soft_switch(chat) is expected
    # Only the user and the system prompt may say it; the system prompt comes first, so the user overrules it.
    others = [{"role": "assistant", "content": "/think"}, {"role": "tool", "content": "/think"}]
    assert soft_switch(chat + others) is expected
    system = {"role": "system", "content": "/no_think"}
    assert soft_switch([system, *chat]) is (False if expected is None else expected)


USER_HI = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("messages", "options", "error"),
    [
        ([], {}, "messages is empty"),
        ("Hi", {}, "messages must be a list.* not a str"),
        ({"role": "user"}, {}, "messages must be a list.* not a dict"),
        (["Hi"], {}, r"messages\[0\] must be an object.* not a str"),
        (
            [USER_HI, {"role": "bot", "content": ""}],
            {},
            r"messages\[1\] has the role 'bot'; the roles are system,",
        ),
        ([{"content": "Hi"}], {}, r"messages\[0\] has the role None"),
        ([{"role": "user"}], {}, r"messages\[0\] \(user\) has no content"),
        ([{"role": "user", "content": 5}], {}, r"messages\[0\]\.content must be a string or a list.* not a int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, r"content\[0\] is of type 'image_url'"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, r"content\[0\] must be a text part"),
        ([{"role": "assistant", "tool_calls": {}}], {}, r"tool_calls must be a list, not a dict"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], {}, r"tool_calls\[0\] must be an object"),
        ([{"role": "assistant", "reasoning_content": 1}], {}, "reasoning_content must be a string"),
        ([{**USER_HI, "name": {1, 2}}], {}, r"messages\[0\]\.name is a set"),
        ([USER_HI], {"tools": "f"}, "tools must be a list"),
        ([USER_HI], {"tools": [print]}, r"tools\[0\] must be a JSON schema"),
        ([USER_HI], {"continue_final_message": True}, r"messages\[0\] is user"),
        (
            [USER_HI, {"role": "assistant", "tool_calls": [{"name": "f"}]}],
            {"continue_final_message": True},
            r"messages\[1\]: it ends in tool calls",
        ),
    ],
)
def test_malformed_conversations_are_named(real: Tokenizer, messages, options: dict, error: str):
    with pytest.raises(ChatTemplateError, match=error):
        real.apply_chat_template(messages, **options)
    if not options:
        with pytest.raises(ChatTemplateError, match=error):
            soft_switch(messages)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% if %}", "not valid Jinja at line 1"),
        ("{{ raise_exception('no tools here') }}", "no tools here"),
        ("{{ messages[7].content + 'x' }}", "failed"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "failed"),
        ("{% set x = namespace(_y=1) %}", "'_y'"),
        ("{% set x = namespace() %}{% set x.__class__ = 1 %}", "__class__"),
        ("{% for i in range(100000000) %}{% endfor %}", "failed"),
    ],
)
def test_bad_and_hostile_templates(template: str, error: str):
    with pytest.raises(ChatTemplateError, match=error):
        render(template, [USER_HI])


def test_template_environment_is_that_of_transformers(official):
    """Block trimming, loop controls, tojson's options, generation blocks, special tokens, strftime_now."""
    template = """
    {% for m in messages %}
        {% if loop.index0 == 2 %}{% break %}{% endif %}
        {% generation %}
        {{- m.content | tojson(indent=1) }}
        {% endgeneration %}
    {% endfor %}
    {{ eos_token }} {{ pad_token }} {{ bos_token is defined }} {{ tools is none }} {{ documents is none }}
    {{ dict(a=1) }} {{ strftime_now('%Y') }} {% set n = namespace(self=2) %}{{ n.self }}
    """
    messages = [{"role": "user", "content": "<é>\n"}] * 4
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert render(template, messages, special_tokens=named) == theirs(
        official, template, messages, add_generation_prompt=True, enable_thinking=True
    )


@pytest.mark.parametrize("name", [None, "qwen3", "qwen3_6"])
def test_thinking_of_earlier_turns_is_kept_on_demand(name):
    """By the template's own variable, or in the turns' text: in the form in which the model wrote it."""
    template = built_in_template() if name is None else official_template(name)
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two", "reasoning_content": "\nfirst\n"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "<think>\nsecond\n</think>\n\nfour"},
        {"role": "user", "content": "five"},
    ]
    kept = render(template, turns, preserve_thinking=True)
    assert "<|im_start|>assistant\n<think>\nfirst\n</think>\n\ntwo<|im_end|>" in kept
    assert "<|im_start|>assistant\n<think>\nsecond\n</think>\n\nfour<|im_end|>" in kept
    for plain in (render(template, turns), render(template, turns, preserve_thinking=False)):
        assert "first" not in plain
        assert "second" not in plain
    if name == "qwen3":
        assert kept == render(built_in_template(), turns, preserve_thinking=True)
    with pytest.raises(ChatTemplateError, match=r"no place for the reasoning of messages\[1\]"):
        render("{{ messages[0].content }}", turns, preserve_thinking=True)
