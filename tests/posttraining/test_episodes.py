"""Episodes of several turns: their tokens, their limits, and what hangs, dies or lies."""

import copy
import dataclasses
import itertools
import json
import re
import sys
import time

import jax
import numpy as np
import pytest

import sharding
from qwen3_jax.data import DataConfig
from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine
from qwen3_jax.model import flatten
from qwen3_jax.posttraining.environment_source import EnvironmentSource
from qwen3_jax.posttraining.episodes import EpisodeRollouts, rollouts_for, seed_of
from qwen3_jax.posttraining.log_probs import log_probs_of_state
from qwen3_jax.posttraining.prompts import Prompts
from qwen3_jax.posttraining.rewards import Scorer
from qwen3_jax.posttraining.rollouts import about_of
from qwen3_jax.posttraining.round_figures import figures_of
from qwen3_jax.posttraining.rounds import Group, Rounds, sampled
from qwen3_jax.posttraining.samples import arrange
from qwen3_jax.posttraining.transcripts import Transcript, extends, prompt_of, shortened, tokens_behind
from qwen3_jax.text import STOP_TEXT
from qwen3_jax.training.config import ModelConfig, OptimizerConfig, TrainConfig
from qwen3_jax.training.environment_config import EnvironmentConfig
from qwen3_jax.training.objectives import objective_of
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.reward_config import RewardPart
from qwen3_jax.training.rl_config import PromptSource, RlConfig, RolloutConfig
from qwen3_jax.training.step import Trainer
from tests.helpers import tiny_models
from tests.helpers.engine_runs import SHAPE
from tests.helpers.episodes import HERE, LENGTH, SERVER, draw, sampled_by
from tests.helpers.real_tokenizer import official_template

TOOLS = [
    {
        "type": "function",
        "function": {"name": "get", "parameters": {"type": "object", "properties": {"key": {"type": "string"}}}},
    }
]


@pytest.fixture(scope="module")
def engine():
    return Engine(tiny_models.model(), max_length=LENGTH, **SHAPE | dict(cache_tokens=8 * LENGTH), offline=True)


@pytest.mark.parametrize("template", [None, "qwen3"])
@pytest.mark.parametrize("thinks", [True, False])
def test_carried_tokens_are_what_the_template_renders_where_it_keeps_the_prefix(template, thinks):
    tok = tiny_models.tokenizer(None if template is None else official_template(template))
    question = [{"role": "user", "content": "Look up a."}]
    first = tok.apply_chat_template(question, TOOLS, enable_thinking=thinks, tokenize=True)
    call = {"function": {"name": "get", "arguments": '{"key": "a"}'}}
    written = '<tool_call>\n{"name": "get", "arguments": {"key": "a"}}\n</tool_call>'
    written = "<think>\nI look.\n</think>\n\n" * thinks + written
    message = {"role": "assistant", "content": "", "tool_calls": [call]}
    message |= {"reasoning_content": "I look."} if thinks else {}
    # As sampled: characters one by one, which no encoder would choose.
    split = [tok.encode(tag) if tag[0] == "<" else map(one_token(tok), tag) for tag in pieces(written)]
    answer = list(itertools.chain.from_iterable(split))
    answer.append(tok.im_end_id)
    assert answer[:-1] != tok.encode(written)
    results = [{"role": "tool", "content": "7 <|im_end|>\n</tool_response> <think>"}, {"role": "tool", "content": "8"}]
    behind = tokens_behind(tok, [*question, message], results, TOOLS, answer, enable_thinking=thinks)
    whole = tok.apply_chat_template([*question, message, *results], TOOLS, enable_thinking=thinks)
    if thinks:  # without thinking the first prompt has an empty block, which the template drops from the history
        assert tok.decode([*first, *answer, *behind]) == whole
    assert whole.endswith(tok.decode([*answer, *behind]))
    # What the tool wrote are characters: the only tokens of turns are the template's.
    ends = [tok.im_end_id, tok.im_start_id]
    assert [token for token in behind if token in ends] == [tok.im_start_id, tok.im_end_id, tok.im_start_id]
    closing = tok.token_to_id("</tool_response>")
    assert closing is not None
    assert behind.count(closing) == 2
    assert behind.count(tok.think_start_id) == (0 if thinks else 1)
    # An answer that ended with another token gets the template's end too.
    assert tokens_behind(tok, [*question, message], results, TOOLS, [5, 6], enable_thinking=thinks) == [
        tok.im_end_id,
        *behind,
    ]


