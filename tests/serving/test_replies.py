"""OpenAI's objects and chunks against hand-written ones, from hand-written tokens."""

import asyncio
import json
import sys

import pytest

from qwen3_jax import Request, Sampling
from qwen3_jax.generation import Stats, Token, TokenLogprob
from qwen3_jax.generation.answer import Answer, extend
from qwen3_jax.serving.app import _events
from qwen3_jax.serving.messages_body import MessagesRequest
from qwen3_jax.serving.messages_reply import MessagesReply
from qwen3_jax.serving.meters import Meters
from qwen3_jax.serving.objects import StreamOptions
from qwen3_jax.serving.replies import ChatReply, TextReply
from qwen3_jax.serving.worker import Load
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
END = TOK.im_end_id
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def answer(**fields) -> Answer:
    sampling = Sampling(logprobs=fields.pop("logprobs", None))
    return Answer(TOK, Request((1, 2, 3), sampling, 100, frozenset([END]), **fields))


def token(id: int, logprob=None, finish=None, **fields) -> Token:
    return Token(
        0, id, fields.get("forced", False), fields.get("thinking", False), logprob, finish, fields.get("cached", 0)
    )


def logprob(id: int, value=-0.5) -> TokenLogprob:
    return TokenLogprob(id, value, ((id, value), (TOK.encode("é")[0], float("-inf"))))


def chunks(reply, pairs) -> list[dict]:
    return [reply.chunk(*pair) for pair in extend(reply.answers, pairs, lambda index: None)]


def ids(text: str) -> list[int]:
    return TOK.encode(text)


def spelled(id: int) -> dict:
    e = list("é".encode())[:1]
    other = {"token": bytes(e).decode("utf-8", "replace"), "logprob": -9999.0, "bytes": e}
    own = {"token": TOK.decode([id]), "logprob": -0.5, "bytes": list(TOK.decode([id]).encode())}
    return own | {"top_logprobs": [own, other]}


def test_text_offsets_continue_from_chunk_to_chunk():
    """As in the whole object; per choice, and in characters of the tokens before."""
    a, bb, seven = ids("a")[0], ids("What")[0], ids("7")[0]
    reply = TextReply("m", TOK, [answer(logprobs=2, raw=True), answer(logprobs=2, raw=True)], 2)
    pairs = [(0, bb), (1, a), (0, seven), (0, a), (1, bb)]
    got = chunks(reply, [(choice, token(id, logprob(id))) for choice, id in pairs])
    starts, at = [], [0, 0]
    for choice, id in pairs:
        starts.append((choice, [at[choice]]))
        at[choice] += len(TOK.decode([id]))
    choices = [chunk["choices"][0] for chunk in got]
    assert [(choice["index"], choice["logprobs"]["text_offset"]) for choice in choices] == starts
    assert [choice["logprobs"]["tokens"] for choice in choices] == [[TOK.decode([id])] for _, id in pairs]
    chunks(reply, [(choice, token(END, logprob(END), "stop")) for choice in (0, 1)])
    for index, choice in enumerate(reply.whole()["choices"]):
        own = [id for place, id in pairs if place == index] + [END]
        lengths = [len(TOK.bytes_of(id).decode()) for id in own]
        assert choice["logprobs"]["text_offset"] == [sum(lengths[:place]) for place in range(len(own))]
        assert choice["text"] == TOK.decode(own[:-1])
        assert choice["logprobs"]["token_logprobs"] == [-0.5] * len(own)


def test_a_text_choice_in_full():
    a = ids("a")[0]
    reply = TextReply("m", TOK, [answer(logprobs=2, raw=True)], 1)
    (chunk,) = chunks(reply, [(0, token(a, logprob(a)))])
    text = {
        "tokens": ["a"], "token_logprobs": [-0.5], "text_offset": [0],
        "top_logprobs": [{"a": -0.5, spelled(a)["top_logprobs"][1]["token"]: -9999.0}],
    }  # fmt: skip
    common = {"model": "m", "created": chunk["created"], "id": chunk["id"], "object": "text_completion"}
    assert chunk["id"].startswith("cmpl-")
    assert chunk == common | {"choices": [{"index": 0, "text": "a", "logprobs": text, "finish_reason": None}]}
    (end,) = chunks(reply, [(0, token(END, logprob(END), "stop"))])
    assert end["choices"][0]["finish_reason"] == "stop"
    assert end["choices"][0]["logprobs"]["text_offset"] == [1]
    plain = TextReply("m", TOK, [answer(raw=True)], 1)
    (chunk,) = chunks(plain, [(0, token(a))])
    assert chunk["choices"] == [{"index": 0, "text": "a", "logprobs": None, "finish_reason": None}]


