"""Answers from tokens: which end by their text, how they are read, and what they count."""

import pytest

from qwen3_jax import Request, Sampling
from qwen3_jax.generation import STOP_TEXT, Token, TokenLogprob
from qwen3_jax.generation.answer import Answer, extend
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()
TOOLS = tuple(tiny_models.TOOLS)
CALL = TOK.encode('<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>')


def token(id: int, finish=None, **fields) -> Token:
    return Token(**(dict(number=0, id=id, forced=False, thinking=False, logprob=None, finish=finish) | fields))


def answer(**fields) -> Answer:
    sampling = Sampling(stop=fields.pop("stop", ()), logprobs=fields.pop("logprobs", None))
    return Answer(TOK, Request((1, 2), sampling, 100, frozenset([TOK.im_end_id]), **fields))


@pytest.mark.parametrize("several", [{}, []], ids=["by_number", "by_place"])
def test_a_text_ends_its_own_answer_and_no_sibling(several):
    a, b, end = TOK.encode("a")[0], TOK.encode("b")[0], TOK.im_end_id
    first, second, third = answer(stop="b"), answer(stop="b"), answer()
    answers = {0: first, 1: second, 2: third} if several == {} else [first, second, third]
    cancelled = []
    steps = [
        [(0, token(a)), (1, token(a)), (2, token(b))],
        [(0, token(b)), (0, token(a)), (1, token(a)), (2, token(end, "stop"))],  # the engine was a token ahead with 0
        [(0, token(a)), (1, token(b, "length"))],  # ended by both at once: there is nothing to cancel
    ]
    pairs = [list(extend(answers, step, cancelled.append)) for step in steps]
    assert cancelled == [0]
    assert [[(key, delta.kind, delta.text) for key, delta in step] for step in pairs] == [
        [(0, "content", "a"), (1, "content", "a"), (2, "content", "b")],
        [(0, "end", ""), (1, "content", "a"), (2, "end", "")],
        [(1, "end", "")],
    ]
    results = [each.result for each in (first, second, third)]
    assert [(r.text, r.finish_reason, r.usage.completion_tokens) for r in results] == [
        ("a", "stop", 2), ("aa", "stop", 3), ("b", "stop", 2),
    ]  # fmt: skip


@pytest.mark.parametrize(("one_call", "calls", "cancelled"), [(True, 1, ["key"]), (False, 2, [])])
def test_one_call_ends_the_answer(one_call, calls, cancelled):
    of, seen = answer(tools=TOOLS, one_call=one_call), []
    ids = [*CALL, *TOK.encode("\n"), *CALL, TOK.im_end_id]
    tokens = [("key", token(id, "stop" if id == TOK.im_end_id else None)) for id in ids]
    deltas = [delta for _, delta in extend({"key": of}, tokens, seen.append)]
    assert [delta.kind for delta in deltas].count("tool_call") == len(of.result.tool_calls) == calls
    assert seen == cancelled
    assert of.result.finish_reason == "tool_calls"
    assert len(of.result.token_ids) == (len(CALL) if one_call else len(ids))


def test_one_call_of_several_in_one_block():
    of, block = answer(tools=TOOLS, one_call=True), "<function=add>\n</function>\n<function=add>\n</function>\n"
    deltas = [delta for id in TOK.encode(f"<tool_call>\n{block}</tool_call>") for delta in of.add(token(id))]
    assert [delta.kind for delta in deltas] == ["tool_call", "end"]
    assert len(of.result.tool_calls) == 1


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        (dict(tools=TOOLS), ["thinking", "tool_call", "end"]),
        ({}, ["thinking", "content", "end"]),
        (dict(tools=TOOLS, raw=True), ["content", "end"]),
        (dict(tools=TOOLS, thinking=True), ["thinking", "tool_call", "end"]),
    ],
    ids=str,
)
def test_how_an_answer_is_read(fields, kinds):
    of, text = answer(prompt_index=4, sample_index=2, **fields), "<think>\nhm\n</think>\n\n" + TOK.decode(CALL)
    deltas = [delta for id in TOK.encode(text) for delta in of.add(token(id))] + of.add(token(TOK.im_end_id, "stop"))
    assert list(dict.fromkeys(delta.kind for delta in deltas)) == kinds
    assert {(delta.index, delta.sample) for delta in deltas} == {(4, 2)}
    assert of.result.text == text
    assert of.result.content == (text if fields.get("raw") else "" if fields.get("tools") else TOK.decode(CALL))
    assert of.result.finish_reason == ("tool_calls" if of.result.tool_calls else "stop")