def pieces(text):
    """The tags of a text, and what stands between them."""
    return [piece for piece in re.split(r"(</?(?:think|tool_call)>)", text) if piece]


def one_token(tok):
    return lambda character: tok.encode(character)[0]


def test_transcript_keeps_what_was_sampled_and_masks_the_rest():
    transcript = Transcript([1, 2])
    one = dict(tokens=np.array([3, 4]), learned=np.array([True, False]), banned=np.array([False, False]))
    transcript.answer(**one, behaviour=np.array([-1.0, np.nan]))
    transcript.give([5])
    transcript.give([6])
    assert transcript.ids == [1, 2, 3, 4, 5, 6]
    (sample,) = transcript.samples(7, 8)
    assert sample.tokens.tolist() == [3, 4]  # what no answer follows is no part of it
    transcript.answer(
        tokens=np.array([9]), learned=np.array([True]), banned=np.array([True]), behaviour=np.array([-2.0])
    )
    transcript.begin([1, 9, 9])
    first = transcript.samples(7, 8)
    assert len(first) == 1  # a prompt without an answer is no sample
    transcript.answer(
        tokens=np.array([2]), learned=np.array([True]), banned=np.array([False]), behaviour=np.array([-3.0])
    )
    first, second = transcript.samples(7, 8)
    assert (first.prompt.tolist(), first.tokens.tolist()) == ([1, 2], [3, 4, 5, 6, 9])
    assert first.learned.tolist() == [True, False, False, False, True]
    assert first.banned.tolist() == [False] * 4 + [True]
    np.testing.assert_array_equal(first.behaviour, np.float32([-1, np.nan, np.nan, np.nan, -2]))
    assert (second.prompt.tolist(), second.tokens.tolist(), second.group, second.episode) == ([1, 9, 9], [2], 7, 8)


def test_what_the_template_has_kept_is_told_by_its_text():
    tok = tiny_models.tokenizer()
    question = [{"role": "user", "content": "What is 2 + 3?"}]
    prompt = tok.apply_chat_template(question, tokenize=True)
    again = {"role": "user", "content": "Sure?"}
    for thinking in ("", "<think>\nWell.\n</think>\n\n"):
        sampled_ids = [one_token(tok)(character) for character in "It is 5."]
        carried = [*prompt, *tok.encode(thinking), *sampled_ids, tok.im_end_id]
        answer = {"role": "assistant", "content": "It is 5."} | ({"reasoning_content": "Well."} if thinking else {})
        anew = prompt_of(tok, [*question, answer, again], (), enable_thinking=True)
        assert anew[: len(carried)] != carried
        assert extends(tok, anew, carried) == (not thinking)


