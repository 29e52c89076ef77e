"""Rewards: verifiers from records, gates, weights, penalties, lost answers, reward models. Judges: test_judge_rewards.py."""

import dataclasses
import json
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import yaml
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import qwen3_jax
from qwen3_jax.cli.configuration import parse_configuration
from qwen3_jax.errors import UserError
from qwen3_jax.model import RewardModel
from qwen3_jax.posttraining import rewards
from qwen3_jax.posttraining.jobs import Jobs, TimeIsUp
from qwen3_jax.posttraining.rewards import PartScore, Scorer, combine, overlong_penalty
from qwen3_jax.posttraining.verifier_inputs import verifier_input
from qwen3_jax.training.reward_config import RewardPart, check_rewards
from qwen3_jax.verifiers import names
from tests.helpers import faulty_verifier, tiny_models
from tests.helpers.isolated import require_isolation
from tests.helpers.sampled import sampled

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ASKED = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
GYM = {"set": "chain_sum", "config": {"seed": 1}, "index": 0}
FUNCTION = "def add(a, b):\n    return a + b"
# verifier -> (what the record has, a right answer, a wrong one)
RECORDS = {
    "math": ({"answer": "\\frac{1}{2}"}, "\\boxed{0.5}", "\\boxed{2}"),
    "exact": ({"answer": "Paris"}, "Paris", "Rome"),
    "number": ({"reference": 4}, "It is 4", "It is 5"),
    "choice": ({"answer": "B", "settings": '{"letters": "ABC"}'}, "The answer is (B).", "The answer is (C)."),
    "regex": ({"answer": "a+"}, "aaa", "b"),
    "json": ({"answer": {"type": "integer"}}, "4", '"4"'),
    "ifeval": ({"prompt": "Hi", **ASKED}, "No comma here", "A, comma"),
    "code": ({"assertions": ["assert add(1, 2) == 3"]}, FUNCTION, FUNCTION.replace("+", "-")),
    "livecodebench": (
        {"public_test_cases": json.dumps([{"input": "1", "output": "2"}]), "answer": "unused"},
        "print(int(input()) + 1)", "print(1)",
    ),
    "tool_calls": (
        {"answer": [{"name": "weather", "arguments": {"city": "Paris"}}], "tools": [WEATHER]},
        CALL, CALL.replace("Paris", "Rome"),
    ),
    "tool_use": (
        {"answer": {"calls": [{"name": "weather", "arguments": {"city": "Paris"}}]}, "tools": [WEATHER]}, CALL, "Sunny.",
    ),
    "recall": ({"answer": ["Paris", "Rome"]}, "Paris and Rome", "Oslo"),
    "premise": ({"premise": False}, "That never happened.", "In 1900."),
    "reasoning_gym": (GYM, None, "<answer>nothing</answer>"),
    "thinking": (
        {"messages": [{"role": "user", "content": "Hi /no_think"}]},
        "<think>\n\n</think>\n\nHi", "<think>\na\n</think>\n\nHi",
    ),
    "repetition": ({}, "All is well.", "again and again " * 40),
    "language": ({"answer": "zh"}, "你好，世界", "Hello there"),
    "length": ({"answer": {"max": 3}}, "One two three", "One two three four five six seven"),
    "table": ({"answer": {"format": "csv", "columns": ["a"], "rows": [[1]]}}, "a\n1", "a\n2"),
    "checks": ({"answer": [{"verifier": "exact", "reference": "a"}]}, "a", "b"),
}  # fmt: skip


