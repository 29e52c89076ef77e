"""The thinking budget against a reference written from its documentation, over random models, prompts, seeds and budgets."""

import dataclasses
import functools
import re
from types import SimpleNamespace
from typing import Any

import jax
import jax.monitoring
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import qwen3_jax
from qwen3_jax import DraftModel, Engine, Generation, Sampling
from qwen3_jax import Request as TokenRequest
from qwen3_jax.generation import STOP_TEXT, ThinkingTokens, end_tokens
from tests.helpers import tiny_models
from tests.helpers.engine_runs import DRAFT_SHAPE, LOOKUP, SHAPE, SMALL_SHAPE, leave

TOK = tiny_models.tokenizer()
STOP = TOK.encode(STOP_TEXT)
LIMIT = 64  # new tokens; no budget of the tests needs more
ROWS = 3  # every batch has as many rows: one compilation with tools, one without

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}THINK{% endif %}"
)
OPENS_THINKING = tiny_models.tokenizer(CHATML.replace("THINK", "{{ '<think>\n' }}"))  # as Thinking-2507's template does


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt with its own settings."""

    prompt: object
    sampling: Sampling
    budget: int | None
    max_new_tokens: int


def run(model, requests, tools=None, **options) -> list[Generation]:
    return qwen3_jax.generate(
        model,
        TOK,
        [request.prompt for request in requests],
        sampling=[request.sampling for request in requests],
        max_new_tokens=[request.max_new_tokens for request in requests],
        thinking_budget=[request.budget for request in requests],
        tools=tools,
        **options,
    )


def prompt_ids(request: Request, tools) -> list[int]:
    if isinstance(request.prompt, str):
        return TOK.encode(request.prompt)
    if isinstance(request.prompt[0], int):
        return request.prompt
    return TOK.apply_chat_template(request.prompt, tools=tools, enable_thinking=request.budget != 0, tokenize=True)


@dataclasses.dataclass
class Section:
    """Where an answer is, by the rules of `budget.py`'s docstring."""

    thinking: bool
    closed: bool = False
    answering: bool = False

    def take(self, token: int) -> None:
        if self.thinking:
            self.thinking = token != TOK.think_end_id
            self.closed = not self.thinking
        elif self.answering or set(TOK.decode([token])) == {"\n"}:
            pass
        elif not self.closed and token in (TOK.think_start_id, TOK.think_end_id):
            self.thinking, self.closed = token == TOK.think_start_id, token == TOK.think_end_id
        else:
            self.answering = True


NEWLINES = ThinkingTokens.of(TOK).newlines
SYMBOLS = {TOK.think_start_id: "T", TOK.think_end_id: "E", TOK.im_start_id: "H"} | dict.fromkeys(NEWLINES, "n")


def section_of(ids) -> Section:
    """Where a prompt leaves off: in a turn, behind the line with its role, by its one section; else by the last tag."""
    text = "".join(SYMBOLS.get(token, "x") for token in ids)
    turn = re.search(r"H[^Hn]*n([^H]*)\Z", text)
    if turn is None:
        return Section(re.findall("[TEH]", text)[-1:] == ["T"])
    is_answer = re.fullmatch(r"n*(T[^E]*(En*)?|En*)?", turn[1]) is None
    return Section(re.fullmatch(r"n*T[^E]*", turn[1]) is not None, answering=is_answer)


def replay(result: Generation, section: Section, budget: int | None) -> int:
    """Walk through an answer; return its thinking tokens."""
    section, used, to_force = dataclasses.replace(section), 0, []
    for token, forced in zip(result.token_ids, result.forced_mask, strict=True):
        spent = budget is not None and used == budget
        if section.thinking and spent and not to_force:
            to_force = list(STOP)
        assert forced == bool(to_force)
        if forced:
            assert token == to_force.pop(0)
        elif spent and not section.answering:
            assert token != TOK.think_start_id
        used += section.thinking and token != TOK.think_end_id and not forced
        section.take(token)
    assert budget is None or used <= budget
    return used


