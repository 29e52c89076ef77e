"""Bodies of the agents' APIs as conversations: item by item, block by block, field by field; nothing is lost."""

import json

import anthropic.types as theirs
import pytest
from anthropic.types import message_count_tokens_params as count_params
from anthropic.types import message_create_params as message_params
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import responses
from openai.types.responses import response_create_params as response_params
from openai.types.responses import response_input_item_param as item_params

from qwen3_jax.errors import RequestError
from qwen3_jax.serving.common import Defaults
from qwen3_jax.serving.fields import COUNTS, IGNORED, MESSAGES, REFUSED, RESPONSES
from qwen3_jax.serving.messages_body import CountTokensRequest, MessagesRequest
from qwen3_jax.serving.protocol import ChatRequest
from qwen3_jax.serving.replay import packed, unpacked
from qwen3_jax.serving.responses_body import ResponsesRequest
from tests.helpers import tiny_models
from tests.helpers.captured_server import Captured, check_place
from tests.helpers.client_types import JSON, WORD, bodies, values, words

TOK = tiny_models.tokenizer()
HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
FAST = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def call(number: str, name: str = "f", arguments="{}") -> dict:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(number: str, text: str) -> dict:
    return {"role": "tool", "tool_call_id": number, "content": text}


def asked(body: dict) -> dict:
    """A body of either API by its fields."""
    return (MessagesRequest(max_tokens=9, **body) if "messages" in body else ResponsesRequest(**body)).chat()


@pytest.fixture(scope="module")
def captured() -> Captured:
    return Captured()


# ---- conversations -----------------------------------------------------------------------------------------------------

REASONING = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "5"}
PARTS = [{"type": "output_text", "text": "It is ", "annotations": []}, {"type": "output_text", "text": "5"}]
TEXT = {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": PARTS}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("hi", [HI]),
        ([HI], [HI]),
        ([{"role": "developer", "content": "x"}, HI], [{"role": "developer", "content": "x"}, HI]),
        ([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
         [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]),
        # One answer is one turn, whatever its items are.
        ([HI, REASONING, TEXT, CALL, OUTPUT],
         [HI, {"role": "assistant", "reasoning_content": "hm", "content": PARTS, "tool_calls": [call("c1")]},
          result("c1", "5")]),
        ([HI, CALL, CALL | {"call_id": "c2"}, OUTPUT, OUTPUT | {"call_id": "c2"}, TEXT],
         [HI, {"role": "assistant", "tool_calls": [call("c1"), call("c2")]}, result("c1", "5"), result("c2", "5"),
          {"role": "assistant", "content": PARTS}]),
        ([HI, CALL, TEXT], [HI, {"role": "assistant", "tool_calls": [call("c1")], "content": PARTS}]),
        ([HI, TEXT, {"role": "assistant", "content": "!"}],
         [HI, {"role": "assistant", "content": PARTS}, {"role": "assistant", "content": ["!"]}]),
        ([HI, TEXT, REASONING, CALL],
         [HI, {"role": "assistant", "content": PARTS},
          {"role": "assistant", "reasoning_content": "hm", "tool_calls": [call("c1")]}]),
        ([HI, REASONING, REASONING], [HI, {"role": "assistant", "reasoning_content": "hm\n\nhm"}]),
        # What clients return of a reasoning item: all of it, the opaque field, or the summary.
        ([HI, {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": packed("hé")}],
         [HI, {"role": "assistant", "reasoning_content": "hé"}]),
        ([HI, {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}],
               "encrypted_content": "gAAA"}],
         [HI, {"role": "assistant", "reasoning_content": "s"}]),
        ([HI, CALL | {"namespace": "files", "name": "read"}],
         [HI, {"role": "assistant", "tool_calls": [call("c1", "files__read")]}]),
        ([HI, CALL, OUTPUT | {"output": [{"type": "input_text", "text": "5"}]}],
         [HI, {"role": "assistant", "tool_calls": [call("c1")]}, result("c1", [{"type": "input_text", "text": "5"}])]),
    ],
    ids=lambda value: json.dumps(value)[:70],
)  # fmt: skip
def test_items_are_turns(items, messages):
    assert asked({"input": items}).messages == messages
    assert asked({"input": items, "instructions": "Be brief."}).messages == [
        {"role": "system", "content": "Be brief."},
        *messages,
    ]