def test_every_verifier_is_usable_from_a_record():
    """`verifier: record` and the verifier by name give the same; what each needs lies in the record."""
    require_isolation()
    from qwen3_jax.verifiers.reasoning_gym import generate

    question, answer = generate("chain_sum", GYM["config"], 1)[0]
    fields, _, bad = RECORDS["reasoning_gym"]
    table = RECORDS | {
        "reasoning_gym": ({**fields, "question": question, "answer": answer}, f"<answer>{answer}</answer>", bad)
    }
    assert table.keys() == {name for name in names() if not name.startswith("test_")} - {"reward"}  # below
    hi = [{"role": "user", "content": "Hi"}]
    records = {name: {"messages": hi, "verifier": name, **fields} for name, (fields, _, _) in table.items()}
    answers = {name: [sampled(text, records[name]) for text in texts] for name, (_, *texts) in table.items()}
    with Scorer([RewardPart()]) as scorer:
        assert [scorer.unusable(record, hi) for record in records.values()] == [""] * len(table)
        flat = scorer.score([one for several in answers.values() for one in several])
    for place, (name, several) in enumerate(answers.items()):
        scored = flat[2 * place : 2 * place + 2]
        assert (scored[0].reward, scored[1].reward < 1) == (1.0, True), (name, scored)
        assert [one.parts[0].status in ("wrong", "unparsable") for one in scored] == [False, True], scored
        given = records[name], several[0].messages, "thinking", None
        assert verifier_input(RewardPart(verifier=name), *given) == verifier_input(RewardPart(), *given)


def test_a_named_verifier_of_form_does_not_take_the_answer_of_another():
    record = {"verifier": "number", "answer": "42", "settings": {"take": "only"}, "messages": []}
    style = [RewardPart(verifier=name) for name in ("language", "json", "repetition")]
    with Scorer([RewardPart(), *style]) as scorer:
        assert scorer.unusable(record, ()) == ""
        (scored,) = scorer.score([sampled("42", record)])
        assert [part.status for part in scored.parts] == ["right", "unparsable", "right", "right"]
        without = Scorer([RewardPart(verifier="length")]).unusable(record, ())
        assert "the record has no answer or reference or length" in without
    assert verifier_input(style[0], {"language": "de", **record}, (), "thinking", None)[1] == "de"


@pytest.mark.parametrize(
    ("mode", "budget", "flag", "thinks"),
    [
        ("thinking", None, "", True), ("thinking", 64, " /think", True), ("thinking", None, " /no_think", False),
        ("thinking", 0, "", False), ("non-thinking", None, " /think", False), ("thinking", None, " /no_think x /think", True),
    ],
)  # fmt: skip
def test_the_mode_that_is_asked_for_is_read_from_mode_budget_and_flags(mode, budget, flag, thinks):
    messages = ({"role": "user", "content": f"Hi{flag}"},)
    assert verifier_input(RewardPart(verifier="thinking"), {}, messages, mode, budget)[1] is thinks


def test_a_record_that_cannot_be_judged_says_why_and_costs_itself():
    records = [
        ({}, "the record names no verifier"),
        ({"verifier": "maths"}, "there is no verifier 'maths'"),
        ({"verifier": "math"}, "the verifier 'math' needs a reference"),
        ({"verifier": "number", "answer": 4, "settings": {"takes": "last"}}, "has no setting 'takes'"),
    ]
    with Scorer([RewardPart()]) as scorer:
        for record, reason in records:
            assert reason in scorer.unusable(record, ())
        whole = {"verifier": "number", "answer": 4}
        scored = scorer.score([sampled("4", record) for record, _ in records] + [sampled("4", whole)])
    assert [one.reward for one in scored] == [None, None, None, None, 1.0]
    for one, (_, reason) in zip(scored, records, strict=False):
        assert reason in one.lost
    assert scorer.statistics.lost == 0.8


def test_prompts_that_open_the_thinking_section_are_judged_by_what_follows_it():
    record = {"verifier": "number", "answer": 5}
    opened = sampled("7?\n</think>\n\n5", record, in_thinking=True)
    unclosed = sampled("it is 5", record, in_thinking=True)
    plain = sampled("5", record)
    with Scorer([RewardPart()]) as scorer:
        assert [one.reward for one in scorer.score([opened, unclosed, plain])] == [1.0, 0.0, 1.0]