def samplings(largest_temperature: float):
    return st.builds(
        Sampling,
        temperature=st.one_of(st.just(0.0), st.floats(0.3, largest_temperature)),
        top_k=st.sampled_from([0, 5, 20, 64, 65, 300]),
        top_p=st.sampled_from([0.5, 0.95, 1.0]),
        min_p=st.sampled_from([0.0, 0.05]),
        presence_penalty=st.sampled_from([0.0, 1.5]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        seed=st.integers(0, 2**63 - 1),
    )


@st.composite
def batches(draw, largest_temperature: float = 3.0):
    """(requests, tools): texts, ids and messages; only messages with tools."""
    tools = draw(st.sampled_from([None, tiny_models.TOOLS]))
    message = st.sampled_from(["Hi", "2 + 3?", "<think>", "Say </think>", "/no_think"])
    chat = message.map(lambda text: [{"role": "user", "content": text}])
    ids = st.lists(st.integers(0, tiny_models.VOCABULARY - 1), min_size=1, max_size=16)
    text = st.sampled_from(["What", "<think>\n", "<think>Hm", "<think></think>", "function"])
    requests = []
    for place in range(ROWS):  # the first is always a chat, so that all batches have one width
        prompt = draw(chat if tools or place == 0 else st.one_of(chat, ids, text))
        budget = draw(st.one_of(st.none(), st.integers(0, LIMIT - len(STOP) - 2)))
        least = 1 if budget is None else budget + len(STOP) + 2
        requests.append(
            Request(prompt, draw(samplings(largest_temperature)), budget, draw(st.integers(max(least, 40), LIMIT)))
        )
    return requests, tools


@settings(max_examples=40)
@given(batch=batches(), seed=st.integers(0, 11), eos=st.booleans())
def test_every_answer_follows_the_documented_rules(batch, seed, eos):
    requests, tools = batch
    model = tiny_models.model(seed, eos=eos)
    results = run(model, requests, tools)
    assert len(results) == ROWS
    for request, result in zip(requests, results, strict=True):
        ids = prompt_ids(request, tools)
        section = section_of(ids)
        ends = end_tokens(model, TOK, chat=isinstance(request.prompt[0], dict))
        used = replay(result, section, request.budget)
        usage = result.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids), len(result.token_ids))
        assert (usage.thinking_tokens, usage.forced_tokens) == (used, sum(result.forced_mask))
        assert usage.total_tokens == len(ids) + len(result.token_ids)
        forced = [token for token, was in zip(result.token_ids, result.forced_mask, strict=True) if was]
        if len(forced) == len(STOP):
            assert STOP_TEXT in TOK.decode(result.token_ids)
            assert result.thinking.endswith("directly now.")
        else:  # none, or cut off by the limit
            assert forced == STOP[: len(forced)]
            assert not forced or result.finish_reason == "length"
        assert set(result.token_ids[:-1]).isdisjoint(ends)
        assert (result.token_ids[-1] in ends) == (result.finish_reason != "length")
        assert len(result.token_ids) == request.max_new_tokens or result.finish_reason != "length"
        assert result.finish_reason != "tool_calls" or result.tool_calls
        thought = section.thinking
        for token in result.token_ids:
            section.take(token)
            thought |= section.thinking
        assert thought == (result.thinking is not None)


def test_the_random_models_reach_every_case():
    """The test above covers only what its models do."""
    seen = set()
    for seed in range(8):
        requests = [
            Request([{"role": "user", "content": "Hi"}], Sampling(temperature=1.0, top_k=0, seed=s), budget, LIMIT)
            for s, budget in enumerate((None, 5, 12))
        ]
        for tools in (None, tiny_models.TOOLS):
            for request, result in zip(requests, run(tiny_models.model(seed), requests, tools), strict=True):
                seen.add("forced" if any(result.forced_mask) else "not forced")
                seen.add(result.finish_reason)
                section = Section(thinking=False)
                for token in result.token_ids:
                    if section.answering and token == TOK.think_start_id:
                        seen.add("quoted tag" if request.budget is None else "quoted tag under a budget")
                    section.take(token)
                if not any(result.forced_mask) and result.usage.thinking_tokens > 0 and request.budget:
                    seen.add("thinking that ended by itself")
    assert seen >= {"forced", "not forced", "stop", "length", "thinking that ended by itself"}
    assert seen >= {"quoted tag", "quoted tag under a budget"}