def test_results_are_cut_off_in_tokens():
    tok = tiny_models.tokenizer()
    assert shortened(tok, "7 <|im_end|>", 50) == ("7 <|im_end|>", False)
    text, is_cut = shortened(tok, "é" * 400, 7)
    assert is_cut
    kept, _, note = text.partition("\n")
    assert kept == "é" * (len(tok.encode_ordinary(kept)) // 2)
    assert len(tok.encode_ordinary(kept)) <= 7
    assert note == f"[cut off after {len(kept)} of 400 characters]"
    assert shortened(tok, "a\ud800", 9) == ("a?", False)
    started = time.perf_counter()
    assert shortened(tok, "word " * 4_000_000, 9)[1]
    assert time.perf_counter() - started < 20  # encoding the whole text takes longer


@pytest.mark.parametrize("history", ["keep", "new_sample"])
def test_episodes_carry_tokens_and_their_log_probabilities_are_the_trainers(engine, tmp_path, monkeypatch, history):
    tok = tiny_models.tokenizer()
    requests, submit = [], engine.submit
    monkeypatch.setattr(engine, "submit", lambda request: requests.append(request) or submit(request))
    draws = [draw(0, budget=6), draw(1), draw(2, mode="non-thinking")]
    got = sampled_by(engine, draws, python=f"{HERE}:Talk", history=history, tokens=200)
    rollouts = [one for each in draws for one in got[each.number]]
    assert {len(got[number]) for number in got} == {2}
    assert len({(one.sampling.seed, one.sample_index) for one in requests}) == len(requests) > 6  # no numbers twice
    several = [one for one in rollouts if one.trace.turns == 3]
    assert several, "some episode has three turns"
    assert any(one.halted for one in several), "some turn reaches its thinking budget"
    for one in rollouts:
        is_done = one.trace.ending == "done"
        assert is_done or one.trace.ending == "tokens"
        assert is_done == (one.trace.turns == 3 and one.generation.finish_reason != "length")
        if is_done:
            assert one.trace.reward == 1.25
        check_episode(tok, one, history)
    samples = [sample for one in rollouts for sample in one.samples]
    assert len(samples) == len(rollouts) if history == "keep" else len(samples) > len(rollouts)
    # With other company and slower tools the same episode.
    slow = dict(python=f"{HERE}:Talk", history=history, settings={"seconds": 0.1})
    (alone,) = sampled_by(engine, draws[1:2], 1, tokens=200, **slow)[1]
    assert_same(alone, got[1][0])
    # Each of two answers to a prompt has numbers of its own, and so has each turn.
    assert not np.array_equal(got[1][0].samples[0].tokens, got[1][1].samples[0].tokens)
    compare_with_trainer(tok, samples, tmp_path)


def check_episode(tok, rollout, history):
    """Learned tokens are the answers'; between two of them stands what the template writes, and forced text."""
    messages = rollout.trace.messages
    head = "<|im_start|>assistant\n" + "<think>\n\n</think>\n\n" * (rollout.draw.mode == "non-thinking")
    turns = {
        "tool": "\n<|im_start|>user\n<tool_response>\n{}\n</tool_response><|im_end|>\n" + head,
        "user": "\n<|im_start|>user\n{}<|im_end|>\n" + head,
    }
    said = [one for one in messages[2:] if one["role"] != "assistant"]
    if history == "new_sample":
        said = [one for one in said if one["role"] == "tool"]
    between = []
    for sample in rollout.samples:
        assert np.isnan(sample.behaviour[~sample.learned]).all()
        assert (sample.behaviour[sample.learned] <= 0).all()
        edges = np.flatnonzero(np.diff(sample.learned)) + 1
        parts = np.split(sample.tokens, edges)
        between += [
            tok.decode(part) for part, place in zip(parts, [0, *edges], strict=True) if not sample.learned[place]
        ]
    assert [text for text in between if text != STOP_TEXT] == [
        turns[one["role"]].format(one["content"]) for one in said
    ]
    assert (STOP_TEXT in between) == rollout.halted
    assert not rollout.halted or rollout.draw.budget is not None
    if history == "keep":
        assert len(rollout.samples) == 1
        return
    for sample in rollout.samples[1:]:
        place = next(i for i in range(len(messages)) if messages[i]["content"].startswith("turn 2"))
        thinks = rollout.draw.mode == "thinking"
        assert tok.decode(sample.prompt) == tok.apply_chat_template(messages[: place + 1], enable_thinking=thinks)
        assert sample.prompt.tolist().count(tok.im_start_id) == place + 2


def assert_same(one, other):
    assert len(one.samples) == len(other.samples)
    for mine, theirs in zip(one.samples, other.samples, strict=True):
        for name in ("prompt", "tokens", "learned", "banned"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
        np.testing.assert_allclose(mine.behaviour, theirs.behaviour, atol=1e-4)
    assert one.trace.messages == other.trace.messages


def compare_with_trainer(tok, samples, folder):
    model = tiny_models.model()
    rl = RlConfig([PromptSource("none", str(folder))], RolloutConfig(prompts=2, group_size=2, max_new_tokens=64))
    config = train_config(folder, rl)
    placement = sharding.Placement(sharding.make_mesh(data=1, devices=jax.devices()[:1]))
    options = OptimizerConfig(learning_rate=1e-3)
    objective = objective_of(config, tok)
    trainer = Trainer(
        model.config, config.model, options, schedule(options, 10), placement, config.loss, objective=objective
    )  # fmt: skip
    values = log_probs_of_state(trainer, config, tok)(flatten(model), samples)
    for sample, value in zip(samples, values, strict=True):
        np.testing.assert_array_equal(np.isnan(value), ~sample.learned)
        np.testing.assert_allclose(value[sample.learned], sample.behaviour[sample.learned], atol=1e-4)


def train_config(folder, rl):
    return TrainConfig(
        method="grpo", model=ModelConfig(init_from=str(folder), scan_layers=False), rl=rl, steps=200,
        data=DataConfig(batch_size=16, sequence_length=LENGTH),
    )  # fmt: skip


def test_what_a_tool_says_is_not_learned(engine):
    (rollout,) = sampled_by(engine, [draw(1)], 1, python=f"{HERE}:Talk", tokens=200)[1]
    sample = rollout.sample
    sample.advantage = 1.0
    between = np.flatnonzero(~sample.learned)
    assert len(between)
    other = copy.deepcopy(sample)
    other.tokens[between[3]] += 1
    one, two = (arrange([each], [[0]], LENGTH) for each in (sample, other))
    differs = one["targets"] != two["targets"]
    assert differs.sum() == 1
    assert one["loss_mask"][differs].item() == two["loss_mask"][differs].item() == 0
    for name in ("loss_mask", "advantages", "behaviour", "old", "banned"):
        np.testing.assert_array_equal(one[name], two[name])


def test_a_round_of_episodes_is_written_with_all_that_its_updates_read(engine, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    records = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(8)]
    prompts.write_text("".join(json.dumps(one) + "\n" for one in records))
    rl = RlConfig(
        [PromptSource("sums", str(prompts))], RolloutConfig(prompts=2, group_size=3, max_new_tokens=150, budget=[4, 20]),
        rewards=[RewardPart(environment=True), RewardPart(verifier="number", weight=2.0)],
        environment=EnvironmentConfig(python=f"{HERE}:Talk", history="new_sample"),
    )  # fmt: skip
    rollouts = rollouts_for(engine, tiny_models.tokenizer(), rl, EnvironmentSource(rl.environment))
    with Scorer(rl.rewards, max_new_tokens=150) as scorer:
        rounds = Rounds(rl, Prompts(rl.prompts, rl.rollouts, 0), rollouts, scorer, tmp_path / "rollouts")
        made = rounds.make(0)
        again = Rounds(rl, Prompts(rl.prompts, rl.rollouts, 0), rollouts, scorer, tmp_path / "rollouts").resume(0)
    samples = made.parts[0]
    assert len(samples) > 6, "some episode is several samples"
    episodes = {(one.group, one.episode): [] for one in samples}
    for one, read in zip(samples, again.parts[0], strict=True):
        episodes[one.group, one.episode].append(one)
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(read, field.name))
    assert len(episodes) == 6
    for of in episodes.values():
        assert len({one.advantage for one in of}) == 1
        parts = {part["name"]: part["score"] for part in of[0].about["parts"]}
        assert of[0].about["reward"] == pytest.approx(parts["environment"] + 2 * parts["number"])
        assert parts["environment"] == (of[0].about["environment"]["reward"] or 0)
        assert of[0].about["tokens"] == sum(int(one.learned.sum()) for one in of) <= 150
    assert made.figures["environment.turns"] == pytest.approx(
        np.mean([of[0].about["environment"]["turns"] for of in episodes.values()])
    )
    assert made.figures["part.environment.scored"] == 1


def test_limits_of_turns_and_tokens(engine):
    (one,) = sampled_by(engine, [draw(1)], 1, python=f"{HERE}:Talk", settings={"turns": 99}, max_turns=2, tokens=300)[1]
    assert (one.trace.ending, one.trace.turns) == ("turns", 2)
    assert one.is_cut
    (one,) = sampled_by(engine, [draw(1)], 1, python=f"{HERE}:Talk", settings={"turns": 99}, max_turns=99, tokens=60)[1]
    assert one.trace.ending == "tokens"
    written = sum(int(sample.learned.sum()) for sample in one.samples)
    assert written == one.trace.tokens <= 60
    # The row is the limit too.
    (one,) = sampled_by(
        engine, [draw(1)], 1, python=f"{HERE}:Talk", settings={"turns": 99}, max_turns=99, tokens=LENGTH - 1
    )[1]
    assert one.trace.ending == "tokens"
    assert len(one.sample.prompt) + len(one.sample.tokens) <= LENGTH
    with pytest.raises(
        UserError, match=r"data.batch_size is 16; a step learns from 32 answers .*rl.environment.max_turns"
    ):
        train_config(
            "x",
            RlConfig(
                [PromptSource("none", "x")], RolloutConfig(prompts=2, group_size=2, max_new_tokens=64),
                environment=EnvironmentConfig(python="a:B", history="new_sample"),
            ),
        )  # fmt: skip


def test_seeds_differ_by_turn():
    assert seed_of(7, 0) == 7
    assert len({seed_of(seed, turn) for seed in range(20) for turn in range(20)}) == 400
    assert all(0 <= seed_of(2**63 - 1, turn) < 2**63 for turn in range(9))


def test_a_fault_costs_its_episode(engine, capsys):
    ways = ["reset", "nothing", "no message", "role", "content", "reward", "raises", "hangs", "none"]
    draws = [draw(number, way=way) for number, way in enumerate(ways)]
    started = time.perf_counter()
    got = sampled_by(engine, draws, 1, python=f"{HERE}:Faulty", seconds_per_call=1.0, tokens=200, max_turns=3)
    assert time.perf_counter() - started < 40
    reasons = {way: got[number][0].trace for number, way in enumerate(ways)}
    assert reasons["none"].ending in ("done", "tokens")
    lost = {way: trace for way, trace in reasons.items() if trace.is_lost}
    expected = {
        "reset": "RuntimeError: no reset", "nothing": "step returned None", "no message": "no message", "role": "a message is",
        "content": "a message is", "reward": "finite number", "raises": "SystemExit: out", "hangs": "too long",
    }  # fmt: skip
    assert lost.keys() == expected.keys()
    for way, text in expected.items():
        assert text in lost[way].reason
        assert lost[way].ending == ("timed_out" if way == "hangs" else "error")
    assert "8 of 9 episodes are lost" in capsys.readouterr().err
    assert got[0][0].sample.tokens.tolist() == []  # it never began
    # They have no reward, and figures say why.
    rollouts = [got[number][0] for number in range(len(ways))]
    with Scorer([RewardPart(environment=True), RewardPart(verifier="repetition", weight=0.0)]) as scorer:
        scored = scorer.score([sampled(one) for one in rollouts])
    assert [one.reward is None for one in scored] == [trace.is_lost for trace in reasons.values()]
    assert scored[-1].reward == (reasons["none"].reward or 0.0)
    assert scored[7].lost.startswith("environment: timed_out: ")
    figures = figures_of([Group(one.draw, [one], [score]) for one, score in zip(rollouts, scored, strict=True)])
    assert figures["environment.ended.timed_out"] == pytest.approx(1 / 9)
    assert figures["environment.ended.error"] == pytest.approx(7 / 9)
    assert figures["lost"] == pytest.approx(8 / 9)
    assert figures["part.environment.timed_out"] == pytest.approx(1 / 9)
    with Scorer([RewardPart(verifier="repetition")]) as scorer:
        if rollouts[-1].trace.reward is not None:
            with pytest.raises(UserError, match="no part `environment: true`"):
                scorer.score([sampled(rollouts[-1])])


def test_time_of_an_episode_is_limited(engine):
    config = dict(python=f"{HERE}:Talk", settings={"turns": 99, "seconds": 0.3}, max_turns=99, seconds_per_episode=0.5)
    (one,) = sampled_by(engine, [draw(1)], 1, tokens=400, **config)[1]
    assert one.trace.ending == "timed_out"
    assert one.trace.turns <= 3


def test_a_prompt_that_is_too_long_is_refused_and_the_engine_stays_usable(engine):
    got = sampled_by(engine, [draw(0), draw(1)], 2, python=f"{HERE}:Long", tokens=100)
    assert "tokens" in got[0]
    assert isinstance(got[0], str)
    assert len(got[1]) == 2
    assert not engine.busy
    source = EnvironmentSource(EnvironmentConfig(python=f"{HERE}:Talk"))
    rollouts = EpisodeRollouts(engine, tiny_models.tokenizer(), RolloutConfig(max_new_tokens=100), source)
    running = rollouts.sample([draw(0), draw(1)], 2)
    next(running)
    running.close()  # given up in the middle
    assert not engine.busy


class Script:
    """Allows one token after the other: what a model that can call tools would write."""

    def __init__(self, ids):
        self._ids = list(ids)

    def allowed(self):
        words = np.zeros(-(-tiny_models.VOCABULARY // 32), np.uint32)
        words[self._ids[0] // 32] = np.uint32(1 << self._ids[0] % 32)
        return words

    def take(self, token):
        assert token == self._ids.pop(0)


@pytest.mark.parametrize("kind", ["tools", "mcp"])
def test_calls_that_the_engine_writes_are_done_and_their_results_are_read(engine, tmp_path, monkeypatch, kind):
    path = tmp_path / "server.py"
    path.write_text(SERVER.partition("@server.tool()\ndef fail")[0] + "server.run()")  # a prompt that fits
    name, call = {"tools": ("python", {"code": "print(6 * 7)"}), "mcp": ("add", {"a": 40, "b": 2})}[kind]
    tok, submit = tiny_models.tokenizer(), engine.submit
    good = f"<tool_call>\n{json.dumps({'name': name, 'arguments': call})}\n</tool_call>"
    bad = f"<tool_call>\n{json.dumps({'name': name, 'arguments': {}})}\n</tool_call>"
    written = {1: f"{good}\n{bad}", 2: "<tool_call>\n{}\n</tool_call>", 3: "42"}
    monkeypatch.setattr(engine, "submit", lambda request: submit(scripted(tok, request, written)))
    config = dict(tools=["python"]) if kind == "tools" else dict(mcp=[sys.executable, str(path)])
    config |= dict(seconds_per_call=5.0, max_result_tokens=200 if kind == "tools" else 20)
    (one,) = sampled_by(engine, [draw(1, mode="non-thinking")], 1, tokens=400, **config)[1]
    trace = one.trace
    assert (trace.ending, trace.turns, trace.calls, trace.failed_calls) == ("done", 3, 2, 2)
    assert ("[cut off after " in trace.messages[3]["content"]) == (kind == "mcp") == (trace.truncated_results > 0)
    roles = [message["role"] for message in trace.messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "tool"]
    assert trace.messages[2]["content"] == ("42\n" if kind == "tools" else "42 at call 1")
    assert trace.messages[3]["content"].startswith("Error: ")
    assert trace.messages[5]["content"].startswith("Error: the call")
    assert one.generation.content == "42"
    text = tok.decode([*one.sample.prompt, *one.sample.tokens])
    assert f"<tool_response>\n{trace.messages[2]['content']}\n</tool_response>\n<tool_response>\nError: " in text
    learned = [
        tok.decode(part) for part in np.split(one.sample.tokens, np.flatnonzero(np.diff(one.sample.learned)) + 1)
    ][::2]
    assert learned == [f"{text}<|im_end|>" for text in written.values()]
    assert about_of(one)["environment"]["calls"] == 2


def scripted(tok, request, written):
    turn = (
        list(request.prompt).count(tok.im_start_id) // 2
    )  # the system's turn with the tools, and two for each question
    return dataclasses.replace(request, constraint=Script([*tok.encode(written[turn]), tok.im_end_id]))
