"""Which prompts are drawn, in which mode and with which budget; what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.errors import UserError
from qwen3_jax.posttraining.prompts import Prompts, read_prompts
from qwen3_jax.posttraining.rewards import Scorer
from qwen3_jax.training.reward_config import RewardPart
from qwen3_jax.training.rl_config import PromptSource, RolloutConfig


def write(path, records) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def questions(count: int, word: str = "What") -> list[dict]:
    return [{"question": f"{word} is {i} + 3?", "answer": str(i + 3), "verifier": "number"} for i in range(count)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[PromptSource]:
    folder = tmp_path_factory.mktemp("prompts")
    big = PromptSource("big", write(folder / "big.jsonl", questions(40)), weight=3, eval_fraction=0.2)
    return [big, PromptSource("small", write(folder / "small.jsonl", questions(7, "How much")))]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(1, 9), min_size=2, max_size=6), st.integers(0, 5), st.data())
def test_draws_do_not_depend_on_interruptions(sources, seed, counts, broken_at, data):
    config = RolloutConfig(thinking=0.6, budget=[0, 20], budget_share=0.5, keep_rate=0.3)
    whole, broken = Prompts(sources, config, seed), Prompts(sources, config, seed)
    solved = data.draw(st.sets(st.integers(0, 60)))
    for number, count in enumerate(counts):
        if number == broken_at % len(counts):
            state = json.loads(json.dumps(broken.state))
            broken.draw(5)  # a round that is lost
            broken = Prompts(sources, config, seed)
            broken.state = state
        draws = whole.draw(count)
        assert broken.draw(count) == draws
        for draw in draws:
            for prompts in (whole, broken):
                prompts.note(draw, 1.0 if draw.number in solved else 0.5)


def test_sources_are_asked_by_weight_in_epochs_and_modes_by_share(sources):
    config = RolloutConfig(thinking=0.75, budget=[0, 9], budget_share=0.5)
    prompts = Prompts(sources, config, 1)
    held_out = prompts.held_out
    assert list(held_out) == ["big"]
    assert 2 <= len(held_out["big"]) <= 16
    draws = prompts.draw(800)
    assert [draw.number for draw in draws] == list(range(800))
    names = [draw.prompt.source for draw in draws]
    for end in range(1, 801):
        assert abs(names[:end].count("big") - 0.75 * end) <= 1
    # Every epoch of a source has each of its prompts once, in another order; held-out ones are never asked.
    of_big = [draw.prompt.id for draw in draws if draw.prompt.source == "big"]
    size = 40 - len(held_out["big"])
    epochs = [of_big[start : start + size] for start in range(0, len(of_big) - size, size)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == size for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert not {prompt.id for prompt in held_out["big"]} & set(of_big)
    # A budget of 0 is the mode without thinking.
    thinking = [draw for draw in draws if draw.mode == "thinking"]
    assert abs(len(thinking) / 800 - 0.75 * 0.95) < 0.05
    budgets = [draw.budget for draw in thinking if draw.budget is not None]
    assert abs(len(budgets) / len(thinking) - 0.45 / 0.95) < 0.06
    assert set(budgets) == set(range(1, 10))
    assert len({draw.seed for draw in draws}) == 800
    assert all(draw.budget is None for draw in draws if draw.mode == "non-thinking")


def test_solved_prompts_are_drawn_less_often(sources):
    prompts = Prompts(sources[1:], RolloutConfig(keep_rate=0.2), 3)
    solved = {prompt.id for prompt in prompts.training[0][:3]}
    counts = dict.fromkeys((prompt.id for prompt in prompts.training[0]), 0)
    for draw in prompts.draw(7):
        prompts.note(draw, 1.0 if draw.prompt.id in solved else 0.9)
    for draw in prompts.draw(700):
        counts[draw.prompt.id] += 1
    kept = np.mean([counts[name] for name in solved]) / np.mean([n for name, n in counts.items() if name not in solved])
    assert abs(kept - 0.2) < 0.05
    # Nothing but solved ones is drawn all the same.
    for prompt in prompts.training[0]:
        prompts._solved.add(prompt.id)
    assert len(Prompts(sources[1:], RolloutConfig(keep_rate=0.0), 3).draw(9)) == 9


def test_a_budget_of_one_value_is_that_value_and_a_share_needs_a_budget(sources):
    for budget in (5, [5, 5]):
        assert {draw.budget for draw in Prompts(sources, RolloutConfig(budget=budget), 0).draw(40)} == {5}
    assert {draw.mode for draw in Prompts(sources, RolloutConfig(budget=0), 0).draw(40)} == {"non-thinking"}
    with pytest.raises(UserError, match=r"rl\.rollouts\.budget_share is read with rl\.rollouts\.budget"):
        RolloutConfig(budget_share=0.5)


def test_records_say_mode_tools_and_pass_rate(tmp_path):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    records = [
        {"question": "One?", "answer": "1", "mode": "non-thinking", "pass_rate": 0.5},
        {"messages": [{"role": "user", "content": "Two?"}], "tools": [tool], "pass_rate": 1},
        {"messages": [{"role": "user", "content": "Three?"}, {"role": "assistant", "content": "3"}], "pass_rate": 0.0},
    ]
    path = write(tmp_path / "some.jsonl", [*records, records[0]])
    prompts = read_prompts(PromptSource("some", path))
    assert [prompt.mode for prompt in prompts] == ["non-thinking", None, None]
    assert [len(prompt.tools) for prompt in prompts] == [0, 1, 0]
    assert [prompt.messages[-1]["content"] for prompt in prompts] == ["One?", "Two?", "Three?"]
    assert prompts[1].location.endswith("some.jsonl:2")
    some = read_prompts(PromptSource("some", path, pass_rate=[0.2, 0.9]))
    assert [prompt.messages[0]["content"] for prompt in some] == ["One?"]
    for record, reason in (
        ({"answer": "1"}, r"bad.jsonl:1: .*no question"),
        (
            {"question": "One?", "mode": "slow"},
            r"bad.jsonl:1: mode is 'slow'; it must be one of thinking, non-thinking",
        ),
        ({"question": "One?"}, r"bad.jsonl:1: it has no pass_rate"),
    ):
        bad = PromptSource("bad", write(tmp_path / "bad.jsonl", [record]), pass_rate=[0, 1])
        with pytest.raises(UserError, match=reason):
            read_prompts(bad)
    with pytest.raises(UserError, match="'some': no prompt is left to train on"):
        Prompts([PromptSource("some", path, pass_rate=[0.6, 0.7])], RolloutConfig(), 0)
    with pytest.raises(UserError, match=r"two\.jsonl:1: its answers cannot be scored: why\."):
        Prompts([PromptSource("two", write(tmp_path / "two.jsonl", records))], RolloutConfig(), 0).check(
            lambda _record, _messages: "why"
        )


def test_a_position_holds_for_its_own_prompts_alone(sources, tmp_path):
    """Order and epochs depend on what the files hold, so that a run with others would go on somewhere else."""
    state = Prompts(sources, RolloutConfig(), 0).state
    changed = dataclasses.replace(sources[1], path=write(tmp_path / "small.jsonl", questions(8, "How much")))
    with pytest.raises(UserError, match=r"rl\.prompts 'big', 'small': the files hold other prompts .*; restore them"):
        Prompts([sources[0], changed], RolloutConfig(), 0).state = state
    Prompts(sources, RolloutConfig(), 0).state = state


def test_episodes_of_one_question_are_told_apart_by_their_records(tmp_path, capsys):
    """An environment reads the record: "Guess my number." is another task with another number."""
    records = [{"question": "Guess my number.", "answer": number} for number in (*range(20), 3)]
    source = PromptSource("guess", write(tmp_path / "guess.jsonl", records), eval_fraction=0.3)
    assert len(read_prompts(source)) == 1
    assert "20 prompts occur more than once" in capsys.readouterr().err
    prompts = Prompts([source], RolloutConfig(keep_rate=0.5), 0, by_record=True)
    asked = [*prompts.training[0], *prompts.held_out["guess"]]
    assert sorted(prompt.record["answer"] for prompt in asked) == list(range(20))
    assert len({prompt.id for prompt in asked}) == 20
    assert "1 prompts occur more than once" in capsys.readouterr().err


def test_verifiers_read_the_prompt_in_every_form_of_record(tmp_path):
    """`thinking` and `reward` judge by the messages of the prompt, which a record with a question alone does not have."""
    asked = [
        {"question": "What is 2 + 3?", "answer": "5"},
        {"messages": [{"role": "user", "content": "What is 3 + 3?"}], "answer": "6"},
    ]
    prompts = Prompts([PromptSource("sums", write(tmp_path / "sums.jsonl", asked))], RolloutConfig(), 0)
    with Scorer([RewardPart(verifier="number"), RewardPart(verifier="thinking", gate=True)]) as scorer:
        prompts.check(scorer.unusable)
