"""Thinking that several budgets share is generated once, and every answer is the one that it would be alone."""

import dataclasses
import functools

import pytest

import qwen3_jax
from qwen3_jax import Engine
from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.engine_source import EngineSource
from qwen3_jax.evaluation.plan import Plan
from qwen3_jax.evaluation.task import Problem
from qwen3_jax.generation import Options, PromptLookup, resolve
from tests.helpers import tiny_models
from tests.helpers.engine_runs import SHAPE, ids, leave, run
from tests.helpers.evaluation_runs import BUDGETS, SUMS, engine_source, planned, samples_of, sums, thinker

HOT = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
PENALTIES = HOT | {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.1}


@functools.cache
def whole_samples(sampling: str) -> dict:
    """The samples of a plan without shared thinking."""
    return samples_of(plan_of(sampling), engine_source(share=False))


def plan_of(sampling: str) -> Plan:
    return planned(sums(7), modes=("thinking", "non-thinking"), sampling=SAMPLINGS[sampling])


SAMPLINGS = {
    "greedy": {"temperature": 0},
    "hot": HOT,
    "penalties": PENALTIES,
    "stops": HOT | {"stop": ("a", "</think>", "1")},
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        ("greedy", {}),
        ("hot", {"tight": True}),
        pytest.param("penalties", {"offline": True}, marks=slow),
        pytest.param("hot", {"tight": True, "offline": True}, marks=slow),
        pytest.param("hot", {"rows": 3}, marks=pytest.mark.soak),
        pytest.param("greedy", {"prefix_cache": False, "rows": 1}, marks=slow),
        pytest.param("hot", {"speculation": PromptLookup(3, shortest=1)}, marks=slow),
        pytest.param("stops", {}, marks=slow),
    ],
)
def test_answers_that_share_their_thinking_equal_those_generated_whole(sampling, options):
    """In any company and batch size; the whole ones are those of `generate`, one by one."""
    plan = plan_of(sampling)
    options = dict(options)
    tight = options.pop("tight", False)
    source = engine_source(**options)
    if tight:
        leave(source._engine, 192)
    shared = samples_of(plan, source)
    whole = whole_samples(sampling)
    assert shared == whole
    thought = [s for s in whole.values() if s["thinking_tokens"]]
    assert len({s["thinking_tokens"] for s in thought if s["budget"] is None}) > 2
    assert sum(s["halted"] for s in thought if s["budget"] is not None) >= 5
    assert any(not s["halted"] for s in thought if s["budget"] is not None), "some budgets are not used up"
    engine = Engine(thinker(), **SHAPE)
    for item in [item for family in plan.families() for item in family][::13]:
        answer = qwen3_jax.generate(
            engine, tiny_models.tokenizer(), [list(item.question.problem.prompt)], sampling=item.sampling, max_new_tokens=120,
            enable_thinking=item.enable_thinking, thinking_budget=item.budget,
        )[0]  # fmt: skip
        sample = shared[item.key]
        assert (sample["text"], sample["thinking"], sample["content"]) == (answer.text, answer.thinking, answer.content)
        usage = answer.usage
        counts = usage.prompt_tokens, usage.completion_tokens, usage.thinking_tokens, usage.forced_tokens
        names = ("prompt_tokens", "completion_tokens", "thinking_tokens", "forced_tokens")
        assert tuple(sample[name] for name in names) == counts
        assert sample["finish_reason"] == answer.finish_reason


def test_shared_thinking_is_generated_once():
    plan = planned(sums(3), sampling={"temperature": 0})
    tokens = {}
    for share in (True, False):
        source = engine_source(share=share)
        samples_of(plan, source)
        tokens[share] = source._engine.stats.decode_tokens
    assert tokens[True] < 0.75 * tokens[False]


def test_limits_that_cut_thinking_or_leave_no_room_give_the_same_answers():
    """Answers cut off in their thinking, budgets of just more than a limit holds, a stop text that does not fit."""
    stop = len(tiny_models.tokenizer().encode(qwen3_jax.generation.STOP_TEXT))
    for limit in (stop + 6, stop + 12):
        plan = planned(sums(3), sampling=HOT, max_new_tokens=limit, budgets=(None, 4, 3, 1))
        assert samples_of(plan, engine_source()) == samples_of(plan, engine_source(share=False))


def test_a_prompt_beyond_the_context_is_named_and_the_others_are_asked():
    long = Problem("long", ({"role": "user", "content": "What is 2 + 3? " * 200},), "5")
    limits = [Problem("near", ({"role": "user", "content": "What is 2 + 3? " * 60},), "5")]
    plan = planned([*sums(1), long, *limits], sampling={"temperature": 0}, budgets=(None, 9))
    samples = samples_of(plan, engine_source())
    assert {key[1] for key, sample in samples.items() if sample["finish_reason"] == "too_long"} == {"long"}
    sample = samples["sums", "long", "thinking", 9, 0]
    assert sample["verdict"]["status"] == "error"
    assert "maximum context length is" in sample["verdict"]["reason"]
    assert samples["sums", "0", "thinking", 9, 0]["completion_tokens"] > 0