def test_what_fails_costs_its_own_answer_and_is_no_wrong_answer():
    assert faulty_verifier.faulty
    record = {"messages": [], "answer": "x"}
    faults = {"test_faults_in_process": ("loop", "exit", "lie"), "test_faults_here": ("hang", "raise", "lie")}
    for name, answers in faults.items():
        began = time.monotonic()
        with Scorer([RewardPart(verifier=name)], seconds=1.0 if name.endswith("here") else 20.0) as scorer:
            scored = scorer.score([sampled(text, record) for text in (*answers, "good", "good", "good")])
        assert time.monotonic() - began < 20
        assert [one.reward for one in scored] == [None, None, None, 1.0, 1.0, 1.0]
        assert [one.parts[0].status for one in scored[:3]] == ["timed_out", "error", "error"], scored
        assert all(one.lost.startswith(f"{name}: ") for one in scored[:3])
        statistics = scorer.statistics.parts[name]
        assert (statistics.answers, statistics.mean) == (6, 1.0)
        assert statistics.shares["timed_out"] == pytest.approx(1 / 6)
        assert statistics.shares["error"] == pytest.approx(2 / 6)
        assert statistics.shares["wrong"] == 0
        assert scorer.statistics.metrics()[f"{name}.timed_out"] == pytest.approx(1 / 6)


def parts_of(*fields: dict) -> list[RewardPart]:
    return [RewardPart(**one) for one in fields]


@given(
    st.lists(st.tuples(st.floats(-3, 3), st.none() | st.floats(-2, 2)), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1), st.none() | st.floats(0, 1)), max_size=3),
)
def test_the_reward_is_the_weighted_sum_and_a_failed_gate_decides(plain, gates):
    parts = [RewardPart(verifier="exact", name=f"p{i}", weight=weight) for i, (weight, _) in enumerate(plain)]
    parts += [
        RewardPart(verifier="exact", name=f"g{i}", gate=True, pass_at=at, below=to)
        for i, (at, to, _) in enumerate(gates)
    ]
    values = [score for _, score in plain] + [score for _, _, score in gates]
    scores = [
        PartScore(part.label, value, "error" if value is None else "scored", "")
        for part, value in zip(parts, values, strict=True)
    ]
    failed = [below for at, below, score in gates if score is not None and score < at]
    reward = combine(parts, scores)
    if failed:
        assert reward == min(failed)
    elif None in [score for weight, score in plain if weight] + [score for _, _, score in gates]:
        assert reward is None
    else:
        counted = [(weight, score) for weight, score in plain if weight]  # a part of weight 0 is for figures alone
        assert reward == pytest.approx(sum(weight * score for weight, score in counted), abs=1e-12)


def test_of_several_failed_gates_the_least_value_holds():
    parts = [
        RewardPart(),
        *(RewardPart(verifier="exact", name=f"g{to}", gate=True, below=to) for to in (0.5, -0.5, 0.25)),
    ]
    scores = [PartScore(part.label, float(part.label == "record"), "scored", "") for part in parts]
    assert combine(parts, scores) == -0.5


def test_a_thread_that_does_not_return_is_replaced():
    ended = threading.Event()
    jobs = Jobs({"hangs": lambda: ended.wait(30), "good": lambda: 7, "raises": lambda: int("x")}, 1, 0.5, "test")
    results = jobs.results()
    ended.set()
    assert isinstance(results["hangs"], TimeIsUp)
    assert results["good"] == 7
    assert isinstance(results["raises"], ValueError)


