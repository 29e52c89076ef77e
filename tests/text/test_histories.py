"""Messages as clients of OpenAI's API send and receive them: rendered with nothing lost, or refused by place."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.text import ChatTemplateError, built_in_template, render

openai = pytest.importorskip("openai")
from openai.types import chat  # noqa: E402 - after the line above


def call(arguments: Any) -> list[dict]:
    return [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}]


def received(**fields: Any) -> chat.ChatCompletionMessage:
    """A message as the openai package returns it; people append it to the conversation."""
    return chat.ChatCompletionMessage.model_validate({"role": "assistant", "content": None} | fields)


Form = Callable[[str], Any]
# Each makes a message of a text.
TAKEN: list[Form] = [
    lambda t: chat.ChatCompletionSystemMessageParam(role="system", content=t),
    lambda t: chat.ChatCompletionDeveloperMessageParam(role="developer", content=[{"type": "text", "text": t}]),
    lambda t: chat.ChatCompletionUserMessageParam(role="user", content=t, name="Ann"),
    lambda t: chat.ChatCompletionUserMessageParam(role="user", content=[{"type": "text", "text": t}]),
    lambda t: chat.ChatCompletionAssistantMessageParam(role="assistant", content=t, audio=None, function_call=None),
    lambda t: chat.ChatCompletionAssistantMessageParam(role="assistant", content=[{"type": "text", "text": t}]),
    lambda t: chat.ChatCompletionAssistantMessageParam(role="assistant", content=[{"type": "refusal", "refusal": t}]),
    lambda t: chat.ChatCompletionAssistantMessageParam(role="assistant", content=None, refusal=t),
    lambda t: chat.ChatCompletionAssistantMessageParam(role="assistant", tool_calls=call(f'{{"x":"{t}"}}')),  # type: ignore
    lambda t: {"role": "assistant", "content": t, "tool_calls": call("")},
    lambda t: {"role": "assistant", "content": None, "tool_calls": call({"x": [None, t]})},
    lambda t: received(content=t),
    lambda t: received(tool_calls=call(f'{{"x": "{t}"}}')),
    lambda t: received(refusal=t),
    lambda t: received(content=t, annotations=[], tool_calls=None),
    lambda t: chat.ChatCompletionToolMessageParam(role="tool", content=t, tool_call_id="call_1"),
    lambda t: chat.ChatCompletionToolMessageParam(
        role="tool", content=[{"type": "text", "text": t}], tool_call_id="call_1"
    ),
]
REFUSED: list[Form] = [
    lambda t: {
        "role": "user",
        "content": [{"type": "text", "text": t}, {"type": "image_url", "image_url": {"url": "x"}}],
    },
    lambda t: {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": t, "format": "wav"}}]},
    lambda t: {"role": "user", "content": [{"type": "file", "file": {"file_id": t}}]},
    lambda t: chat.ChatCompletionFunctionMessageParam(role="function", content=t, name="f"),
    lambda t: {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": t}},
    lambda t: received(function_call={"name": "f", "arguments": t}),
    lambda t: {"role": "assistant", "content": None, "audio": {"id": t}},
    lambda t: {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "f", "input": t}}]},
    lambda t: {"role": "assistant", "content": "Yes.", "refusal": t},
    lambda t: {"role": "assistant", "content": None, "tool_calls": call(t)},
    lambda t: {"type": "human", "content": t},
    lambda t: {"role": "user", "content": {"text": t}},
    lambda t: t,
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(TAKEN), min_size=1, max_size=6))
def test_every_text_of_a_history_is_in_the_prompt_once_and_in_order(forms: list[Form]):
    texts = [f"text{place}." for place in range(len(forms))]
    prompt = render(built_in_template(), [form(text) for form, text in zip(forms, texts, strict=True)])
    places = [prompt.index(text) for text in texts]
    assert places == sorted(places)
    assert all(prompt.count(text) == 1 for text in texts)


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from(TAKEN), max_size=3), st.sampled_from(REFUSED), st.lists(st.sampled_from(TAKEN), max_size=2)
)
def test_what_cannot_be_in_a_prompt_is_refused_by_its_place(before: list[Form], refused: Form, after: list[Form]):
    messages = [form("text") for form in (*before, refused, *after)]
    with pytest.raises(ChatTemplateError, match=rf"^messages\[{len(before)}\]"):
        render(built_in_template(), messages)


def thought(text: str) -> dict:
    return {"role": "assistant", "content": "", "reasoning": text}


# More forms of a text, as other clients than OpenAI's have them; each is the last message.
OTHERS: list[Form] = [
    lambda t: {"role": "user", "content": [{"type": "input_text", "text": t}]},
    lambda t: {
        "role": "assistant",
        "content": [{"type": "output_text", "text": t, "annotations": [], "logprobs": None}],
    },
    lambda t: {"role": "user", "content": ["", {"type": "text", "text": t, "cache_control": {"type": "ephemeral"}}]},
    lambda t: {"role": "user", "content": t, "id": "m1", "index": 0, "timestamp": 1.5, "annotations": [], "images": []},
    lambda t: {
        "role": "assistant",
        "content": t,
        "function_call": None,
        "refusal": None,
        "audio": None,
        "tool_calls": [],
    },
    lambda t: {
        "role": "assistant",
        "content": t,
        "refusal": "",
        "reasoning_content": "",
        "prefix": False,
        "partial": None,
    },
    lambda t: {
        "role": "assistant",
        "content": None,
        "tool_calls": [call({"x": t})[0] | {"index": 0, "extra_content": {}}],
    },
    lambda t: {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": t}, "id": "1"}]},
    lambda t: {"role": "assistant", "content": "", "tool_calls": call('"{\\"x\\": \\"' + t + '\\"}"')},
    lambda t: {"role": "assistant", "tool_calls": [{"name": "f", "args": {"x": t}, "id": "1", "type": "tool_call"}]},
    lambda t: {"role": "assistant", "tool_calls": [{"name": "f", "input": {"x": t}, "type": "tool_use", "id": "1"}]},
    lambda t: {"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "arguments": {"x": t}}]},
    lambda t: {"role": "assistant", "tool_calls": [{"function": {"name": "f", "parameters": f'{{"x": "{t}"}}'}}]},
    lambda t: {"role": "assistant", "tool_calls": [{"name": "f", "args": {"x": t}, "arguments": f'{{"x":"{t}"}}'}]},
    lambda t: {"role": "tool", "content": [{"type": "text", "text": t}], "tool_call_id": "1", "status": "success"},
    lambda t: {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": t, "signature": "s"}, {"text": "Yes."}],
    },
    lambda t: {"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": t}]}]},
    lambda t: {
        "role": "assistant",
        "content": [{"type": "reasoning", "reasoning": t}, {"type": "text", "text": "Yes."}],
    },
    lambda t: {
        "role": "assistant",
        "content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": t}]}],
    },
    lambda t: {"role": "assistant", "content": "Yes.", "reasoning_details": [{"type": "reasoning.text", "text": t}]},
    lambda t: {"role": "assistant", "content": "Yes.", "thinking_blocks": [{"type": "thinking", "thinking": t}]},
    lambda t: thought(t) | {"reasoning_content": t, "reasoning_details": [{"type": "reasoning.text", "text": t}]},
    lambda t: thought(t) | {"reasoning_content": "", "thinking": ""},
    lambda t: {"role": "assistant", "tool_calls": call({"x": t}), "content": [{"type": "tool_use", "id": "call_1"}]},
    lambda t: {"role": "assistant", "tool_calls": call({"x": t}), "content": [{"type": "tool_call", "id": "call_1"}]},
]


@pytest.mark.parametrize("form", OTHERS)
def test_texts_in_other_clients_forms_are_in_the_prompt(form: Form):
    prompt = render(built_in_template(), [{"role": "user", "content": "Hi"}, form("text1.")])
    assert prompt.count("text1.") == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "assistant", "tool_calls": [{"name": "f", "given": {"x": 1}}]}, "holds one: there are none, but 'given'"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "args": {"x": 1}, "arguments": "{\"x\": 2}"}]},
         ".tool_calls[0].function.arguments (a call of 'f') must be a JSON object, or a text that holds one: there are "
         "different ones under 'arguments' and 'args'"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "args": "[1]"}]}, "holds one: '[1]' is a list"),
        ({"role": "assistant", "text": "Yes."}, "(assistant) has no content, but 'text'"),
        ({"role": "assistant", "parts": [{"type": "text", "text": "Yes."}]}, "(assistant) has no content, but 'parts'"),
        ({"role": "tool", "tool_call_id": "1", "output": "5"}, "(tool) has no content, but 'output'"),
        ({"role": "user", "content": "x", "images": ["aGk="]}, ".images is not supported: Qwen3 reads only text"),  # Ollama's
        ({"role": "assistant", "content": "x", "prefix": True}, ".prefix is not supported: set 'continue_final_message'"),
        ({"role": "assistant", "content": "x", "partial": True}, ".partial is not supported"),  # DashScope's
        ({"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, "(user) has 'tool_calls', which only"),
        ({"role": "tool", "content": "x", "reasoning_content": "y"}, "(tool) has 'reasoning_content', which only"),
        ({"role": "user", "content": [{"type": "thinking", "thinking": "y"}]}, ".content has thinking, which only"),
        ({"role": "assistant", "content": "x", "reasoning": "y", "thinking": "z"}, "has different thinking under"),
        ({"role": "assistant", "content": ["x", {"type": "thinking", "thinking": "y"}]}, ".content[1] is thinking behind"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}, "in 'tool_calls'"),
        ({"role": "user", "content": [{"type": "tool_result", "content": "5"}]}, "a message with the role 'tool'"),
        ({"role": "user", "content": [{"type": "document", "source": {}}]}, "type 'document'; Qwen3 reads only text"),
        ({"role": "function", "name": "f", "content": "5"}, "has the role 'function'; the roles are system, user, assistant, "
         "tool, developer; use 'tool'"),
        ({"role": "System", "content": "x"}, "; use 'system'"),
        ({"role": "human", "content": "x"}, "; use 'user'"), ({"role": "model", "parts": []}, "; use 'assistant'"),
        ({"role": "assistant", "reasoning_details": "x"}, ".reasoning_details must be a list of objects"),
    ],
)  # fmt: skip
def test_what_a_template_would_leave_out_is_refused_by_its_place(message: dict, words: str):
    with pytest.raises(ChatTemplateError, match=r"^messages\[1\]") as caught:
        render(built_in_template(), [{"role": "user", "content": "Hi"}, message])
    assert words in str(caught.value)


@st.composite
def langchain_histories(draw: st.DrawFn) -> tuple[list, list[str], str | None]:
    """Messages of langchain-core, the texts in them, and what of them no prompt can have."""
    messages = pytest.importorskip("langchain_core.messages")
    texts, history, refused = [], [], None

    def mark() -> str:
        texts.append(f"text{len(texts)}.")
        return texts[-1]

    def content(*kinds: str) -> list | str:
        nonlocal refused
        kind = draw(st.sampled_from(["string", *kinds]))
        if kind == "string":
            return mark()
        parts: list = [{"type": "thinking", "thinking": mark(), "signature": "s"}] if kind == "thinking" else []
        parts += [{"type": "text", "text": mark()}, mark()]
        if kind == "image":
            parts.append({"type": "image", "url": "https://example.org/a.png"})
            refused = refused or "Qwen3 reads only text"
        return parts

    if draw(st.booleans()):
        history.append(messages.SystemMessage(content("parts")))
    last = draw(st.integers(0, 2))
    for turn in range(last + 1):
        history.append(messages.HumanMessage(content("parts", "image"), name=draw(st.sampled_from([None, "Ann"]))))
        count = draw(st.integers(0, 2))
        calls = [{"name": "f", "args": {"x": mark()}, "id": f"{turn}{i}"} for i in range(count)]
        blocks = draw(st.sampled_from(["", "", "tool_use", "tool_call"])) if calls else ""
        inside: list = [{"type": "tool_use", "id": c["id"], "name": "f", "input": c["args"]} for c in calls]
        if blocks == "tool_call":
            inside = [{"type": "tool_call", **c} for c in calls]
        if calls:
            history.append(messages.AIMessage(inside if blocks else "", tool_calls=calls))
            history += [messages.ToolMessage(content("parts"), tool_call_id=c["id"]) for c in calls]
        history.append(messages.AIMessage(content("parts", "thinking" if turn == last else "parts"), id=f"run-{turn}"))
    return history, texts, refused


@settings(max_examples=60)
@given(st.data())
def test_histories_of_langchain(data: st.DataObject):
    """Its message objects as its own converter writes them for OpenAI's API."""
    convert = pytest.importorskip("langchain_core.messages").convert_to_openai_messages
    history, texts, refused = data.draw(langchain_histories())
    body = convert(
        history, include_id=data.draw(st.booleans()), text_format=data.draw(st.sampled_from(["string", "block"]))
    )
    if refused is not None:
        with pytest.raises(ChatTemplateError, match=rf"^messages\[\d+\]\.content.*{refused}"):
            render(built_in_template(), body)
        return
    prompt = render(built_in_template(), body)
    places = [prompt.index(text) for text in texts]
    assert places == sorted(places)
    assert all(prompt.count(text) == 1 for text in texts)


