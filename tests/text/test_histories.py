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