def test_gates_weights_and_penalties_of_real_answers():
    parts = parts_of(
        {"verifier": "number", "weight": 2.0},
        {"verifier": "repetition", "gate": True, "below": -0.5},
        {
            "verifier": "length",
            "name": "short",
            "settings": {"unit": "words"},
            "reference_key": "words",
            "weight": 0.25,
        },
        {"overlong": 4, "weight": 0.5},
    )
    record = {"verifier": "number", "answer": 4, "words": {"max": 2}}
    answers = [
        sampled("It is 4", record, tokens=3),  # 3 words: half too long; score 0.5
        sampled("4", record, tokens=9),  # one token into the buffer
        sampled("5 again and again " + "and again " * 50, record, tokens=3),
        sampled("4", record, tokens=10, forced=2),
    ]
    with Scorer(parts, max_new_tokens=12) as scorer:
        scored = scorer.score(answers)
    assert [one.reward for one in scored] == pytest.approx([2 + 0.25 * 0.5, 2 + 0.25 - 0.5 * 0.25, -0.5, 2.25])
    assert scorer.statistics.parts["repetition"].shares["wrong"] == 0.25
    assert scorer.statistics.mean == pytest.approx(np.mean([one.reward for one in scored]))


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 1200))
def test_overlong_is_dapos_equation(buffer, more, tokens):
    limit = buffer + more
    expected = np.where(
        tokens <= limit - buffer, 0, np.where(tokens <= limit, ((limit - buffer) - tokens) / buffer, -1)
    )
    assert overlong_penalty(tokens, limit, buffer) == pytest.approx(float(expected), abs=1e-12)


def test_unfinished_answers_are_dropped_or_have_a_value():
    record = {"verifier": "exact", "answer": "4"}
    answers = [sampled("4", record, finish="length"), sampled("4", record), sampled("4", record, finish="tool_calls")]
    for value, expected in (("drop", None), (-1, -1.0), (None, 1.0)):
        parts = parts_of({"verifier": "record"}, *([] if value is None else [{"unfinished": value}]))
        with Scorer(parts) as scorer:
            scored = scorer.score(answers)
        assert [one.reward for one in scored] == [expected, 1.0, 1.0]
        assert scorer.statistics.lost == (1 / 3 if value == "drop" else 0)
    assert scored[0].lost == ""


def test_the_scorer_of_nothing():
    with Scorer([RewardPart()]) as scorer:
        assert scorer.score([]) == []
    assert scorer.statistics.metrics() == {"lost": 0.0}


@dataclass(frozen=True)
class Config:
    """As the run's.

    Attributes:
        rewards: the parts.
    """

    rewards: list[RewardPart] = field(default_factory=list)


def read(tmp_path, *parts) -> list[RewardPart]:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"rewards": list(parts)}))
    return parse_configuration(Config, ["--config", str(file)], "test", "").rewards