# Two compilations may round differently, and a draw close to the edge between two tokens then differs: fixed examples.
@settings(max_examples=16, derandomize=True)
@given(batch=batches(largest_temperature=1.0), seed=st.integers(0, 11))
def test_rows_are_independent(batch, seed):
    requests, tools = batch
    model = tiny_models.model(seed)
    together = run(model, requests, tools)
    assert [run(model, [request], tools)[0] for request in requests] == together
    assert run(model, requests, tools, batch_size=1) == together
    assert run(model, requests[::-1], tools) == together[::-1]


@settings(max_examples=25)
@given(batch=batches(), seed=st.integers(0, 11))
def test_a_budget_changes_nothing_before_it_is_reached(batch, seed):
    requests, tools = batch
    model = tiny_models.model(seed)
    requests = [dataclasses.replace(r, budget=r.budget or None) for r in requests]
    limited = run(model, requests, tools)
    unlimited = run(model, [dataclasses.replace(r, budget=None) for r in requests], tools)
    for request, with_budget, without in zip(requests, limited, unlimited, strict=True):
        if request.budget is None or without.usage.thinking_tokens < request.budget:
            assert with_budget == without
            continue
        # Equal up to and with the token that spends the budget.
        section, used, same = section_of(prompt_ids(request, tools)), 0, 0
        for same, token in enumerate(without.token_ids, start=1):  # noqa: B007
            used += section.thinking and token != TOK.think_end_id
            if used == request.budget:
                break
            section.take(token)
        assert used == with_budget.usage.thinking_tokens == request.budget
        assert with_budget.token_ids[:same] == without.token_ids[:same]
        ended = without.finish_reason != "length" and same == len(without.token_ids)
        assert ended or same == request.max_new_tokens or with_budget.forced_mask[same]


@pytest.mark.parametrize("tokenizer", [TOK, OPENS_THINKING], ids=["qwen3", "thinking_2507"])
@pytest.mark.parametrize(
    "prompt", ["What", "<think>Hm", [{"role": "user", "content": "Hi"}]], ids=["text", "open_text", "messages"]
)
def test_a_budget_of_0_is_enable_thinking_false(tokenizer, prompt):
    for seed in range(4):
        options = dict(sampling=Sampling(temperature=0.9, top_k=20, seed=seed), max_new_tokens=LIMIT)
        model = tiny_models.model(seed)
        (zero,) = qwen3_jax.generate(model, tokenizer, [prompt], thinking_budget=0, **options)
        (off,) = qwen3_jax.generate(model, tokenizer, [prompt], enable_thinking=False, **options)
        (both,) = qwen3_jax.generate(model, tokenizer, [prompt], enable_thinking=False, thinking_budget=0, **options)
        assert zero == off == both
        assert zero.usage.thinking_tokens == 0
        # Where the prompt opens thinking all the same, the stop text ends it at once.
        is_open = prompt == "<think>Hm" or (tokenizer is OPENS_THINKING and not isinstance(prompt, str))
        assert zero.token_ids[: len(STOP)] == STOP if is_open else not any(zero.forced_mask)
        assert (zero.thinking is not None) == is_open
        if is_open:
            assert zero.thinking == STOP_TEXT.split("\n</think>")[0].strip("\n")


def test_unlimited_is_a_huge_budget():
    tokens = ThinkingTokens.of(TOK)
    prompt = tuple(TOK.encode("<think>"))
    for seed in range(3):
        engine = Engine(tiny_models.model(seed), rows=4, cache_tokens=512)
        taken = {}
        for budget in (None, 10**12, 2**31 - 1):
            sampling = Sampling(temperature=1.0, seed=seed)
            taken[
                engine.submit(
                    qwen3_jax.Request(prompt, sampling, 40, budget=budget, thinking=True, thinking_tokens=tokens)
                )
            ] = []
        while engine.busy:
            for token in engine.step():
                taken[token.number].append(token.id)
        assert [len(ids) for ids in taken.values()] == [40] * 3
        assert len(set(map(tuple, taken.values()))) == 1


