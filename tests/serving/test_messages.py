"""/v1/messages with Anthropic's own client, against a real server: the documented order of events, and the answers of
/v1/chat/completions."""

import asyncio
import json

import anthropic
import httpx
import jsonschema
import pytest

from tests.helpers import tiny_models
from tests.helpers.agent_events import message_of, once
from tests.helpers.served import Running

TOK = tiny_models.tokenizer()
ASK = [{"role": "user", "content": "What is 2 + 3?"}]
THINKS = {str(TOK.think_start_id): 8}  # an answer is likely to begin with <think>
ENDLESS = {str(TOK.im_end_id): -100}
SCHEMA = {
    "type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [{"name": name, "description": name, "input_schema": SCHEMA} for name in ("Read", "Bash")]
NESTED = [
    {"type": "function", "function": {"name": t["name"], "description": t["name"], "parameters": SCHEMA}} for t in TOOLS
]
BUDGET = {"type": "enabled", "budget_tokens": 6}
KINDS = {
    "thinking": ({}, {}, dict(logit_bias=THINKS)),
    "budget": (dict(thinking=BUDGET), dict(thinking=BUDGET), dict(logit_bias=THINKS)),
    "plain": (dict(thinking={"type": "disabled"}), dict(enable_thinking=False), {}),
    "calls": (dict(tools=TOOLS, tool_choice={"type": "any", "disable_parallel_tool_use": True}, thinking=BUDGET),
              dict(tools=NESTED, tool_choice="required", parallel_tool_calls=False, thinking=BUDGET), {}),
}  # fmt: skip
STOPS = {"length": "max_tokens", "stop": "end_turn", "tool_calls": "tool_use"}


def client(server: Running, **options) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0, **options)


def events_of(server: Running, body: dict, **headers) -> list[dict]:
    """The events as they come over the wire, each under its name; the client drops some."""
    named = []
    key = {
        "x-api-key": server.key,
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "interleaved-thinking-2025-05-14",
    }
    with httpx.stream(
        "POST", f"{server.url}/v1/messages?beta=true", json=body, headers=key | headers, timeout=60
    ) as got:
        assert got.headers["content-type"].startswith("text/event-stream")
        for text in "".join(got.iter_text()).split("\n\n")[:-1]:
            name, data = text.split("\n")
            named.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {named[-1]['type']}"
    return named


def parts(content: list[dict]) -> tuple[str, str, list]:
    """Thinking, text and calls of a message."""
    thinking, text = (
        "".join(block.get(kind, "") for block in content if block["type"] == kind) for kind in ("thinking", "text")
    )
    return thinking, text, [(block["name"], block["input"]) for block in content if block["type"] == "tool_use"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_the_message_and_the_chat(server, kind, seed):
    """Joined deltas, the message without a stream, and /v1/chat/completions with the same seed have the same tokens."""
    own, of_chat, both = KINDS[kind]
    limit = dict(model=server.model, messages=ASK, max_tokens=300 if kind == "calls" else 60, temperature=1, seed=seed)
    extra = both | {"seed": seed, "temperature": 1}
    streamed, _ = message_of(events_of(server, limit | own | both | {"stream": True}))
    options = {name: value for name, value in (limit | own).items() if name not in ("seed", "temperature")}
    whole = client(server).messages.create(**options, extra_body=extra)
    with client(server).messages.stream(**options, extra_body=extra) as stream:
        final = stream.get_final_message()
    got = whole.model_dump(exclude_none=True)
    for block in streamed["content"]:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"])
    for message in (streamed, final.model_dump(exclude_none=True)):
        assert parts(message["content"]) == parts(got["content"])
        assert message["stop_reason"] == whole.stop_reason
        assert message["usage"]["output_tokens"] == whole.usage.output_tokens
    chat = server.post("/v1/chat/completions", **limit, **of_chat, **both).json()
    message, counts, finish = chat["choices"][0]["message"], chat["usage"], chat["choices"][0]["finish_reason"]
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in message.get("tool_calls", ())
    ]
    assert parts(got["content"]) == (message.get("reasoning_content") or "", message["content"] or "", calls)
    assert whole.stop_reason == STOPS[finish]
    assert bool(calls) == (kind == "calls")
    assert whole.usage.input_tokens + whole.usage.cache_read_input_tokens == counts["prompt_tokens"]
    details = counts["completion_tokens_details"]
    assert (whole.usage.output_tokens, whole.usage.output_tokens_details.thinking_tokens) == (
        counts["completion_tokens"], details["reasoning_tokens"],
    )  # fmt: skip
    assert kind not in ("budget", "calls") or details["reasoning_tokens"] <= 6