def test_a_configuration_file_has_the_parts(tmp_path):
    written = [
        {"verifier": None, "weight": 2},
        {"verifier": "math", "settings": {"seconds": 3.0}, "gate": True},
        {
            "judge": "http://127.0.0.1:8000/v1",
            "model": "x",
            "rubric": "Is it kind and short?",
            "samples": 3,
            "combine": "majority",
        },
        {"reward_model": "DIR", "sigmoid": True, "scale": 0.5, "offset": -1},
        {"overlong": 512},
        {"unfinished": "drop"},
    ]
    parts = read(tmp_path, *written)
    assert [part.kind for part in parts] == ["verifier", "verifier", "judge", "reward_model", "overlong", "unfinished"]
    assert [part.label for part in parts] == ["record", "math", "judge", "reward_model", "overlong", "unfinished"]
    assert read(tmp_path, {"unfinished": -0.5})[0].unfinished == -0.5
    check_rewards(parts, 4096)
    for part, fields in zip(parts, written, strict=True):
        assert part == RewardPart(**fields)
        assert dataclasses.replace(part) == part


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"verifier": "maths"}, "there is no verifier 'maths'.*Did you mean 'math'"),
        ({"verifier": "math", "judge": "http://x"}, "one part has verifier and judge"),
        ({"verifier": "math", "settings": {"second": 3}}, "part 'math': the verifier 'math' has no setting 'second'"),
        ({"settings": {"seconds": 3}}, "settings would go to every verifier"),
        ({"verifier": "math", "samples": 3}, "samples is read by judge alone"),
        ({"verifier": "math", "weight": float("nan")}, "weight is nan"),
        ({"verifier": "math", "pass_at": 0.5}, "pass_at is read by gates alone"),
        ({"verifier": "math", "gate": True, "weight": 2.0}, "a gate is not added"),
        ({"judge": "localhost:8000"}, "is no address of a server"),
        ({"judge": "http://me:secret@host/v1"}, "must not hold a password"),
        ({"judge": "http://x", "rubric": "qualities"}, "no rubric 'qualities'.*Did you mean 'quality'"),
        ({"judge": "http://x", "rubric": "matches_reference"}, "set reference: true"),
        ({"judge": "http://x", "combine": "majority"}, "combine is of several judgements"),
        ({"judge": "http://x", "samples": 2, "temperature": 0}, "samples at temperature 0 are one"),
        ({"overlong": 0}, "overlong is 0; it must be at least 1"),
        ({"overlong": 9, "max_tokens": 8}, "must be at most max_tokens"),
        ({"overlong": 9, "gate": True}, "gate is read by"),
        ({"unfinished": "lose"}, "unfinished"),
        ({"reward_model": "DIR", "dtype": "int8"}, "dtype"),
    ],
)
def test_what_cannot_be_is_refused_by_key(part, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read(tmp_path, part)


def test_a_missing_package_is_refused_by_key(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rl\.rewards, part 'math': .*math-verify: pip install \"qwen3-jax\[eval\]\""):
        RewardPart(verifier="math")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "has no part that scores answers"),
        ([{"verifier": "math", "gate": True}], "has no part that scores answers"),
        ([{"overlong": 9}], "has no part that scores answers"),
        ([{"weight": 0}, {"overlong": 9}], "every part that scores answers has the weight 0"),
        ([{"verifier": "math"}, {"verifier": "math"}], "two parts 'math'; give one of them a name"),
        ([{}, {"unfinished": 0}, {"unfinished": 1, "name": "x"}], "two parts unfinished"),
        ([{}, {"overlong": 200}], "answers have at most 100 tokens"),
    ],
)
def test_parts_that_make_no_reward_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Scorer(parts_of(*fields), max_new_tokens=100)
    assert rewards.Scorer is Scorer


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    model = RewardModel(dataclasses.replace(tiny_models.model().config), rngs=nnx.Rngs(0), scan_layers=False)
    return qwen3_jax.save(model, tiny_models.tokenizer(), tmp_path_factory.mktemp("reward") / "hf")


def test_a_reward_model_scores_the_answer_without_its_thinking(reward_folder):
    model, tokenizer = qwen3_jax.load(reward_folder)
    prompt = [{"role": "user", "content": "2 + 2?"}]
    record = {"messages": prompt}
    answers = [sampled("<think>\nlong\n</think>\n\n4", record), sampled("5", record), sampled("word " * 2000, record)]
    expected = qwen3_jax.reward(
        model, tokenizer, [[*prompt, {"role": "assistant", "content": text}] for text in ("4", "5")]
    )
    parts = parts_of(
        {"reward_model": str(reward_folder), "name": "plain", "scale": 2.0, "offset": 0.5},
        {"reward_model": str(reward_folder), "name": "squashed", "sigmoid": True, "weight": 0.0},
    )
    with Scorer(parts) as scorer:
        scored = scorer.score(answers)
    for one, value in zip(scored, expected, strict=False):
        assert one.reward == pytest.approx(2 * value + 0.5, abs=1e-5)
        assert one.parts[1].score == pytest.approx(1 / (1 + np.exp(-value)), abs=1e-6)
        assert one.parts[0].status == "scored"
    assert scored[2].reward is None
    assert "the model has positions for" in scored[2].lost
    with pytest.raises(UserError, match=r"rl\.rewards, part 'reward_model': .*is neither a folder nor"):
        Scorer(parts_of({"reward_model": str(reward_folder / "none")}))


def test_the_verifier_reward_gets_the_prompt(reward_folder):
    part = RewardPart(verifier="reward", settings={"model": str(reward_folder), "threshold": -1e6})
    record = {"messages": [{"role": "user", "content": "2 + 2?"}], "verifier": "number", "answer": 4}
    with Scorer([part]) as scorer:
        assert scorer.score([sampled("4", record)])[0].reward == 1.0
