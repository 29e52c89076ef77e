"""Policy objectives do not depend on micro-batches, packing, padding or the mesh; nor do scores of tokens, which equal those
of all logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharding
from qwen3_jax.training.cross_entropy import token_log_probs, token_scores
from qwen3_jax.training.losses import EXPERTS, REPLAYED
from qwen3_jax.training.output_chunks import by_chunks, settings_of
from qwen3_jax.training.policy import policy
from qwen3_jax.training.step import Trainer
from tests.helpers.answers import BANNED, K3, answers_of, around, batch_of, config_of, trainer
from tests.helpers.tiny_models import TINY, TINY_MOE

MESHES = [
    dict(data=2), dict(data=8), dict(tensor=2), dict(data=4, tensor=2), dict(data=2, expert=4), dict(data=2, context=2),
    dict(expert=2, tensor=2), dict(replica=2, data=2, tensor=2),
]  # fmt: skip


def with_experts(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Add experts of a rollout that follow from token and position: two of 8 in each of two layers; of some tokens none."""
    tokens = batch["tokens"][..., None]
    first = tokens + 3 * batch["positions"][..., None] + np.arange(2)
    experts = np.stack([first % 8, (first + 1 + tokens % 5) % 8], axis=-1).reshape(*batch["tokens"].shape, 4)
    experts = np.where((tokens % 6 == 0) | (batch["segment_ids"][..., None] == 0), -1, experts).astype(np.int16)
    return batch | {EXPERTS: experts, REPLAYED: experts}


@pytest.mark.parametrize(
    ("config", "meshes"),
    [
        pytest.param(TINY, (), id="dense"),
        pytest.param(TINY_MOE, (), id="moe", marks=pytest.mark.slow),
        pytest.param(TINY, (3, 5, 7), id="dense-some", marks=pytest.mark.slow),
        pytest.param(TINY_MOE, (0, 1, 2, 4, 6), id="moe-some", marks=pytest.mark.slow),
        pytest.param(TINY, range(8), id="dense-all", marks=pytest.mark.soak),
        pytest.param(TINY_MOE, range(8), id="moe-all", marks=pytest.mark.soak),
    ],
)
def test_micro_batches_packing_padding_and_eight_meshes_give_the_gradients_of_one_batch(config, meshes):
    """With every term of the loss; of experts, which are replayed, the load-balancing loss too."""
    algorithm = "gspo" if config is TINY else "dr_grpo"
    settings = config_of(algorithm, importance_cap=1.5, drop_off_policy=0.2, kl=K3, replay_experts=config is TINY_MOE)
    objective = policy(settings, 0.7, BANNED)
    whole = trainer(config, objective)
    params = whole.init(0).params
    answers = answers_of(16, seed=4)
    guess = [np.full(len(one.learned), -np.log(TINY.vocab_size), np.float32) for one in answers]
    answers = around(answers, guess)
    batch = with_experts(batch_of(answers, 8, 48))
    expected, loss = whole.gradients(params, whole.place(batch))
    assert (loss.balance > 0) == (config is TINY_MOE)
    assert (batch["segment_ids"].max(axis=1) == 0).sum() >= 2  # rows of padding, whose micro-batches are not computed

    def check(other: Trainer, batch: dict[str, np.ndarray], where: object) -> None:
        held = jax.device_put(params, other.shardings.params)
        gradients, got = other.gradients(held, other.place(with_experts(batch)))
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(loss), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=str(where))
        for name, value in gradients.items():
            wanted = np.asarray(expected[name])
            worst = np.abs(np.asarray(value) - wanted).max()
            assert worst <= 1e-5 * np.abs(wanted).max() + 1e-9, (where, name)

    if not meshes:
        order = np.random.default_rng(0).permutation(len(answers))
        check(trainer(config, objective, 4), batch, "micro-batches")
        check(trainer(config, objective, 8, chunk=13), batch_of(answers, 8, 48, order), "another order, small chunks")
        check(whole, batch_of(answers, 16, 24, order), "shorter rows, more padding")
    for sizes in (MESHES[i] for i in meshes):
        if "expert" in sizes and config is TINY:
            sizes = sizes | {"expert": 1}
        check(trainer(config, objective, mesh=sizes), batch, sizes)


@pytest.mark.parametrize(
    "config", [pytest.param(TINY, id="dense"), pytest.param(TINY_MOE, id="moe", marks=pytest.mark.slow)]
)
def test_an_empty_micro_batch_is_not_computed_and_the_result_is_the_same(config):
    """Counted by a callback in the objective: micro-batches with a learned token; with experts those with any."""
    computed: list[int] = []
    sparse = policy(config_of("grpo"), 1.0, ())
    share = sparse.share

    def counted(model, rows, whole, loss, share=share, computed=computed):
        jax.debug.callback(lambda _: computed.append(1), rows["loss_mask"].sum())
        return share(model, rows, whole, loss)

    answers = answers_of(9, seed=5)
    answers = around(answers, [np.full(len(one.learned), -4, np.float32) for one in answers])
    batch = with_experts(batch_of(answers, 8, 24))
    rows = int((batch["segment_ids"].max(axis=1) > 0).sum())
    assert 3 <= rows <= 6
    if config is TINY_MOE:
        batch["loss_mask"][0] = 0  # its tokens count in the load-balancing loss
    results = []
    for objective in (sparse, dataclasses.replace(sparse, sparse=False)):
        one = trainer(config, dataclasses.replace(objective, share=counted), 8)
        params = one.init(0).params
        computed.clear()
        results.append(jax.device_get(one.gradients(params, one.place(batch))))
        jax.effects_barrier()
        assert len(computed) == (rows if objective.sparse else 8)
        computed.clear()
        results.append(jax.device_get(one.evaluate(params, one.place(batch))))
        jax.effects_barrier()
        assert len(computed) == (rows if objective.sparse else 8)
    for skipped, full in ((results[0], results[2]), (results[1], results[3])):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), skipped, full)