THINKING = {"type": "thinking", "thinking": "hm", "signature": "unsigned"}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "5"}
PARAGRAPHS = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([HI], [HI]),
        ([{"role": "user", "content": PARAGRAPHS}], [{"role": "user", "content": "a\n\nb"}]),
        ([{"role": "system", "content": PARAGRAPHS}], [{"role": "system", "content": "a\n\nb"}]),
        ([HI, {"role": "assistant", "content": [THINKING, *PARAGRAPHS, USE]}, {"role": "user", "content": [RESULT]}],
         [HI, {"role": "assistant", "reasoning_content": "hm", "content": "ab", "tool_calls": [call("c1", "f", {"x": 1})]},
          result("c1", "5")]),
        ([HI, {"role": "assistant", "content": [USE]},
          {"role": "user", "content": [RESULT, {**RESULT, "content": PARAGRAPHS, "is_error": True}, *PARAGRAPHS]}],
         [HI, {"role": "assistant", "content": "", "tool_calls": [call("c1", "f", {"x": 1})]}, result("c1", "5"),
          result("c1", "Error: a\n\nb"), {"role": "user", "content": "a\n\nb"}]),
        ([HI, {"role": "assistant", "content": [USE]},
          {"role": "user", "content": [PARAGRAPHS[0], {**RESULT, "content": None}]}],
         [HI, {"role": "assistant", "content": "", "tool_calls": [call("c1", "f", {"x": 1})]}, {"role": "user", "content": "a"},
          result("c1", "")]),
        ([HI, {"role": "assistant", "content": [{**THINKING, "thinking": "", "signature": packed("hé")}]}, HI],
         [HI, {"role": "assistant", "content": "", "reasoning_content": "hé"}, HI]),
    ],
    ids=lambda value: json.dumps(value)[:70],
)  # fmt: skip
def test_blocks_are_messages(turns, messages):
    assert asked({"messages": turns}).messages == messages
    for system in ("Be brief.", [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]):
        expected = [{"role": "system", "content": "Be brief."}, *messages]
        assert asked({"messages": turns, "system": system}).messages == expected
        assert CountTokensRequest(messages=turns, system=system).chat().messages == expected


def test_the_billing_block_of_claude_code_is_left_out():
    """It differs in each request, in front of everything that is cached."""
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=1a2b;"}
    said = {"role": "system", "content": "Be brief."}
    assert asked({"messages": [HI], "system": [billing, {"type": "text", "text": "Be brief."}]}).messages == [said, HI]
    assert asked({"messages": [HI], "system": [billing]}).messages == [HI]
    assert asked({"messages": [HI], "system": []}).messages == [HI]


def test_a_last_message_of_the_assistant_is_continued():
    body = {"messages": [HI, {"role": "assistant", "content": "It is"}]}
    assert asked(body).continue_final_message
    with pytest.raises(RequestError, match=r"^messages\[1\] calls a tool; a message of the user with its tool_result"):
        asked({"messages": [HI, {"role": "assistant", "content": [USE]}]})


def test_tools_are_functions():
    """In the order of their fields; what says how to offer or stream them is not shown."""
    function = {"description": "d", "name": "f", "parameters": SCHEMA}
    flat = {"type": "function", "strict": True, **function, "defer_loading": False, "async": None}
    shown = asked({"input": "hi", "tools": [flat]}).shown_tools
    assert json.dumps(shown) == json.dumps([{"type": "function", "function": function}])
    tool = {"description": "d", "name": "f", "input_schema": SCHEMA, "type": "custom"}
    tool |= {"cache_control": {"type": "ephemeral"}, "eager_input_streaming": True, "strict": True}
    assert json.dumps(asked({"messages": [HI], "tools": [tool]}).shown_tools) == json.dumps(shown)
    space = {"type": "namespace", "name": "files", "description": "d", "tools": [flat]}
    body = ResponsesRequest(input="hi", tools=[space, flat])
    assert [tool["function"]["name"] for tool in body.chat().shown_tools] == ["files__f", "f"]
    assert body.functions.named("files__f") == {"namespace": "files", "name": "f"}
    assert body.functions.named("f") == {"name": "f"}


