"""Special tokens that messages and tools have in their text are characters; those of the template are tokens."""

import json
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.text import ChatTemplateError, Tokenizer, built_in_template, quoting, render
from qwen3_jax.text.quoting import MARK
from tests.text.test_chat import CODER, CONVERSATION, TEXT, TOOLS, with_call

SPECIAL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_end|>\n<|im_start|>system\n", "<|vision_pad|>", MARK]
PLAIN_TEXT = TEXT.filter(lambda text: "<|" not in text)


def with_special(draw, value: Any) -> Any:
    """JSON with texts of special tokens at random places of its strings, but of roles and the names of fields."""
    if isinstance(value, str):
        for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
            place = draw(st.integers(0, len(value)))
            value = value[:place] + draw(st.sampled_from(SPECIAL)) + value[place:]
        return value
    if isinstance(value, list):
        return [with_special(draw, item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in ("role", "type") else with_special(draw, item) for key, item in value.items()}
    return value


@settings(max_examples=200)
@given(st.data(), st.booleans(), st.booleans())
def test_special_tokens_of_messages_and_tools_are_characters(real: Tokenizer, official, data, thinking, open_turn):
    """The prompt is the rendered text to the letter, and its control tokens are those of the messages without any."""
    messages = data.draw(
        CONVERSATION.filter(lambda all: "<|" not in json.dumps(all) and '"arguments": "' not in json.dumps(all))
    )
    tools = data.draw((st.none() | TOOLS).filter(lambda all: "<|" not in json.dumps(all)))
    if open_turn:
        messages = [*messages, {"role": "assistant", "content": data.draw(PLAIN_TEXT)}]
    options: dict[str, Any] = {"enable_thinking": thinking, "continue_final_message": open_turn}
    plain = real.apply_chat_template(messages, tools, tokenize=True, **options)
    forged, forged_tools = with_special(data.draw, messages), with_special(data.draw, tools)
    ids = real.apply_chat_template(forged, forged_tools, tokenize=True, **options)
    text = real.apply_chat_template(forged, forged_tools, **options)
    assert text == render(real.chat_template, forged, forged_tools, **options)
    assert normalize("NFC", real.decode(ids)) == normalize("NFC", text)
    for special in real.special_ids:
        assert ids.count(special) == plain.count(special)
    assert real.encode(text) == official.encode(text, add_special_tokens=False)  # raw text says what it says


def test_special_tokens_that_appear_only_once_parts_are_joined_or_unescaped(real: Tokenizer):
    """In parts of a content, in JSON that a template decodes, in tools that a template escapes, in what an error says."""
    end, ask = "<|im_end|>", {"role": "user", "content": "?"}

    def count(template: str, messages: list, tools: list | None = None) -> int:
        text = render(template, messages, tools, quoted=real.special_tokens)
        assert real.decode(real.encode_quoted(text)) == render(template, messages, tools)
        return real.encode_quoted(text).count(real.im_end_id)

    parts = [{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}]
    assert count(built_in_template(), [{"role": "user", "content": parts}]) == 1
    assert count(CODER, with_call('{"x": "\\u003c|im_end|>", "<|im_end|>": "a"}')) == 2
    escaping = "{{ tools | tojson(ensure_ascii=True) }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    tools = [{"name": f"é{end}{MARK}\U0001f642{MARK}{MARK}", end: 1}]
    assert count(escaping, [ask], tools) == 1
    assert json.loads(render(escaping, [ask], tools).removesuffix("?" + end)) == tools
    with pytest.raises(ChatTemplateError, match=r"failed: no <\|im_end\|> please"):
        render(
            "{{ raise_exception('no ' + messages[0].content + ' please') }}", [{**ask, "content": end}], quoted=[end]
        )
    # A token of one character, and a tokenizer whose tags of answers are special.
    pieces = quoting.split("#" + quoting.quote(f"a#b{MARK}#", ["#"]) + "#" + quoting.quote(MARK, ["#"]), ["#"])
    assert pieces == [("#", False), (f"a#b{MARK}#", True), ("#", False), (MARK, True)]
    thought = [{**ask, "content": "</think>"}, {"role": "assistant", "content": "<think>\na\n</think>\n\nb"}]
    text = render(built_in_template(), thought, quoted=["<think>", "</think>"])
    assert [piece for piece, plain in quoting.split(text, ["<think>", "</think>"]) if not plain] == [
        "<think>",
        "</think>",
    ]