THOUGHT = "<think>\nfirst\n\nsecond\n</think>\n\n"
ADD = '<tool_call>\n{"name": "add", "arguments": {"a": "x\\n\\ny STOP"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "stop", "fields", "kept", "content"),
    [  # kept: the part of the text that is kept if a stop text ends the answer, else None
        (THOUGHT + "The answer is 4.", ["\n\n"], {}, None, "The answer is 4."),
        (THOUGHT + "One.\n\nTwo.", ["\n\n"], {}, THOUGHT + "One.", "One."),
        (THOUGHT + "One. second", ["second", "first"], {}, THOUGHT + "One. ", "One. "),
        (THOUGHT + "4", ["think", "</think>", "<"], {}, None, "4"),
        ("first\n\nsecond" + STOP_TEXT + "So: 4.\n\nYes", ["\n\n"], dict(thinking=True),
         "first\n\nsecond" + STOP_TEXT + "So: 4.", "So: 4."),
        ("\n\nfirst" + STOP_TEXT + "4", ["Considering", "\n"], dict(thinking=True), None, "4"),
        ("\n\nNo thinking.\n\nTwo", ["\n\n"], {}, "", ""),  # newlines at the start of an answer are its own
        ("The tag <think> STOP", ["STOP"], {}, "The tag <think> ", "The tag <think> "),
        (ADD, ["STOP", "\n\n", "name", "tool_call"], dict(tools=TOOLS), None, ""),
        (f"Look.\n\n{ADD}\n\nDone STOP", ["STOP", "\n\n"], dict(tools=TOOLS), f"Look.\n\n{ADD}", "Look."),
        (f"A ST{ADD}OP B", ["STOP"], dict(tools=TOOLS), None, "A STOP B"),  # not across a call
        (ADD, ["STOP"], {}, ADD[: ADD.index("STOP")], ADD[: ADD.index("STOP")]),  # without tools it is content
        (THOUGHT + "`<tool_call>` STOP", ["STOP"], dict(tools=TOOLS), THOUGHT + "`<tool_call>` ", "`<tool_call>` "),
        (THOUGHT + "4 ST", ["STOP"], {}, None, "4 ST"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("raw", [False, True])
def test_stop_texts_act_on_the_content_alone(text, stop, fields, kept, content, raw):
    """Not on thinking, forced text, tags and the newlines behind them, or the arguments of calls; token by token."""
    of = answer(stop=stop, raw=raw, **fields)
    deltas = []
    for id in TOK.encode(text):
        deltas += of.add(token(id))
        if of.result is not None:
            break
    deltas += [] if of.result is not None else of.add(token(TOK.im_end_id, "stop"))
    result = of.result
    assert result.text == (text if kept is None else kept)
    assert result.content == (result.text if raw else content)
    assert "".join(delta.text for delta in deltas if delta.kind == "content") == result.content
    assert len(result.token_ids) <= len(TOK.encode(text)) + 1
    calls = "tools" in fields and not raw and ADD in result.text
    assert result.finish_reason == ("tool_calls" if calls else "stop")


def test_in_a_text_that_is_continued_as_it_is_stop_texts_act_everywhere():
    of = answer(stop=["\n\n"], raw=True, continues_text=True)
    for id in TOK.encode(THOUGHT):
        of.add(token(id))
    assert (of.result.text, of.result.finish_reason) == ("<think>\nfirst", "stop")


@pytest.mark.parametrize("before", ["first", "first\n", "first."])
def test_in_such_a_text_no_stop_text_is_found_in_what_a_budget_forces(before):
    """Nor one that begins in the text before it."""
    of = answer(stop=["\n\n", "Considering", ".\n"], raw=True, continues_text=True, thinking=True)
    pieces = [(before, False), (STOP_TEXT, True), ("So: 4.\n\nYes", False)]
    deltas = []
    for text, forced in pieces:
        for id in TOK.encode(text):
            deltas += of.add(token(id, forced=forced))
    assert of.result.text == before + STOP_TEXT + "So: 4"
    assert "".join(delta.text for delta in deltas) == of.result.content == of.result.text


XML = "<tool_call>\n<function=add>\n<parameter=a>\nx\n\ny STOP\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize("text", [XML, XML.removeprefix("<tool_call>\n"), XML.replace("</function>\n", "")])
def test_stop_texts_in_xml_calls(text):
    of = answer(stop=["STOP", "\n\n", "function", "\n"], tools=TOOLS)
    for id in TOK.encode(f"Look.\n{text}"):
        of.add(token(id))
    of.add(token(TOK.im_end_id, "stop"))
    assert (of.result.finish_reason, of.result.content) == ("tool_calls", "Look.")


def test_in_an_answer_that_the_prompt_has_begun_think_tags_are_text():
    of = answer(answering=True)
    for id in TOK.encode("<think> and </think> are tags."):
        of.add(token(id))
    of.add(token(TOK.im_end_id, "stop"))
    assert (of.result.thinking, of.result.content) == (None, "<think> and </think> are tags.")


def test_a_stop_text_that_only_the_end_completes_still_cuts():
    """White space before what may be a call waits; at the limit it is content."""
    of = answer(stop=["\n\n"], tools=TOOLS)
    *ids, last = TOK.encode("Four.\n\n")
    for id in ids:
        of.add(token(id))
    of.add(token(last, "length"))
    assert (of.result.content, of.result.finish_reason) == ("Four.", "stop")


def test_counts_and_log_probabilities():
    of = answer(logprobs=1)
    fields = [
        dict(id=5, thinking=True, cached=64), dict(id=6, thinking=True, cached=64), dict(id=7, forced=True, cached=64),
        dict(id=8, cached=64, finish="length"),
    ]  # fmt: skip
    for each in fields:
        of.add(token(**each, logprob=TokenLogprob(each["id"], -0.5, ((1, -0.25),))))
    usage = of.result.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (2, 4, 6)
    assert (usage.thinking_tokens, usage.forced_tokens, usage.cached_tokens) == (2, 1, 64)
    assert of.result.token_ids == [each.token_id for each in of.result.logprobs] == [5, 6, 7, 8]
    assert of.result.forced_mask == [False, False, True, False]
    assert of.result.finish_reason == "length"
    without = answer()
    without.add(token(5, "length"))
    assert without.result.logprobs is None