def test_asynchronous_clients(server):
    async def ask(of, seed: int, stream: bool):
        options = dict(model=server.model, messages=ASK, max_tokens=30, extra_body={"seed": seed, "temperature": 1})
        if not stream:
            got = await of.messages.create(**options)
        else:
            async with of.messages.stream(**options) as events:
                got = await events.get_final_message()
        return parts(got.model_dump()["content"])

    async def all_of() -> list:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="any", max_retries=0) as of:
            return await asyncio.gather(*(ask(of, seed % 6, seed % 2 == 0) for seed in range(12)))

    got = asyncio.run(all_of())
    assert got[:6] == got[6:]
    assert len(set(map(str, got))) > 3


def test_stop_sequences(server):
    seven = TOK.encode("7")[0]
    options = dict(model=server.model, messages=ASK, max_tokens=24, thinking={"type": "disabled"})
    bias = {"logit_bias": {str(seven): 100}, "temperature": 0}
    got = client(server).messages.create(**options, stop_sequences=["x", "777"], extra_body=bias)
    assert (got.stop_reason, got.stop_sequence, got.content) == ("stop_sequence", "777", [])
    assert got.usage.output_tokens == 3
    with client(server).messages.stream(**options, stop_sequences=["777"], extra_body=bias) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "777")
    assert client(server).messages.create(**options, stop_sequences=["x"], extra_body=bias).stop_reason == "max_tokens"


def test_structured_output(server):
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    options = dict(model=server.model, messages=ASK, max_tokens=200, thinking=BUDGET)
    got = [
        client(server).messages.create(**options, output_config=output, extra_body={"seed": seed, "temperature": 1})
        for seed in range(4)
    ]
    done = [message.content[-1].text for message in got if message.stop_reason == "end_turn"]
    for text in done:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(done) >= 2


def test_thinking_that_is_omitted_is_carried(server):
    """In the signature alone, which comes back as the thinking that the model had."""
    options = dict(model=server.model, max_tokens=60, extra_body={"logit_bias": THINKS, "temperature": 0})
    shown, hidden = (
        client(server).messages.create(**options, messages=ASK, thinking=BUDGET | {"display": display})
        for display in ("summarized", "omitted")
    )
    assert shown.content[0].thinking
    assert hidden.content[0].thinking == ""
    assert [block.type for block in shown.content] == [block.type for block in hidden.content]
    counted = []
    for got in (shown, hidden):
        turns = [*ASK, {"role": "assistant", "content": got.content}, {"role": "user", "content": "go on"}]
        extra = {"preserve_thinking": True}
        counted.append(
            client(server).messages.count_tokens(model=server.model, messages=turns, extra_body=extra).input_tokens
        )
    assert counted[0] == counted[1]