CHAT = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "options", "is_open"),
    [
        (TOK, "<think>\nLet me", {}, True),
        (TOK, "<think>\nLet me</think>", {}, False),
        (TOK, "</think><think>", {}, True),
        (TOK, [TOK.think_start_id], {}, True),
        (TOK, CHAT, {}, False),
        (OPENS_THINKING, CHAT, {}, True),
        (TOK, [{"role": "user", "content": "What does <think> mean?"}], {}, False),
        (TOK, "<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n", {}, False),
        (TOK, [*CHAT, {"role": "assistant", "content": "<think>\nLet me"}], {"continue_final_message": True}, True),
        (TOK, [*CHAT, {"role": "assistant", "reasoning_content": "Let me"}], {"continue_final_message": True}, True),
        (TOK, [*CHAT, {"role": "assistant", "content": "It is"}], {"continue_final_message": True}, False),
        (TOK, [*CHAT, {"role": "assistant", "content": "The <think> tag"}], {"continue_final_message": True}, False),
        (
            TOK,
            [*CHAT, {"role": "assistant", "content": "<think>\nLet <think>"}],
            {"continue_final_message": True},
            True,
        ),
        (TOK, "<|im_start|>assistant\n\n<think>\n", {}, True),
        (TOK, "<|im_start|>assistant\n<think>\n</think>\n\nUse <think>", {}, False),
    ],
)
def test_which_prompts_leave_thinking_open(tokenizer, prompt, options, is_open):
    """An open prompt's first tokens are thinking and count; a tag that someone typed opens nothing."""
    for seed in range(6):
        (result,) = qwen3_jax.generate(
            tiny_models.model(seed, tag_scale=0.0),  # no tag is likely
            tokenizer,
            [prompt],
            sampling=Sampling(temperature=1.0, top_k=20, seed=seed),
            max_new_tokens=48,
            thinking_budget=4,
            **options,
        )
        if result.token_ids[:5] and TOK.think_start_id not in result.token_ids and len(result.token_ids) == 48:
            if is_open:
                assert result.forced_mask == [False] * 4 + [True] * len(STOP) + [False] * (44 - len(STOP))
                assert result.usage.thinking_tokens == 4
                assert result.thinking.endswith("directly now.")
            else:
                assert not any(result.forced_mask)
                assert result.usage.thinking_tokens == 0
                assert result.thinking is None
            return
    pytest.fail("every answer had a tag or ended early")


WAYS: dict[str, dict[str, Any]] = {
    "preemptions": {},
    "lookup_and_preemptions": dict(speculation=LOOKUP),
    "draft": dict(speculation="itself"),
    "draft_and_preemptions": dict(speculation="another"),
}
MARKS = {"draft": pytest.mark.soak, "draft_and_preemptions": pytest.mark.slow, "preemptions": pytest.mark.slow}
WITH_MARKS = [pytest.param(way, marks=MARKS.get(way, ())) for way in WAYS]


@functools.cache
def engine_of(way: str) -> Engine:
    """One for all examples: the cache is full of earlier requests."""
    options = SHAPE | WAYS[way]
    if "draft" in way:
        draft = tiny_models.model(6 if options["speculation"] == "itself" else 7, eos=False)
        options |= DRAFT_SHAPE | dict(speculation=DraftModel(draft, 3))
    engine = Engine(tiny_models.model(6, eos=False), **options)
    leave(engine, 192 if "preemptions" in way else 1024)
    return engine


@st.composite
def token_requests(draw):
    """A request as the engine takes it. Few have budgets that do not bind."""
    text = draw(st.sampled_from(["", "What", "<think>\n", "<think>Hm", "<think></think>", "<tool_call>", "x" * 60]))
    ids = (*TOK.encode(text), *draw(st.lists(st.integers(0, tiny_models.VOCABULARY - 1), min_size=1, max_size=12)))
    tokens = ThinkingTokens.of(TOK)
    budget = draw(st.one_of(st.none(), st.integers(0, 12), st.integers(0, 40)))
    limit = draw(st.integers(1, 24)) + (0 if budget is None else budget + len(STOP))
    place = tokens.place(ids, TOK.im_start_id)
    eos = frozenset({TOK.im_end_id} if draw(st.booleans()) else ())
    thinking, answering = place == "thinking", place == "answer"
    return TokenRequest(ids, draw(samplings(2.0)), limit, eos, budget, thinking, tokens, answering=answering)


