"""Rollout and trainer agree about the probability of every sampled token; new weights leave no trace of the old ones."""

import dataclasses

import numpy as np
import pytest

import qwen3_jax
from qwen3_jax.checkpoint import load_model
from qwen3_jax.data import DataConfig
from qwen3_jax.errors import UserError
from qwen3_jax.generation import Engine, Sampling, generate
from qwen3_jax.kernels import Execution
from qwen3_jax.model import flatten
from qwen3_jax.posttraining.log_probs import batch_of, log_probs_of_state
from qwen3_jax.posttraining.prompts import Draw, Prompt
from qwen3_jax.posttraining.rollouts import Rollouts, engine_for
from qwen3_jax.posttraining.serving_weights import ServingWeights
from qwen3_jax.training.config import ModelConfig, OptimizerConfig, TrainConfig
from qwen3_jax.training.losses import EXPERTS
from qwen3_jax.training.rl_config import PromptSource, RlConfig, RolloutConfig
from qwen3_jax.training.run_folder import generation_config_of
from qwen3_jax.training.stage_loop import stage_trainer
from sharding import MeshConfig
from tests.helpers import tiny_models

ROLLOUTS = RolloutConfig(prompts=6, group_size=3, max_new_tokens=72, temperature=0.8, updates=2)


def draws() -> list[Draw]:
    """Prompts of two lengths that begin alike, in both modes, with and without budgets."""
    out = []
    for number, (mode, budget) in enumerate(
        [("thinking", None), ("thinking", 1), ("thinking", 4), ("non-thinking", None)] * 6
    ):
        text = "What is 2 + 3? " * (8 if number % 2 else 1) + f"What is {number} + 3?"
        out.append(
            Draw(number, Prompt(str(number), "sums", ({"role": "user", "content": text},)), mode, budget, 100 + number)
        )
    return out


@pytest.mark.parametrize(
    ("experts", "mesh", "options", "dtype"),
    [
        pytest.param(0, {}, {"cache_tokens": 704, "rows": 8}, "float32", id="dense-preempted"),
        pytest.param(0, {"data": 2, "context": 2, "tensor": 2}, {}, "float32", id="dense-mesh"),
        pytest.param(8, {"data": 2, "expert": 2, "tensor": 2}, {"rows": 16}, "float32", id="moe-mesh"),
        pytest.param(0, {}, {}, "bfloat16", id="bfloat16"),
    ],
)
def test_sampled_tokens_have_the_trainers_log_probabilities(experts, mesh, options, dtype, tmp_path):
    folder = qwen3_jax.save(tiny_models.model(experts=experts), tiny_models.tokenizer(), tmp_path / "hf")
    config = TrainConfig(
        method="grpo", steps=1, optimizer=OptimizerConfig(warmup_steps=0), data=DataConfig(sequence_length=256, batch_size=24),
        model=ModelConfig(init_from=str(folder), scan_layers=bool(experts), dtype=dtype),
        mesh=MeshConfig(**({"data": 1} | mesh)), micro_batches=3,
        rl=RlConfig([PromptSource("sums", "nowhere")], dataclasses.replace(ROLLOUTS, **options)),
    )  # fmt: skip
    tok, (stage,) = tiny_models.tokenizer(), config.resolved()
    model = load_model(folder)
    trainer = stage_trainer(stage, [stage], model.config, tok)
    params = flatten(load_model(folder, execution=Execution(trainer.placement), scan_layers=bool(experts)))
    weights = ServingWeights(trainer, generation_config_of(tok))
    served = weights.model(params)
    if experts:  # a stack in training, one by one here
        single = flatten(load_model(folder, scan_layers=False))
        assert flatten(served).keys() == single.keys()
        assert all((np.asarray(flatten(served)[name]) == np.asarray(value)).all() for name, value in single.items())
    engine = engine_for(served, config.rl.rollouts, 256)
    sampled = Rollouts(engine, tok, config.rl.rollouts).sample(draws())
    answers = {draw.number: rollouts for draw, rollouts in sampled}
    assert len(answers) == 24
    if "cache_tokens" in options:
        assert engine.stats.preemptions
        assert engine.stats.cached_tokens  # prompts of a group share their beginning
    samples = [rollout.sample for number in sorted(answers) for rollout in answers[number]]
    halted = [rollout for rollouts in answers.values() for rollout in rollouts if rollout.halted]
    assert 1 <= len(halted) < len(samples) - 3
    assert any(one.banned.any() for one in samples)
    computed = log_probs_of_state(trainer, config, tok)(params, samples)
    if experts:
        check_experts(samples, model, trainer, params, config)
    differences = []
    for one, values in zip(samples, computed, strict=True):
        assert np.isnan(values[~one.learned]).all()
        assert np.isnan(one.behaviour[~one.learned]).all()
        differences.append(np.abs(values - one.behaviour)[one.learned])
    worst = np.concatenate(differences).max()
    if dtype == "bfloat16":
        # Logits of this random model are wide: products are rounded to 8 bits, in another order in each.
        assert np.concatenate(differences).mean() < 0.03
    else:
        assert worst < 1e-4
        # It is no comparison of constants: other weights are far away.
        other = (
            dict(params) | {"norm": 1.1 * params["norm"]}
            if "norm" in params
            else {n: 1.05 * p for n, p in params.items()}
        )
        moved = log_probs_of_state(trainer, config, tok)(other, samples)
        assert max(np.abs(a - b)[s.learned].max() for a, b, s in zip(moved, computed, samples, strict=True)) > 0.01