def test_a_session_of_a_coding_agent(server):
    """Two turns with a tool call in each, as Claude Code sends them: all blocks go back, with the results."""
    cached = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "You edit code.", **cached}, {"type": "text", "text": "Be brief.", **cached}]
    body = dict(
        model=server.model, system=system, tools=TOOLS, max_tokens=400, stream=True, metadata={"user_id": "me"}, temperature=1,
        thinking={"type": "enabled", "budget_tokens": 399}, logit_bias=THINKS, seed=3, thinking_budget=None,
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )  # fmt: skip
    messages = [{"role": "user", "content": [{"type": "text", "text": "Fix the sum in a.py.", **cached}]}]
    chat = [
        {"role": "system", "content": "You edit code.\n\nBe brief."},
        {"role": "user", "content": "Fix the sum in a.py."},
    ]
    recorded, hits = [], []
    for name, output in (("Read", "2 + 3 = 6"), ("Bash", "failed")):
        choice = {"type": "tool", "name": name, "disable_parallel_tool_use": True}
        message, types = message_of(events_of(server, body | dict(messages=messages, tool_choice=choice)))
        recorded.append(once(types))
        usage = message["usage"]
        hits.append(usage["cache_read_input_tokens"])
        count = server.post("/tokenize", messages=chat, tools=NESTED).json()["count"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == count
        counted = client(server).messages.count_tokens(
            model=server.model, messages=messages, system=system, tools=TOOLS, thinking={"type": "adaptive"}
        )
        assert counted.input_tokens == count
        thinking, call = message["content"]
        call["input"] = json.loads(call["input"])
        assert (call["name"], message["stop_reason"]) == (name, "tool_use")
        assert 0 <= call["input"]["x"] <= 9
        messages.append({"role": "assistant", "content": [thinking, call]})
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": [{"type": "text", "text": output}]}
        messages.append({"role": "user", "content": [result | {"is_error": name == "Bash"}]})
        function = {"name": name, "arguments": call["input"]}
        chat.append(
            {"role": "assistant", "reasoning_content": thinking["thinking"], "tool_calls": [{"function": function}]}
        )
        chat.append({"role": "tool", "content": output})
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    expected = ["message_start", "ping", *block, *block, "message_delta", "message_stop"]
    assert recorded == [expected, expected]
    assert hits[1] > 0


@pytest.mark.parametrize(
    ("status", "kind", "words", "body"),
    [
        (404, "not_found_error", "model 'claude-opus-5-5' does not exist", dict(model="claude-opus-5-5")),
        (400, "invalid_request_error", "maximum context length", dict(messages=[{"role": "user", "content": "no " * 2000}])),
        (400, "invalid_request_error", "messages[0].content[0] is of type 'image'",
         dict(messages=[{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}])),
        (400, "invalid_request_error", "the field 'top_p'", dict(extra_body={"top_p": 2})),
        (400, "invalid_request_error", "'stop_sequences'", dict(stop_sequences=[""])),
    ],
)  # fmt: skip
def test_errors(server, status, kind, words, body):
    for stream in (False, True):
        with pytest.raises(anthropic.APIStatusError) as caught:
            client(server).messages.create(**dict(model=server.model, max_tokens=9, messages=ASK) | body, stream=stream)
        assert caught.value.status_code == status
        assert set(caught.value.body) == {"type", "error"}
        assert (caught.value.body["type"], caught.value.body["error"]["type"]) == ("error", kind)
        assert words in caught.value.body["error"]["message"]


def test_a_message_is_continued(server):
    options = dict(model=server.model, max_tokens=8, temperature=0)
    messages = [*ASK, {"role": "assistant", "content": "The sum is"}]
    got = server.post("/v1/messages", messages=messages, **options).json()
    chat = server.post("/v1/chat/completions", messages=messages, continue_final_message=True, **options).json()
    assert parts(got["content"])[1] == chat["choices"][0]["message"]["content"]


def test_a_budget_is_a_cap(server):
    """Claude Code asks for one token less than the answer may have, or for more than the context has."""
    options = dict(model=server.model, messages=ASK, extra_body={"logit_bias": THINKS | ENDLESS, "temperature": 0})
    for most, budget in ((100, 99), (32_000, 31_999)):
        got = client(server, timeout=60).messages.create(
            max_tokens=most, thinking={"type": "enabled", "budget_tokens": budget}, **options
        )
        assert got.stop_reason == "max_tokens"
        assert got.content[-1].type == "text"
        assert got.usage.output_tokens == min(
            most, tiny_models.CONTEXT - got.usage.input_tokens - got.usage.cache_read_input_tokens
        )


def test_an_error_behind_the_first_event(hasty):
    server, limit = hasty
    body = dict(messages=ASK, max_tokens=900, temperature=1, logit_bias=ENDLESS, thinking={"type": "disabled"})
    *_, last = events_of(server, body | {"stream": True})
    error = {"type": "timeout_error", "message": f"the request took longer than {limit} seconds."}
    assert last == {"type": "error", "error": error}
    extra = {"logit_bias": ENDLESS, "temperature": 1}
    options = dict(model=server.model, messages=ASK, max_tokens=900, extra_body=extra)
    with (
        pytest.raises(anthropic.APIStatusError, match="longer than"),
        client(server).messages.stream(**options, thinking={"type": "disabled"}) as stream,
    ):
        stream.until_done()
    server.wait_until_idle()