def test_limits_and_budgets_are_lowered_to_what_the_context_holds_and_the_sample_says_so():
    prompt = "What is 2 + 3? " * 60
    length = len(tiny_models.tokenizer().apply_chat_template([{"role": "user", "content": prompt}], tokenize=True))
    stop = len(tiny_models.tokenizer().encode(qwen3_jax.generation.STOP_TEXT))
    problem = Problem("near", ({"role": "user", "content": prompt},), "5")
    plan = planned([problem], sampling={"temperature": 0}, budgets=(None, 500, 2), max_new_tokens=900)
    options = dict(max_length=length + stop + 40)
    samples = samples_of(plan, engine_source(**options))
    assert samples == samples_of(plan, engine_source(share=False, **options))
    sample = samples["sums", "near", "thinking", 500, 0]
    assert sample["max_new_tokens"] < stop + 60
    assert sample["thinking_budget"] < 50
    assert samples["sums", "near", "thinking", 2, 0]["thinking_budget"] == 2


@pytest.mark.parametrize(
    ("problem", "config", "message"),
    [
        (
            {},
            dict(budgets=(None, 200)),
            r"task sums, problem 0: thinking_budget is 200; .* set max_new_tokens to at least",
        ),
        (dict(prompt=({"role": "nobody", "content": "a"},)), {}, r"task sums, problem 0: .*role"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_task_and_problem(problem, config, message):
    plan = planned([dataclasses.replace(sums(1)[0], **problem)], **config)
    with pytest.raises(UserError, match=message):
        samples_of(plan, engine_source())


def test_texts_are_continued_and_tools_are_given_to_the_template():
    calls = tiny_models.TOOLS
    problems = [Problem("text", "2 + 3 =", "5"), Problem("tools", sums(1)[0].prompt, "5", tools=tuple(calls))]
    plan = planned(problems, sampling={"temperature": 0})
    asked = {item.key: item for family in plan.families() for item in family}
    assert sorted(key.mode for key in asked) == ["text"] + ["thinking"] * len(BUDGETS)
    samples = samples_of(plan, engine_source())
    engine = Engine(thinker(), **SHAPE)
    for key, prompt, tools in (
        (("sums", "text", "text", None, 0), "2 + 3 =", None),
        (("sums", "tools", "thinking", None, 0), list(sums(1)[0].prompt), calls),
    ):
        answer = qwen3_jax.generate(
            engine, tiny_models.tokenizer(), [prompt], sampling=asked[key].sampling, max_new_tokens=120, tools=tools
        )[0]
        assert (samples[key]["text"], samples[key]["prompt_tokens"]) == (answer.text, answer.usage.prompt_tokens)
        written = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
        assert samples[key]["tool_calls"] == written


def test_a_stream_that_is_closed_leaves_the_engine_idle():
    source = engine_source()
    stream = source.answers(planned(sampling={"temperature": 0}).families())
    next(stream)
    stream.close()
    assert not source._engine.busy
    assert isinstance(source, EngineSource)


@slow
def test_a_sample_does_not_depend_on_the_tasks_and_samples_beside_it():
    alone = planned(sums(2), sampling=HOT, samples=1, budgets=(9,))
    other = dataclasses.replace(SUMS, name="other")
    asked = dataclasses.replace(alone.config, modes=None, samples=3, budgets=(20, 9))
    both = Plan.of([(other, sums(3)), (SUMS, sums(3))], asked, thinks=True, model="tiny")
    few, many = samples_of(alone, engine_source()), samples_of(both, engine_source(rows=2))
    assert all(many[key] == sample for key, sample in few.items())
    texts = [many["sums", "1", "thinking", 9, sample]["text"] for sample in range(3)]
    assert len(set(texts)) == 3, "samples have seeds of their own"
    assert many["other", "1", "thinking", 9, 0]["text"] != texts[0]


def test_the_engine_continues_an_answer_behind_its_thinking_and_refuses_what_it_cannot_continue():
    engine, tokenizer = Engine(thinker(), **SHAPE), tiny_models.tokenizer()
    prompt = list(sums(1)[0].prompt)

    def request(budget, **options):
        sampling = qwen3_jax.Sampling(temperature=0.8, seed=3)
        asked = Options(sampling=sampling, max_new_tokens=90, enable_thinking=True, thinking_budget=budget, **options)
        return resolve(prompt, asked, engine.model, tokenizer)[0]

    (longer,) = run(engine, [request(None)])
    (expected,) = run(engine, [request(6)])
    thinking = [token.id for token in longer][: next(i for i in range(90) if sum(t.thinking for t in longer[:i]) == 6)]
    stop = request(6).thinking_tokens.stop
    number = engine.submit(request(6), thinking)
    got = []
    while engine.busy:
        got += engine.step()
    assert {token.number for token in got} == {number}
    assert [*thinking, *stop, *ids(got)] == ids(expected)
    assert got[-1].finish == expected[-1].finish
    assert all(token.cached <= len(request(6).prompt) for token in got)
    reported = dataclasses.replace(request(6), sampling=qwen3_jax.Sampling(temperature=0, logprobs=2))
    short = dataclasses.replace(request(6), max_new_tokens=len(thinking) + len(stop))
    for refused in (reported, short, request(None)):
        with pytest.raises(UserError, match="this answer cannot be continued"):
            engine.submit(refused, thinking)
    assert not engine.busy