def check_experts(samples, model, trainer, params, config):
    """They are those of a plain pass; the trainer's router chooses them too, unless they are changed."""
    for one in samples[::7]:
        whole = np.concatenate([one.prompt, one.tokens])[:-1]
        padded = np.pad(whole, (0, -len(whole) % 128))[None]
        own = np.asarray(model.hidden(padded, report_experts=True).experts)[0, : len(whole)]
        assert (np.sort(one.experts) == np.sort(own)).mean() > 0.999
    rows, length = config.data.batch_size, config.data.sequence_length
    some = [dataclasses.replace(one, old=one.behaviour) for one in samples[:rows]]
    batch, _ = batch_of(some, trainer, rows, length)
    agreement = trainer.evaluate(params, trainer.place(batch)).router_agreement
    assert agreement.shape == (model.config.moe_layers,)
    assert (np.asarray(agreement) > 0.999).all()
    batch[EXPERTS] = np.where(batch[EXPERTS] >= 0, (batch[EXPERTS] + 4) % 8, -1)
    changed = trainer.evaluate(params, trainer.place(batch)).router_agreement
    assert (np.asarray(changed) < 0.5).all()


def test_new_weights_answer_as_a_fresh_engine_and_share_nothing_with_the_old_ones():
    tok, first, second = tiny_models.tokenizer(), tiny_models.model(), tiny_models.model(1)
    engine = Engine(first, rows=8, cache_tokens=2048, offline=True)
    chats = [[{"role": "user", "content": "What is 2 + 3? " * 20 + str(i)}] for i in range(4)]
    options = dict(sampling=Sampling(temperature=1.0, seed=5), max_new_tokens=48, thinking_budget=8)

    def answers(of):
        return [one.token_ids for one in generate(of, tok, chats, **options)]

    before = answers(engine)
    assert engine.stats.cached_tokens
    cached = engine.stats.cached_tokens
    assert answers(engine) == before
    assert engine.stats.cached_tokens > cached  # the prefix cache works
    engine.take_weights(second)
    after = answers(engine)
    assert after == answers(Engine(second, rows=8, cache_tokens=2048, offline=True))
    assert after != before
    engine.take_weights(first)
    assert answers(engine) == before
    pool = engine._scheduler.pools[0]
    assert pool.available == pool.capacity
    assert len(set(pool._free) | set(pool._idle)) == pool.capacity  # no page is lost or free twice
    with pytest.raises(UserError, match="differ from the engine's model in more than their values"):
        engine.take_weights(tiny_models.model(eos=False, experts=8))
    engine.submit(dataclasses.replace(_request(engine), max_new_tokens=5))
    with pytest.raises(UserError, match="1 unfinished requests; finish or cancel them"):
        engine.take_weights(second)


def _request(engine: Engine):
    from qwen3_jax.generation import Request

    del engine
    return Request((1, 2, 3), Sampling(temperature=0), 5)
