"""Preferences: losses and gradients equal plain statements of their equations, whatever the packing and the micro-batches."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharding
from qwen3_jax.data import Encoded, read_rows
from qwen3_jax.data.mixture import pack
from qwen3_jax.data.streams import Piece
from qwen3_jax.model import RewardModel, flatten
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.losses import LANGUAGE_MODEL
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.preferences import REWARD_MODEL, dpo
from qwen3_jax.training.reference import pair_log_probs
from qwen3_jax.training.step import Trainer
from tests.helpers.tiny_models import TINY, TINY_MOE, drawn

BETA = 0.3


def preferences(count: int = 4, seed: int = 0) -> list[Encoded]:
    """Pairs of a prompt of 2 to 5 tokens, not learned, with two answers of 1 to 6."""
    random, out = np.random.default_rng(seed), []
    for _ in range(count):
        prompt = random.integers(0, TINY.vocab_size, random.integers(2, 6))
        sides = [np.concatenate([prompt, random.integers(0, TINY.vocab_size, random.integers(1, 7))]) for _ in "ab"]
        learned = [np.arange(len(side)) >= len(prompt) for side in sides]
        out.append(Encoded(np.concatenate(sides).astype(np.int32), np.concatenate(learned), len(sides[0])))
    return out


def batch_of(
    pairs: list[Encoded], length: int, rows: int, reference: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The pairs packed into rows, filled up with empty ones."""
    corpus = SimpleNamespace(pairs=True, folder="memory", read=lambda numbers: [pairs[i] for i in numbers])
    packed = pack([Piece(0, i, 0, len(pair.tokens)) for i, pair in enumerate(pairs)], length)
    assert len(packed) <= rows
    packed += [()] * (rows - len(packed))
    return read_rows(packed, [corpus], length, None if reference is None else [reference])


def sides(pair: Encoded) -> list[tuple[np.ndarray, np.ndarray]]:
    cut = pair.rejected
    return [(pair.tokens[:cut], pair.loss[:cut]), (pair.tokens[cut:], pair.loss[cut:])]


def trainer(config, objective, micro_batches: int = 1) -> Trainer:
    optimizer = OptimizerConfig()
    model = ModelConfig(scan_layers=False)
    return Trainer(
        config, model, optimizer, schedule(optimizer, 10**3), sharding.Placement(), micro_batches=micro_batches,
        objective=objective,
    )  # fmt: skip


def log_prob(model, tokens: np.ndarray, learned: np.ndarray) -> jax.Array:
    """Of the learned tokens of one document, alone in its row."""
    logp = jax.nn.log_softmax(model(tokens[None])[0, :-1])
    return (logp[np.arange(len(tokens) - 1), tokens[1:]] * learned[1:]).sum()


def test_dpo_equals_its_equation_and_the_reference_s_sums_are_those_of_each_document_alone():
    pairs = preferences()
    policy, reference = drawn(TINY, scan_layers=False), drawn(TINY, seed=1, scan_layers=False)
    alone = np.asarray([[log_prob(reference, *side) for side in sides(pair)] for pair in pairs])
    batch = batch_of(pairs, 48, 4)
    packed = np.asarray(jax.jit(pair_log_probs)(reference, batch))
    found = packed[np.asarray([[p in row for p in range(packed.shape[1])] for row in _places(batch)])]
    np.testing.assert_allclose(np.sort(found.ravel()), np.sort(alone.ravel()), rtol=1e-5, atol=1e-5)

    structure = trainer(TINY, dpo(BETA)).structure

    def loss(params):
        model = structure.merge(params)
        margins = [
            BETA * ((log_prob(model, *chosen) - ref[0]) - (log_prob(model, *rejected) - ref[1]))
            for (chosen, rejected), ref in zip(map(sides, pairs), alone, strict=True)
        ]
        return -jax.nn.log_sigmoid(jnp.stack(margins)).mean(), jnp.stack(margins)

    params = flatten(policy)
    (expected, margins), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    for length, rows, parts in ((48, 4, 1), (24, 8, 4)):
        one = trainer(TINY, dpo(BETA), parts)
        gradients, got = one.gradients(params, one.place(batch_of(pairs, length, rows, alone.astype(np.float32))))
        np.testing.assert_allclose(got.preference, expected, rtol=1e-5)
        np.testing.assert_allclose([got.margins, got.accuracies], [margins.mean(), (margins > 0).mean()], rtol=1e-4)
        assert got.tokens == len(pairs)
        for name, value in gradients.items():
            np.testing.assert_allclose(
                value, slope[name], rtol=2e-4, atol=1e-5 * np.abs(slope[name]).max(), err_msg=name
            )