PLACED = [None, *MESHES[1:6], dict(context=2, tensor=2, data=2), dict(replica=2, expert=2, tensor=2)]


@pytest.mark.parametrize("tied", [False, True])
def test_scores_and_their_gradients_equal_those_of_all_logits(tied):
    """Chunk by chunk, on meshes that split the vocabulary, the embedding and the tokens; also with a frozen weight."""
    random = np.random.default_rng(0)
    b, t, d, v = 8, 12, 16, 32
    states = random.normal(size=(b, t, d)).astype(np.float32)
    weight = random.normal(size=(v, d) if tied else (d, v)).astype(np.float32)
    targets = random.integers(0, v, (b, t)).astype(np.int32)
    needed = random.random((b, t)) < 0.5
    needed[:, 8:] = needed[0] = False  # some devices need no token
    left_out = (random.random((b, t)) < 0.5) & ~np.isin(targets, (3, 20))
    above = tuple((random.normal(size=(2, b, t)) * needed).astype(np.float32))

    def plain(states, weight, temperature, banned_ids):
        logits = states @ (weight.T if tied else weight) / temperature
        drop = left_out[..., None] & np.isin(np.arange(v), banned_ids)
        log_p = jax.nn.log_softmax(jnp.where(drop, -jnp.inf, logits))
        entropy = -(jnp.exp(log_p) * jnp.where(drop, 0, log_p)).sum(axis=-1)
        return jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0], entropy

    for mesh in PLACED:
        placement = sharding.Placement(None if mesh is None else sharding.make_mesh(**mesh), sharding.TRAINING)
        for temperature, banned_ids in ((1.0, ()), (0.6, (3, 20))) if mesh is None else ((0.6, (3, 20)),):
            options = dict(tied=tied, placement=placement, chunk=7, temperature=temperature, banned_ids=banned_ids)

            @functools.partial(jax.jit, static_argnums=2)
            def ours(states, weight, frozen, options=options):
                def scores(states, weight):
                    banned = jnp.asarray(left_out) if options["banned_ids"] else None
                    of = dict(banned_bt=banned, needed_bt=jnp.asarray(needed), frozen=frozen)
                    return tuple(token_scores(states, weight, targets, **of, **options))

                values, pull = jax.vjp(scores, states, weight)
                return jax.tree.map(lambda x: x * needed, values), pull(above)

            def all_logits(states, weight, temperature=temperature, banned_ids=banned_ids):
                values, pull = jax.vjp(lambda *x: plain(*x, temperature, banned_ids), states, weight)
                return jax.tree.map(lambda x: jnp.where(needed, x, 0), values), pull(above)

            placed = (
                jax.device_put(states, placement.sharding(("batch", "length", None), states.shape)),
                jax.device_put(
                    weight, placement.sharding(("vocab", "embed") if tied else ("embed", "vocab"), weight.shape)
                ),
            )
            expected = jax.jit(all_logits)(states, weight)
            for frozen in (False, True):
                got = ours(*placed, frozen)
                for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                    if frozen and a.shape == weight.shape:
                        e = np.zeros_like(e)
                    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * np.abs(e).max(), err_msg=str(mesh))
            if not banned_ids:
                found = token_log_probs(states, weight, targets, tied=tied, chunk=7)
                np.testing.assert_allclose(found[needed], expected[0][0][needed], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("needed", [0, 1, 4, 5, 12])
def test_chunks_without_a_token_that_is_needed_are_not_computed(needed):
    """12 tokens in chunks of 4, wherever the needed ones are; each gets its own value, and the carry has theirs."""
    computed: list[int] = []
    is_needed = np.random.default_rng(0).permutation(np.arange(12) < needed).reshape(3, 4)
    values = np.arange(12.0).reshape(3, 4)

    def chunk_of(carry, rows):
        value, of_use = rows
        jax.debug.callback(lambda _: computed.append(1), carry)
        return carry + (value * of_use).sum(), 2 * value

    settings = settings_of(sharding.Placement(), tied=True, chunk=4, frozen=True)
    run = jax.jit(lambda *x: by_chunks(settings, chunk_of, jnp.zeros(()), x, x[1]))
    total, out = run(values, is_needed)
    jax.effects_barrier()
    assert len(computed) == -(-needed // 4)
    assert total == values[is_needed].sum()
    np.testing.assert_array_equal(out[is_needed], 2 * values[is_needed])