def test_the_chunks_of_a_chat():
    reply = ChatReply("m", TOK, [answer(tools=True), answer(tools=True)], 2)
    opening = reply.opening()
    assert [chunk["choices"] for chunk in opening] == [
        [{"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}]
        for i in (0, 1)
    ]
    text = [*ids("<think>"), *ids("7"), *ids("</think>"), *ids("a"), *ids(CALL), *ids(CALL), END]
    pairs = [(1, token(id, finish="stop" if id == END else None)) for id in text]
    choices = [chunk["choices"][0] for chunk in chunks(reply, [*pairs, (0, token(END, finish="stop"))])]
    assert [choice["index"] for choice in choices] == [1] * (len(choices) - 1) + [0]
    ids_of_calls = [choice["delta"]["tool_calls"][0].pop("id") for choice in choices if "tool_calls" in choice["delta"]]
    assert len(set(ids_of_calls)) == 2
    function = {"name": "add", "arguments": '{"a": 1}'}
    assert [(choice["delta"], choice["finish_reason"]) for choice in choices] == [
        ({"reasoning_content": "7", "reasoning": "7"}, None),
        ({"content": "a"}, None),
        ({"tool_calls": [{"index": 0, "type": "function", "function": function}]}, None),
        ({"tool_calls": [{"index": 1, "type": "function", "function": function}]}, None),
        ({}, "tool_calls"),
        ({}, "stop"),
    ]
    whole = reply.whole()
    assert whole["object"] == "chat.completion"
    assert {chunk["object"] for chunk in opening} == {"chat.completion.chunk"}
    assert whole["id"] == opening[0]["id"]
    empty, full = (choice["message"] for choice in whole["choices"])
    assert empty == {"role": "assistant", "content": ""}
    assert [call["id"] for call in full.pop("tool_calls")] == ids_of_calls
    assert full == {"role": "assistant", "content": "a", "reasoning_content": "7", "reasoning": "7"}
    assert [choice["finish_reason"] for choice in whole["choices"]] == ["stop", "tool_calls"]


def test_a_call_without_content_has_none():
    reply = ChatReply("m", TOK, [answer(tools=True)], 1)
    chunks(reply, [(0, token(id, finish="stop" if id == END else None)) for id in [*ids(CALL), END]])
    message = reply.whole()["choices"][0]["message"]
    assert message["content"] is None
    assert "reasoning_content" not in message


def test_each_log_probability_is_in_one_chunk():
    """Tokens without text of their own (tags, the first half of a character) are reported with the next delta."""
    reply = ChatReply("m", TOK, [answer(logprobs=2)], 1)
    first, second = ids("é") if len(ids("é")) == 2 else (None, None)
    text = [*ids("<think>"), *ids("a"), *ids("</think>"), *([first, second] if first else ids("b")), END]
    pairs = [(0, token(id, logprob(id), "stop" if id == END else None)) for id in text]
    reported = [chunk["choices"][0]["logprobs"] for chunk in chunks(reply, pairs)]
    assert [len(each["content"]) for each in reported] == [2, 2 if not first else 3, 1]
    assert all(each["refusal"] is None for each in reported)
    entries = [entry for each in reported for entry in each["content"]]
    assert entries == reply.whole()["choices"][0]["logprobs"]["content"]
    assert [bytes(entry["bytes"]) for entry in entries] == [TOK.bytes_of(id) for id in text]
    assert entries[1] == spelled(ids("a")[0])


def test_the_blocks_of_a_message():
    """Arguments are as written, but for numbers that no reader of JSON can hold."""
    body = MessagesRequest(messages=[{"role": "user", "content": "hi"}], max_tokens=9)
    reply = MessagesReply("m", [answer(tools=True)], 1, body)
    calls = [CALL, CALL.replace('{"a": 1}', '{"a":  -1e999, "b": [1.50]}')]
    text = [*ids("<think>"), *ids("7"), *ids("</think>"), *ids("a"), *ids(calls[0]), *ids("b"), *ids(calls[1]), END]
    pairs = [(0, token(id, finish="stop" if id == END else None)) for id in text]
    events = [event for pair in extend(reply.answers, pairs, lambda index: None) for event in reply.events(*pair)]
    big = -sys.float_info.max
    blocks = reply.whole()["content"]
    assert [block["type"] for block in blocks] == ["thinking", "text", "tool_use", "text", "tool_use"]
    assert [block["input"] for block in blocks if "input" in block] == [{"a": 1}, {"a": big, "b": [1.5]}]
    written = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    assert written == ['{"a": 1}', f'{{"a": {big}, "b": [1.5]}}']
    assert json.loads(json.dumps(reply.whole(), allow_nan=False))["stop_reason"] == "tool_use"


@pytest.mark.parametrize(("samples", "prompts"), [(1, 12), (2, 6), (4, 3)])
def test_usage_counts_each_prompt_once(samples, prompts):
    answers = [answer() for _ in range(4)]
    reply = ChatReply("m", TOK, answers, samples)
    a = ids("a")[0]
    for i in range(4):
        tokens = [token(a, thinking=True, cached=2)] * i + [
            token(a, forced=True, cached=2),
            token(END, finish="stop", cached=2),
        ]
        chunks(reply, [(i, each) for each in tokens])
    expected = {
        "prompt_tokens": prompts, "completion_tokens": 14, "total_tokens": prompts + 14,
        "prompt_tokens_details": {"cached_tokens": prompts * 2 // 3},
        "completion_tokens_details": {"reasoning_tokens": 6, "forced_tokens": 4},
    }  # fmt: skip
    assert reply.usage() == reply.whole()["usage"] == reply.closing()["usage"] == expected
    assert reply.closing()["choices"] == []
    assert reply.closing()["object"] == "chat.completion.chunk"


@pytest.mark.parametrize("usage", [True, False])
def test_the_events_of_a_stream(usage):
    """The role with the first tokens, nothing for tokens without text, the usage once at the end, and the end mark."""
    reply, a = ChatReply("m", TOK, [answer()], 1, StreamOptions(include_usage=usage)), ids("a")[0]

    async def deltas():
        end = [token(ids("</think>")[0]), token(a), token(END, finish="stop")]
        for step in ([], [token(ids("<think>")[0])], [token(a)], end):
            yield list(extend(reply.answers, [(0, each) for each in step], lambda index: None))

    async def collect() -> list[bytes]:
        return [part async for part in _events(reply, deltas())]

    parts = asyncio.run(collect())
    assert len(parts) == 4  # three with chunks, and the end
    texts = b"".join(parts).decode().split("\n\n")
    assert texts[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(text.removeprefix("data: ")) for text in texts[:-2]]
    parsed = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert parsed == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "a", "reasoning": "a"},
        {"content": "a"},
        {},
    ]
    assert [chunk.get("usage", "absent") for chunk in chunks] == (
        [None] * 4 + [reply.usage()] if usage else ["absent"] * 4
    )
    assert reply.usage()["completion_tokens"] == 5


def test_done_when_all_are():
    reply = ChatReply("m", TOK, [answer(), answer()], 2)
    for index, done in ((1, False), (0, True)):
        chunks(reply, [(index, token(END, finish="stop"))])
        assert reply.done == done


class IdleWorker:
    """The load of an engine, for a scrape."""

    load = Load(6, 7, 8, 9, Stats(prefill_tokens=1, cached_tokens=2, guessed=3, accepted=4, preemptions=5))


def test_metrics(monkeypatch):
    meters = Meters(IdleWorker())
    reply = ChatReply("m", TOK, [answer(), answer()], 2)
    a = ids("a")[0]
    chunks(reply, [(0, token(a, thinking=True)), *[(1, token(a))] * 4])
    chunks(reply, [(0, token(END, finish="stop")), (1, token(END, finish="stop"))])
    reply.started, reply.first = 100.0, 103.0
    reply.note_first_token()
    assert reply.first == 103.0
    monkeypatch.setattr("time.perf_counter", lambda: 105.0)
    meters.count(reply)
    meters.request("/v1/models", 200)
    meters.request("/v1/models", 0)
    lines = dict(line.rsplit(" ", 1) for line in meters.text().decode().splitlines() if not line.startswith("#"))
    values = {name: float(value) for name, value in lines.items()}
    for name, value in dict(
        answers_running=6, answers_waiting=7, cache_pages_held=8, cache_pages_all=9, prompt_tokens_total=1,
        cached_tokens_total=2, guessed_tokens_total=3, accepted_tokens_total=4, preemptions_total=5, generated_tokens_total=7,
        reasoning_tokens_total=1, request_seconds_sum=5, time_to_first_token_seconds_sum=3,
        time_per_output_token_seconds_sum=0.5, time_per_output_token_seconds_count=1,
    ).items():  # fmt: skip
        assert values[f"qwen3_{name}"] == value, name
    assert values['qwen3_requests_total{path="/v1/models",status="200"}'] == 1
    assert values['qwen3_requests_total{path="/v1/models",status="gone"}'] == 1
    new = ChatReply("m", TOK, [answer()], 1)
    assert new.first is None
    new.note_first_token()
    assert new.first == 105.0