@pytest.mark.parametrize("count", [3, pytest.param(30, marks=pytest.mark.soak)])
@pytest.mark.parametrize("way", WITH_MARKS)
def test_budgets_hold_under_speculation_and_preemption(way, count):
    """About 57 rows an example: the budget is never exceeded; stop text and mask are exact."""
    engine = engine_of(way)
    health = [HealthCheck.too_slow, HealthCheck.data_too_large]
    examples = settings(max_examples=count, suppress_health_check=health, phases=[Phase.generate, Phase.shrink])
    examples(given(st.lists(token_requests(), min_size=55, max_size=60))(lambda requests: holds(engine, requests)))()
    if "preemptions" in way:
        assert engine.stats.preemptions > 10
    if engine.speculation is not None:
        assert engine.stats.accepted > 100


def holds(engine: Engine, requests) -> None:
    """Answer all requests and check each against the rules."""
    numbers = [engine.submit(request) for request in requests]
    answers: dict[int, list] = {number: [] for number in numbers}
    while engine.busy:
        for token in engine.step():
            answers[token.number].append(token)
    for number, request in zip(numbers, requests, strict=True):
        tokens = answers[number]
        result = SimpleNamespace(token_ids=[t.id for t in tokens], forced_mask=[t.forced for t in tokens])
        section = section_of(request.prompt)
        assert (request.thinking, request.answering) == (section.thinking, section.answering)
        assert replay(result, section, request.budget) == sum(t.thinking for t in tokens)
        assert tokens[-1].finish == ("stop" if tokens[-1].id in request.eos else "length")
        assert tokens[-1].finish == "stop" or len(tokens) == request.max_new_tokens


def test_another_stop_text_is_inserted_verbatim():
    text = "\nOut of time.\n</think>\nSo: "
    prompt = [TOK.think_start_id]
    model = tiny_models.model(3, tag_scale=0.0)
    (result,) = qwen3_jax.generate(
        model, TOK, [prompt], thinking_budget=2, max_new_tokens=40, thinking_stop_text=text,
        sampling=Sampling(temperature=0.0),
    )  # fmt: skip
    forced = [token for token, was in zip(result.token_ids, result.forced_mask, strict=True) if was]
    assert forced == TOK.encode(text)
    assert text in TOK.decode(result.token_ids)
    assert result.content.startswith("So: ")


@pytest.mark.slow
def test_nothing_is_compiled_after_warm_up_whatever_the_budget_the_setting_or_the_weights():
    """Tracing, lowering and compiling all report to `jax.monitoring`. No other engine has this shape."""
    shape = SMALL_SHAPE | dict(cache_tokens=644, speculation=LOOKUP)
    events: list[str] = []
    counting = [True]
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: events.append(name) if counting[0] and name.startswith("/jax/core/compile") else None
    )
    prompts = ["What", "<think>Hm", CHAT, CHAT, "function"]
    models = [tiny_models.model(seed) for seed in range(4)]

    def generate(seed: int, sampling: Sampling, budget) -> None:
        engine = qwen3_jax.Engine(models[seed], **shape)
        qwen3_jax.generate(engine, TOK, prompts, sampling=sampling, thinking_budget=budget, max_new_tokens=LIMIT)

    try:
        qwen3_jax.Engine(models[0], **shape).warm_up()
        assert events
        events.clear()
        generate(0, Sampling(temperature=0.6, top_k=20, top_p=0.95, seed=1), 7)
        generate(1, Sampling(temperature=0.7, top_k=100, min_p=0.1, seed=2, logprobs=5), 30)
        generate(
            2, Sampling(temperature=1.3, presence_penalty=1.5, repetition_penalty=1.1, stop="zz"), [None, 0, 1, 2, 3]
        )
        generate(3, Sampling(temperature=0.0, n=1, seed=9), 0)
        assert events == []
    finally:
        counting[0] = False