def _places(batch) -> list[set[int]]:
    return [{(segment - 1) // 2 for segment in row if segment} for row in batch["segment_ids"]]


def test_a_reward_is_read_at_the_last_token_and_its_loss_is_bradley_and_terry_s():
    pairs = preferences(seed=2)
    one = trainer(TINY, REWARD_MODEL)
    params = flatten(drawn(dataclasses.replace(TINY, tie_word_embeddings=True), scan_layers=False))
    params["score"] = jnp.asarray(np.random.default_rng(3).normal(size=(TINY.hidden_size, 1)), jnp.float32)
    assert "lm_head" not in one.structure.shapes

    def loss(params):
        model = one.structure.merge(params)
        assert isinstance(model, RewardModel)
        rewards = [[model.rewards(model.hidden(tokens[None]).states)[0, -1] for tokens, _ in sides(p)] for p in pairs]
        chosen, rejected = jnp.asarray(rewards).T
        return -jax.nn.log_sigmoid(chosen - rejected).mean(), (chosen, rejected)

    (expected, (chosen, rejected)), slope = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    gradients, got = one.gradients(params, one.place(batch_of(pairs, 48, 4)))
    np.testing.assert_allclose(got.preference, expected, rtol=1e-5)
    np.testing.assert_allclose([got.rewards_chosen, got.rewards_rejected], [chosen.mean(), rejected.mean()], rtol=1e-4)
    for name, value in gradients.items():
        np.testing.assert_allclose(
            value, slope[name], rtol=2e-4, atol=1e-5 * np.abs(slope[name]).max() + 1e-9, err_msg=name
        )


MESHES = [
    dict(data=2), dict(data=8), dict(tensor=2), dict(data=4, tensor=2), dict(data=2, expert=4), dict(data=2, context=2),
    dict(expert=2, tensor=2), dict(replica=2, data=2, tensor=2),
]  # fmt: skip


def learned_documents(pairs: list[Encoded]) -> list[Encoded]:
    """The documents of preferences, for supervised fine-tuning."""
    return [side for pair in pairs for side in pair.sides()]


def sft_batch(documents: list[Encoded], length: int, rows: int) -> dict[str, np.ndarray]:
    corpus = SimpleNamespace(pairs=False, folder="memory", read=lambda numbers: [documents[i] for i in numbers])
    packed = pack([Piece(0, i, 0, len(one.tokens) - 1) for i, one in enumerate(documents)], length)
    return read_rows(packed + [()] * (rows - len(packed)), [corpus], length)


# Each mesh once for dense models (those with experts are others without them) and once for experts; `soak` has every method
# on every mesh.
SPREAD = {
    ("sft", TINY): (1, 2), ("dpo", TINY): (3, 5), ("reward_model", TINY): (0, 7),
    ("sft", TINY_MOE): (0, 4, 7), ("dpo", TINY_MOE): (1, 2, 6), ("reward_model", TINY_MOE): (3, 4, 5),
}  # fmt: skip


def mesh_cases():
    for (method, config), places in SPREAD.items():
        name = f"{method}-{'moe' if config.num_experts else 'dense'}"
        yield pytest.param(method, config, [MESHES[i] for i in places], id=f"{name}-some", marks=pytest.mark.slow)
        yield pytest.param(method, config, MESHES, id=f"{name}-all", marks=pytest.mark.soak)


@pytest.mark.parametrize(("method", "config", "meshes"), list(mesh_cases()))
def test_micro_batches_packing_and_eight_meshes_give_the_gradients_of_one_batch(method, config, meshes):
    """With the load-balancing loss of experts, whose counts are the global batch's."""
    objective = {"sft": LANGUAGE_MODEL, "dpo": dpo(BETA), "reward_model": REWARD_MODEL}[method]
    pairs = preferences(8, seed=4)
    reference = np.random.default_rng(0).normal(size=(len(pairs), 2)).astype(np.float32)

    def made(length: int, rows: int) -> dict[str, np.ndarray]:
        if method == "sft":
            return sft_batch(learned_documents(pairs), length, rows)
        return batch_of(pairs, length, rows, reference)

    whole = trainer(config, objective)
    params = whole.init(0).params
    expected, loss = whole.gradients(params, whole.place(made(48, 8)))
    assert (loss.balance > 0) == (config is TINY_MOE)

    def check(other: Trainer, batch: dict[str, np.ndarray], where: object) -> None:
        held = jax.device_put(params, other.shardings.params)
        gradients, got = other.gradients(held, other.place(batch))
        np.testing.assert_allclose(got.total, loss.total, rtol=1e-5, err_msg=str(where))
        for name, value in gradients.items():
            wanted = np.asarray(expected[name])
            worst = np.abs(np.asarray(value) - wanted).max()
            assert worst <= 2e-5 * np.abs(wanted).max() + 1e-9, (where, name)

    check(trainer(config, objective, 4), made(48, 8), "micro-batches")
    check(whole, made(24, 16), "shorter rows")
    for sizes in meshes:
        if "expert" in sizes and config is TINY:
            sizes = sizes | {"expert": 1}
        placement = sharding.Placement(sharding.make_mesh(**sizes), sharding.TRAINING)
        settings = OptimizerConfig()
        model = ModelConfig(scan_layers=False)
        rate = schedule(settings, 10**3)
        check(Trainer(config, model, settings, rate, placement, objective=objective), made(48, 8), sizes)