def test_calls_that_langchain_could_not_read_are_refused_by_their_place():
    """`invalid_tool_calls` go into the body as they were written."""
    messages = pytest.importorskip("langchain_core.messages")
    tool = pytest.importorskip("langchain_core.messages.tool")
    broken = tool.invalid_tool_call(name="f", args='{"x": ', id="1", error="no JSON")
    said = messages.AIMessage("", invalid_tool_calls=[broken])
    # As langchain-openai's `_convert_message_to_dict` has them.
    calls = [
        {"type": "function", "id": c["id"], "function": {"name": c["name"], "arguments": c["args"]}}
        for c in said.invalid_tool_calls
    ]
    with pytest.raises(
        ChatTemplateError, match=r"^messages\[1\]\.tool_calls\[0\]\.function\.arguments \(a call of 'f'\)"
    ):
        render(built_in_template(), [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": calls}])
    with pytest.raises(ChatTemplateError, match=r"^messages\[0\] has the role None"):  # not converted
        render(built_in_template(), [said])


FIELDS = st.sampled_from(
    ["role", "content", "name", "tool_calls", "function", "arguments", "args", "id", "type", "text", "thinking", "reasoning",
     "reasoning_content", "reasoning_details", "thinking_blocks", "refusal", "audio", "images", "summary", "prefix"]
)  # fmt: skip
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(
        ["", "x", "user", "assistant", "tool", "text", "thinking", "reasoning", "function", "{}", "[1]", "</think>", "<think>"]
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip
ROLE = st.sampled_from(["system", "user", "assistant", "assistant", "tool", "developer"])


@settings(max_examples=150)
@given(
    st.lists(
        st.builds(lambda role, rest: rest | {"role": role}, ROLE, st.dictionaries(FIELDS, VALUE, max_size=4)),
        max_size=3,
    )
)
def test_any_objects_are_messages_or_are_refused_by_their_place(messages: list[dict]):
    for continued in (False, True):
        said = "messages"
        try:
            render(built_in_template(), messages, continue_final_message=continued)
        except ChatTemplateError as error:
            said = str(error)
        assert "messages" in said
        assert "failed" not in said
