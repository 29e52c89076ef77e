"""Sampling settings: penalties and log probabilities against NumPy, several answers, defaults, bounds, stop texts."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import qwen3_jax
from qwen3_jax import GenerationConfig, Request, Sampling, UserError
from qwen3_jax.generation import Token
from qwen3_jax.generation.answer import Answer
from qwen3_jax.text.byte_level import BYTE_CHARACTERS
from tests.helpers import tiny_models

TOK = tiny_models.tokenizer()


@pytest.mark.parametrize("seed", range(3))
def test_penalties_and_log_probabilities_of_whole_answers(seed):
    """Greedy under penalties, and the reported log probabilities, from a plain forward pass over the finished answer."""
    model = tiny_models.model(seed, eos=False, tag_scale=0.0)  # no tag is likely, so the budget is reached
    prompts = [TOK.encode("<think>What function"), TOK.encode("2 + 3?"), [TOK.think_start_id] * 3]
    rows = [
        Sampling(temperature=0, repetition_penalty=1.4, presence_penalty=0.7, logprobs=3),
        Sampling(temperature=0.8, top_k=5, seed=4, repetition_penalty=1.2, logprobs=20),
        Sampling(temperature=0, presence_penalty=-0.5, logprobs=0),
    ]
    results = qwen3_jax.generate(model, TOK, prompts, sampling=rows, max_new_tokens=40, thinking_budget=[9, None, None])
    for prompt, row, result in zip(prompts, rows, results, strict=True):
        logits = tiny_models.next_token_logits(model, prompt, result.token_ids)
        assert len(result.logprobs) == len(result.token_ids) == 40
        exact = logits.astype(np.float64)
        log = (
            exact
            - np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - exact.max(-1, keepdims=True)
        )
        for i, (token, forced, reported) in enumerate(
            zip(result.token_ids, result.forced_mask, result.logprobs, strict=True)
        ):
            assert reported.token_id == token
            assert abs(reported.logprob - log[i, token]) < 1e-4
            assert len(reported.top) == row.logprobs
            best = np.sort(log[i])[::-1][: row.logprobs]
            np.testing.assert_allclose([value for _, value in reported.top], best, atol=1e-4)
            np.testing.assert_allclose([log[i, t] for t, _ in reported.top], best, atol=1e-4)
            if row.temperature == 0 and not forced:
                shaped = exact[i].copy()
                seen = np.isin(np.arange(len(shaped)), prompt + result.token_ids[:i])
                factor = row.repetition_penalty or 1.0
                shaped = np.where(seen, np.where(shaped > 0, shaped / factor, shaped * factor), shaped)
                shaped[list(set(result.token_ids[:i]))] -= row.presence_penalty
                if any(result.forced_mask[:i]):
                    shaped[TOK.think_start_id] = -np.inf
                assert shaped[token] >= shaped.max() - 1e-4
    assert any(results[0].forced_mask)
    plain = qwen3_jax.generate(model, TOK, prompts[:1], sampling=Sampling(temperature=0), max_new_tokens=5)
    assert plain[0].logprobs is None


def test_n_answers_differ_and_repeat():
    model = tiny_models.model(5)
    prompts = [[{"role": "user", "content": "Hi"}], "What"]
    options = dict(max_new_tokens=30, thinking_budget=3)

    def generate(n, **more):
        sampling = Sampling(temperature=2.0, top_k=0, seed=8, n=n)
        return qwen3_jax.generate(model, TOK, prompts, sampling=sampling, **options, **more)

    three = generate(3)
    assert three == generate(3) == generate(3, batch_size=2)
    for result in three:
        samples = [result, *result.others]
        assert len(samples) == 3
        assert all(not other.others for other in result.others)
        assert len({tuple(s.token_ids) for s in samples}) == 3
    for one, many in zip(generate(1), three, strict=True):
        assert one.token_ids == many.token_ids
        assert one.others == ()
    unseeded = [
        qwen3_jax.generate(model, TOK, prompts[1:] * 2, sampling=Sampling(temperature=2.0), max_new_tokens=30)
        for _ in range(2)
    ]
    assert len({tuple(result.token_ids) for results in unseeded for result in results}) == 4


def test_defaults_come_from_the_generation_config():
    config = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)
    filled = Sampling(seed=1).resolve(config)
    assert (filled.temperature, filled.top_k, filled.top_p, filled.min_p) == (0.6, 20, 0.95, 0.0)
    assert (filled.repetition_penalty, filled.presence_penalty, filled.seed) == (1.05, 0.0, 1)
    assert filled.resolve(GenerationConfig()) == filled
    own = Sampling(temperature=0.9, top_k=0, top_p=1, min_p=0.1, repetition_penalty=1.0).resolve(config)
    assert (own.temperature, own.top_k, own.top_p, own.min_p, own.repetition_penalty) == (0.9, 0, 1, 0.1, 1.0)
    assert Sampling().resolve(GenerationConfig(temperature=0.6)).temperature == 0
    assert Sampling().resolve(GenerationConfig(do_sample=True)).temperature == 1
    assert Sampling(top_p=0.9).resolve(GenerationConfig()).temperature == 1
    with pytest.raises(UserError, match="'top_p' is 7"):
        Sampling().resolve(GenerationConfig(top_p=7))
    # The model's own defaults take effect: the same tokens as with explicit settings.
    model = tiny_models.model(6)
    original = model.generation_config
    prompt = ["<think>What"]
    try:
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=1.3, top_k=4, max_new_tokens=17, eos_token_id=(tiny_models.VOCABULARY,)
        )
        (implied,) = qwen3_jax.generate(model, TOK, prompt, sampling=Sampling(seed=3))
    finally:
        model.generation_config = original
    stated = Sampling(temperature=1.3, top_k=4, seed=3)
    (expected,) = qwen3_jax.generate(tiny_models.model(6, eos=False), TOK, prompt, sampling=stated, max_new_tokens=17)
    assert implied == expected
    assert len(implied.token_ids) == 17


BAD = {
    "temperature": [-0.1, float("inf"), float("nan"), "1", True],
    "top_k": [-1, 1.5, 20.0, float("inf"), float("nan"), "20", True],
    "top_p": [0, -0.5, 1.01, float("nan"), "1", True],
    "min_p": [-0.1, 1.1, float("nan")],
    "presence_penalty": [-2.1, 2.1, None, float("nan"), "0"],
    "repetition_penalty": [0, -1, float("inf"), float("nan")],
    "seed": [-1, 2**63, 1.0, float("inf"), "0", True],
    "logprobs": [-1, 21, 2.0, True],
    "n": [0, -1, 2.0, None, True],
    "stop": ["", ["a", ""], [3], 5, None, b"a"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_setting_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"sampling option '{name}'"):
        Sampling(**{name: value})


@pytest.mark.parametrize(
    "setting",
    [
        dict(temperature=0), dict(temperature=np.float32(0.5)), dict(top_k=0), dict(top_k=np.int64(3)), dict(top_p=1),
        dict(min_p=0), dict(min_p=1), dict(presence_penalty=-2), dict(presence_penalty=2), dict(seed=2**63 - 1),
        dict(logprobs=0), dict(logprobs=20), dict(n=1), dict(stop="a"), dict(stop=["a", "b"]), dict(stop=[]),
    ],
)  # fmt: skip
def test_the_ends_of_each_range_are_accepted(setting):
    Sampling(**setting)


# --- Answers as they grow -------------------------------------------------------------------------------------------

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
PIECES = st.sampled_from(
    [
        "<think>", "</think>", "\n", "\n\n", "ab", "abab", "b", "aé", "漢字", "🙂", " ", "<", "think>", " function", CALL,
        "<|im_end|>",
    ]
)  # fmt: skip
STOPS = st.lists(
    st.sampled_from(["a", "ab", "bab", "abab", "é", "字", "\n\n", "</think>", "<", "function", "nct"]), max_size=3
)


def feed(answer: Answer, ids: list[int]):
    """Add tokens as the engine returns them: with the reason at end tokens and at the limit, unaware of stop texts."""
    deltas = []
    for count, token in enumerate(ids, start=1):
        last = "length" if count == answer.request.max_new_tokens else None
        finish = "stop" if token in answer.request.eos else last
        deltas += answer.add(Token(0, token, forced=False, thinking=False, logprob=None, finish=finish))
        if answer.result is not None:
            break
    return deltas


def assert_deltas_make_the_result(deltas, result, in_thinking=False) -> None:
    assert [delta.kind for delta in deltas if delta.result is not None] == ["end"]
    assert deltas[-1].result is result
    joined = {kind: "".join(d.text for d in deltas if d.kind == kind) for kind in ("thinking", "content")}
    assert joined["content"] == result.content
    assert joined["thinking"] == (result.thinking or "")
    assert tuple(d.tool_call for d in deltas if d.kind == "tool_call") == result.tool_calls
    assert all(delta.text for delta in deltas if delta.kind in ("thinking", "content"))


@settings(max_examples=400)
@given(
    pieces=st.lists(PIECES, min_size=1, max_size=12),
    stop=STOPS,
    in_thinking=st.booleans(),
    tools=st.booleans(),
    split=st.booleans(),
    cut=st.integers(0, 5),
)
@example([" function"], ["function", "nct"], False, False, False, 0)  # both in one token: "nct" is whole first
@example([CALL], ["a"], False, True, False, 5)  # within <tool_call>, which turns out to be no call
@example(["ab", CALL, " function"], ["function"], False, True, False, 0)  # no space behind the last call
def test_answers_end_at_stop_texts_and_their_deltas_make_the_result(pieces, stop, in_thinking, tools, split, cut):
    ids = [
        i for piece in pieces
        for i in (TOK.encode(piece) if not split or piece in ("<think>", "</think>", "<|im_end|>")
                  else [i for byte in piece.encode() for i in _byte_ids(byte)])
    ]  # fmt: skip
    ids = ids[: max(1, len(ids) - cut)]  # may end inside a character, a tag or a call
    content = qwen3_jax.text.parse(whole := TOK.decode(ids, skip_special_tokens=True), in_thinking, tools).content
    assume(all(whole.count(s) == content.count(s) for s in stop))  # for stop texts elsewhere see test_answer.py
    eos = frozenset([TOK.im_end_id])
    request = Request((1,), Sampling(stop=stop), len(ids), eos, thinking=in_thinking, tools=tools)
    answer = Answer(TOK, request)
    deltas = feed(answer, ids)
    result = answer.result
    assert_deltas_make_the_result(deltas, result)

    # Read by itself: token after token until an end token, a stop text or the limit.
    text, reason, taken = "", "length", 0
    detokenizer = TOK.detokenizer(skip_special_tokens=True)
    for taken, token in enumerate(ids, start=1):  # noqa: B007
        text += detokenizer.add(token)
        if token in eos:
            reason = "stop"
            break
        if any(s in text for s in stop):
            break
    if not any(s in text for s in stop):
        text += detokenizer.flush()
    ends = [(text.index(s) + len(s), text.index(s)) for s in stop if s in text]
    if ends:
        text, reason = text[: min(ends)[1]], "stop"
    assert result.token_ids[:taken] == ids[:taken]
    assert len(result.token_ids) == taken
    assert result.text == text
    parsed = qwen3_jax.text.parse(text, in_thinking, tools)
    assert (result.thinking, result.content) == (parsed.thinking, parsed.content)
    calls = [[(call.name, call.arguments) for call in calls] for calls in (result.tool_calls, parsed.tool_calls)]
    assert calls[0] == calls[1]  # ids are drawn
    assert result.finish_reason == ("tool_calls" if reason == "stop" and parsed.tool_calls else reason)
    assert feed(answer, [5]) == []

    feed(unread := Answer(TOK, request, deltas=False), ids)  # nobody reads the deltas
    fields = ("text", "thinking", "content", "token_ids", "finish_reason", "usage")
    assert [getattr(unread.result, name) for name in fields] == [getattr(result, name) for name in fields]


def _byte_ids(byte: int) -> list[int]:
    return [TOK.token_to_id(BYTE_CHARACTERS[byte])]


@pytest.mark.parametrize("tools", [None, tiny_models.TOOLS])
def test_streams_return_what_generate_does(tools):
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "What", "2 + 3?")]
    for seed in range(4):
        model = tiny_models.model(seed)
        options = dict(
            sampling=[
                Sampling(temperature=1.0, seed=seed, n=1 + (tools is None), stop=["e", "  "]),
                Sampling(temperature=1.0, seed=seed + 1, logprobs=2),
                Sampling(temperature=0.0),
            ],
            max_new_tokens=64,
            thinking_budget=[4, None, 12],
            tools=tools,
        )
        results = qwen3_jax.generate(model, TOK, prompts, **options)
        for batch_size in (None, 1):
            deltas = list(qwen3_jax.stream(model, TOK, prompts, batch_size=batch_size, **options))
            for index, result in enumerate(results):
                for sample_index, wanted in enumerate([result, *result.others]):
                    own = [d for d in deltas if (d.index, d.sample) == (index, sample_index)]
                    got = own[-1].result
                    assert_deltas_make_the_result(own, got)
                    assert got.token_ids == wanted.token_ids
                    assert (got.text, got.thinking, got.content) == (wanted.text, wanted.thinking, wanted.content)
                    assert (got.tool_calls, got.usage, got.finish_reason) == (
                        wanted.tool_calls, wanted.usage, wanted.finish_reason,
                    )  # fmt: skip