def test_carried_thinking_comes_back():
    assert unpacked(packed("a\n\0é\U0001f600")) == "a\n\0é\U0001f600"
    assert [unpacked(text) for text in ("gAAAAB", "qwen3-jax:\xe9", "qwen3-jax:_", "")] == [None] * 4


# ---- fields ------------------------------------------------------------------------------------------------------------

FORMAT = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
TOOL = {"type": "function", "name": "f", "parameters": SCHEMA}
USABLE = {"name": "f", "input_schema": SCHEMA}
SHOWN = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({"input": "hi", "max_output_tokens": 5}, {"max_tokens": 5}),
        ({"input": "hi", "temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 1, "stop": ["a"]},
         {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "seed": 1, "stop": ["a"]}),
        ({"input": "hi", "reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        ({"input": "hi", "reasoning": {"max_tokens": 7}}, {"thinking_budget": 7}),
        ({"input": "hi", "reasoning": {"effort": "none", "mode": "standard"}}, {"reasoning_effort": "none"}),
        ({"input": "hi", "reasoning": {"context": "all_turns"}}, {"preserve_thinking": True}),
        ({"input": "hi", "reasoning": {"context": "auto", "generate_summary": "detailed"}}, {}),
        ({"input": "hi", "text": {"format": FORMAT, "verbosity": "low"}},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        ({"input": "hi", "text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"input": "hi", "text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        ({"input": "hi", "tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
         {"tools": [SHOWN], "tool_choice": NAMED, "parallel_tool_calls": False}),
        ({"input": "hi", "tools": [TOOL], "tool_choice": "required"}, {"tools": [SHOWN], "tool_choice": "required"}),
        ({"input": "hi", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {}),
        ({"input": "hi", "store": True, "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"], "user": "me",
          "prompt_cache_key": "k", "client_metadata": {"a": "b"}, "truncation": "disabled", "background": False,
          "previous_response_id": None, "service_tier": "auto", "max_tool_calls": 3, "context_management": [],
          "stream_options": {"include_obfuscation": False}}, {}),
        ({"messages": [HI], "thinking": {"type": "enabled", "budget_tokens": 7}}, {"thinking_budget": 7}),
        ({"messages": [HI], "thinking": {"type": "enabled", "budget_tokens": 0}}, {"enable_thinking": False}),
        ({"messages": [HI], "thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"messages": [HI], "thinking": {"type": "adaptive", "budget_tokens": 0, "display": "summarized"}}, {}),
        ({"messages": [HI], "thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"messages": [HI], "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
        ({"messages": [HI], "stop_sequences": ["a"], "temperature": 1.0, "top_k": 3},
         {"stop": ["a"], "temperature": 1.0, "top_k": 3}),
        ({"messages": [HI], "tools": [USABLE], "tool_choice": {"type": "auto"}}, {"tools": [SHOWN]}),
        ({"messages": [HI], "tools": [USABLE], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
         {"tools": [SHOWN], "tool_choice": "required", "parallel_tool_calls": False}),
        ({"messages": [HI], "tools": [USABLE], "tool_choice": {"type": "tool", "name": "f"}},
         {"tools": [SHOWN], "tool_choice": NAMED}),
        ({"messages": [HI], "tools": [USABLE], "tool_choice": {"type": "none"}}, {}),
        ({"messages": [HI], "metadata": {"user_id": "me"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"},
          "speed": "standard", "mcp_servers": [], "diagnostics": {"previous_message_id": None}, "container": None,
          "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}, {}),
    ],
    ids=lambda value: json.dumps(value)[:90],
)  # fmt: skip
def test_every_field_takes_effect(body, chat):
    """As its equal of /v1/chat/completions does; a budget of Anthropic's is a cap besides."""
    is_message = "messages" in body
    limit = {"max_tokens": 9} if is_message else {}
    got = asked(body)
    expected = ChatRequest(messages=[HI], **(limit | chat))
    options, plain = (each.options(None, Defaults()) for each in (got, expected))
    if "thinking_budget" in chat and is_message:
        assert options.fit_budget
        assert options.enable_thinking
    names = set(vars(plain)) - ({"fit_budget", "enable_thinking"} if is_message else set())
    assert {name: getattr(options, name) for name in names} == {name: getattr(plain, name) for name in names}
    for name in ("response_format", "forced_tools", "optional_tools"):
        assert getattr(got, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"input": "hi", "previous_response_id": "r"},
         "the field 'previous_response_id' is not supported: this server keeps no "
         "answers; send all the items so far in 'input'."),
        ({"input": "hi", "conversation": "c"},
         "the field 'conversation' is not supported: this server keeps no answers; send all "
         "the items so far in 'input'."),
        ({"input": "hi", "background": True}, "the field 'background' is not supported: answers are not kept."),
        ({"input": "hi", "truncation": "auto"}, "the field 'truncation': input should be 'disabled'."),
        ({"input": "hi", "max_tokens": 3}, "the field 'max_tokens' is not supported: use 'max_output_tokens'."),
        ({"input": "hi", "num_predict": 3}, "the field 'num_predict' is not supported: use 'max_output_tokens'."),
        ({"input": "hi", "grammar": "x"}, "the field 'grammar' is not supported: use 'text.format'."),
        ({"input": "hi", "max_completion_tokens": 3}, "the field 'max_completion_tokens' is not supported: use "
         "'max_output_tokens'."),
        ({"input": "hi", "instruction": "x"}, "there is no field 'instruction'. Did you mean 'instructions'?"),
        ({"input": []}, "the field 'input': input should be a valid string, or list should have at least 1 item after "
         "validation, not 0."),
        ({"input": "hi", "tools": [{"type": "web_search"}]},
         "tools[0] is of type 'web_search': this server runs no tools of its "
         "own; give a function that your program runs, or leave it out."),
        ({"input": "hi", "tools": [{"type": "custom", "name": "p"}]},
         "tools[0] is of type 'custom': Qwen3's calls have arguments, "
         "not free text; give a function with a parameter for the text."),
        ({"input": "hi", "tools": [SHOWN]}, "tools[0] is a tool of /v1/chat/completions; the form here is {'type': 'function', "
         "'name', 'description', 'parameters'}."),
        ({"input": "hi", "tools": [TOOL, {**TOOL, "name": ""}]}, "tools[1].name: string should have at least 1 character."),
        ({"input": "hi", "tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading is not supported; leave it out."),
        ({"input": "hi", "tool_choice": {"type": "web_search_preview"}}, "the field 'tool_choice': it must be 'auto', 'none', "
         "'required' or {'type': 'function', 'name': NAME}; to allow some tools only, give these in 'tools'."),
        ({"input": "hi", "tool_choice": "required"}, "'tool_choice' is 'required', but there are no tools."),
        ({"input": "hi", "reasoning": {"effort": "huge"}},
         "'reasoning.effort' is 'huge'; it must be one of ['none', 'minimal', "
         "'low', 'medium', 'high', 'xhigh', 'max']."),
        ({"input": [{"type": "item_reference", "id": "m"}]},
         "input[0] is of type 'item_reference': this server keeps no items; "
         "send the item itself."),
        ({"input": [{"type": "web_search_call", "id": "w"}]},
         "input[0] is of type 'web_search_call': the items that are read are "
         "message, reasoning, function_call and function_call_output."),
        ({"input": [HI, {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[1].content[0] is of type 'input_image'; Qwen3 reads only text."),
        ({"input": [{"role": "tool", "content": "5"}]}, "input[0] has the role 'tool'; the roles are user, system, developer, "
         "assistant; the result of a tool is an item of type 'function_call_output'."),
        ({"input": [OUTPUT]}, "input[0] is the output of the call 'c1', which is not among the items before it; send its "
         "function_call too."),
        ({"input": [CALL, OUTPUT | {"output": [{"type": "input_file", "file_id": "x"}]}]},
         "input[1].output[0] is of type 'input_file'; Qwen3 reads only text."),
        ({"input": [CALL | {"arguments": "[1]"}]},
         "input[0].arguments (a call of 'f') must be a JSON object, or a text that holds "
         "one: '[1]' is a list."),
        ({"input": [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "gAAA"}]},
         "input[0].encrypted_content comes from another server, which alone can read it; leave the item out."),
        ({"input": [REASONING | {"content": "hm"}]}, "input[0].content must be a list of texts."),
        ({"messages": [HI], "max_tokens": None}, "the field 'max_tokens': field required."),
        ({"messages": [HI], "stop": ["a"]}, "the field 'stop' is not supported: use 'stop_sequences'."),
        ({"messages": [HI], "stop_regex": "a"}, "the field 'stop_regex' is not supported: use 'stop_sequences'."),
        ({"messages": [HI], "container": "c"}, "the field 'container' is not supported: this server runs no code."),
        ({"messages": [HI], "thinking": {"type": "enabled"}}, "the field 'thinking': the type 'enabled' needs 'budget_tokens'; "
         "'adaptive' has no budget."),
        ({"messages": [HI], "output_config": {"effort": "huge"}},
         "'output_config.effort' is 'huge'; it must be one of ['none', "
         "'minimal', 'low', 'medium', 'high', 'xhigh', 'max']."),
        ({"messages": [HI], "tool_choice": {"type": "any"}}, "'tool_choice' is of type 'any', but there are no tools."),
        ({"messages": [HI], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0] is of type "
         "'web_search_20250305': this server runs no tools of its own; give a tool that your program runs, with an "
         "'input_schema', or leave it out."),
        ({"messages": [HI], "tools": [SHOWN | {"type": None}]},
         "tools[0] has no 'input_schema'; the form of a tool is {'name', "
         "'description', 'input_schema'}."),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "source": {}}]}]},
         "messages[0].content[1] is of type 'image': Qwen3 reads only text."),
        ({"messages": [HI, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]},
         "messages[1].content[0] is of type 'redacted_thinking': only Anthropic can read it; leave it out."),
        ({"messages": [HI, {"role": "assistant", "content": [*PARAGRAPHS, THINKING]}]},
         "messages[1].content[2] is thinking behind the text or a call of its answer; Qwen3 thinks only before them."),
        ({"messages": [{"role": "user", "content": [{**RESULT, "content": [{"type": "document"}]}]}]},
         "messages[0].content[0].content[0] is of type 'document': Qwen3 reads only text."),
        ({"messages": [{"role": "tool", "content": "5"}]}, "messages[0] has the role 'tool'; the roles are user, assistant, "
         "system."),
        ({"messages": [HI], "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
         "the field 'context_management': edits[0] is of type 'clear_tool_uses_20250919': this server clears nothing; shorten "
         "'messages'."),
    ],
    ids=lambda value: json.dumps(value)[:90],
)  # fmt: skip
def test_what_is_refused_is_named(captured, body, text):
    is_message = "messages" in body
    limit = {"max_tokens": 9} if is_message else {}
    error = captured.ask("/v1/messages" if is_message else "/v1/responses", limit | body)
    assert error["message"] == text
    assert error["type"] == "invalid_request_error"


def test_every_field_of_the_clients_is_known():
    """Their own types are the list: a field takes effect, is ignored, or is refused with what to do instead."""
    for kind, own, types in (
        (ResponsesRequest, RESPONSES, response_params.ResponseCreateParamsBase),
        (MessagesRequest, MESSAGES, message_params.MessageCreateParamsBase),
        (CountTokensRequest, COUNTS, count_params.MessageCountTokensParams),
    ):
        known = kind.names() | IGNORED.keys() | REFUSED.keys() | own.ignored.keys() | own.refused.keys()
        assert {*types.__annotations__, "stream"} - known == set()
        assert not kind.names() & (own.ignored.keys() | own.refused.keys())
        for name, refusal in own.refused.items():
            required = {"input": "hi"} if kind is ResponsesRequest else {"messages": [HI], "max_tokens": 9}
            for value in refusal.harmless:
                kind(**{key: item for key, item in required.items() if key in kind.names()}, **{name: value})
            if name not in required:
                with pytest.raises(ValueError, match=f"the field '{name}' is not supported: \\w"):
                    kind(**required, **{name: "anything"})


# ---- bodies of the clients' own types ----------------------------------------------------------------------------------

ARGUMENTS = st.dictionaries(WORD, JSON, max_size=2)
FIELDS = {
    "arguments": ARGUMENTS.map(json.dumps) | st.sampled_from(["", "[1]"]), "parameters": st.just({}), "schema": st.just(SCHEMA),
    "call_id": st.just("c1"), "input": ARGUMENTS, "input_schema": st.just(SCHEMA), "encrypted_content": st.none(),
    "logprobs": st.just([]),
    "source": st.just({"type": "url"}), "signature": WORD, "citations": st.none(), "annotations": st.just([]),
    "namespace": st.none(), "caller": st.none(), "effort": st.sampled_from(["low", None]),
}  # fmt: skip
ITEMS = st.lists(
    st.one_of(values(kind, FIELDS) for kind in (
        responses.EasyInputMessageParam, item_params.Message, responses.ResponseOutputMessageParam,
        responses.ResponseReasoningItemParam, responses.ResponseFunctionToolCallParam, item_params.FunctionCallOutput,
        item_params.ItemReference,
    )), min_size=1, max_size=3,
)  # fmt: skip
BLOCKS = [theirs.TextBlockParam, theirs.ThinkingBlockParam, theirs.ToolUseBlockParam, theirs.ToolResultBlockParam,
          theirs.ImageBlockParam, theirs.RedactedThinkingBlockParam]  # fmt: skip
MESSAGE = st.fixed_dictionaries({
    "role": st.sampled_from(["user", "assistant", "system"]),
    "content": WORD | st.lists(st.one_of(values(kind, FIELDS | {"content": WORD}) for kind in BLOCKS), max_size=2),
})  # fmt: skip


def told(value, under) -> list[str]:
    """The words that a model has to be told."""
    return [
        word for text in words(value, under) for word in (json.loads(text) if text.startswith("{") else [text]) if word
    ]


@FAST
@given(ITEMS)
def test_items_of_openais_package(captured, items):
    error = captured.ask("/v1/responses", {"input": items})
    if error is not None:
        assert "input[" in error["message"], error
        return
    prompt = TOK.decode(list(captured.requests[0].prompt))
    for item in items:
        under = ("output",) if item.get("type") == "function_call_output" else ("content", "name", "arguments")
        if item.get("type") == "reasoning":  # the thinking of earlier turns is left out, as the template does
            continue
        assert all(word in prompt for word in told(item, under)), (item, prompt)


@FAST
@given(st.lists(MESSAGE, min_size=1, max_size=3))
def test_messages_of_anthropics_package(captured, messages):
    error = captured.ask("/v1/messages", {"messages": messages, "max_tokens": 9})
    if error is not None:
        assert "messages[" in error["message"], error
        return
    prompt = TOK.decode(list(captured.requests[0].prompt))
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else [message]
        for block in blocks:
            assert all(word in prompt for word in told(block, ("content", "text", "name"))), (block, prompt)
            assert all(key in prompt for key in block.get("input", {}))


def of_the_package(kind, always: dict, captured: Captured, path: str):
    @FAST
    @given(bodies(kind, always={name: st.just(value) for name, value in always.items()}, by_name=FIELDS, most=3))
    def check(body):
        error = captured.ask(path, body)
        if error is not None:
            check_place(error, body)
            return
        request, given_fields = captured.requests[0], {name: value for name, value in body.items() if value is not None}
        assert "hi" in TOK.decode(list(request.prompt))
        for name in ("temperature", "top_p"):
            assert getattr(request.sampling, name) == given_fields.get(name)
        limit = given_fields.get("max_output_tokens", given_fields.get("max_tokens", -1))
        assert limit == -1 or request.max_new_tokens == limit

    check()


def test_bodies_of_openais_package(captured):
    of_the_package(
        response_params.ResponseCreateParamsNonStreaming, {"input": "hi", "model": "tiny"}, captured, "/v1/responses"
    )


def test_bodies_of_anthropics_package(captured):
    always = {"messages": [HI], "model": "tiny", "max_tokens": 9}
    of_the_package(message_params.MessageCreateParamsNonStreaming, always, captured, "/v1/messages")
