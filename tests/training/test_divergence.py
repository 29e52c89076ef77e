"""Divergences of distillation, against a NumPy statement in float64 and TRL's GKD, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sharding
from qwen3_jax.training.divergence import TeacherStates, TeacherTop, token_divergence

MESHES = [
    dict(data=2), dict(data=4, tensor=2), dict(data=2, expert=4), dict(data=2, context=2), dict(expert=2, tensor=2),
    dict(replica=2, data=2, tensor=2), dict(tensor=8), dict(data=8),
]  # fmt: skip
B, T, D, E, V, K = 8, 12, 16, 24, 32, 5
KINDS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.1), ("jsd", 0.7)]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def divergence(kind: str, beta: float, pi: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """The definition; outcomes of probability 0 under both are left out."""

    def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        safe = np.where(p > 0, p, 1), np.where(p > 0, q, 1)
        return (p * (np.log(safe[0]) - np.log(safe[1]))).sum(axis=-1)

    if kind == "jsd":
        mean = beta * nu + (1 - beta) * pi
        return beta * kl(nu, mean) + (1 - beta) * kl(pi, mean)
    return kl(nu, pi) if kind == "forward_kl" else kl(pi, nu)


class Case:
    """Random states and weights; `left_out` tokens do not exist where `banned` says so."""

    left_out = (3, 20)

    def __init__(self, tied: bool):
        random = np.random.default_rng(0)
        self.tied = tied
        self.states = random.normal(size=(B, T, D)).astype(np.float32)
        self.weight = random.normal(size=(V, D) if tied else (D, V)).astype(np.float32)
        self.teacher_states = random.normal(size=(B, T, E)).astype(np.float32)
        self.teacher_weight = random.normal(size=(E, V), scale=0.5).astype(np.float32)
        self.targets = random.integers(0, V, (B, T)).astype(np.int32)
        self.weights = (random.random((B, T)) < 0.7).astype(np.float32) * random.random((B, T)).astype(np.float32)
        self.banned = random.random((B, T)) < 0.4

    def probs(self, states: np.ndarray, weight: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Distributions of student and teacher, float64 [B, T, V]."""
        student = states.astype(np.float64) @ (weight.T if self.tied else weight).astype(np.float64) / temperature
        teacher = self.teacher_states.astype(np.float64) @ self.teacher_weight.astype(np.float64) / temperature
        gone = self.banned[..., None] & np.isin(np.arange(V), self.left_out)
        return softmax(np.where(gone, -np.inf, student)), softmax(np.where(gone, -np.inf, teacher))

    def top(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """The teacher's K most probable tokens of its whole distribution, the last of them unknown at some places."""
        logits = self.teacher_states.astype(np.float64) @ self.teacher_weight.astype(np.float64) / temperature
        probs = softmax(logits)
        ids = np.argsort(-probs, axis=-1)[..., :K].astype(np.int32)
        values = np.log(np.take_along_axis(probs, ids, axis=-1)).astype(np.float32)
        ids[::3, :, -1] = -1
        return ids, values

    def outcomes(self, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """[B, T, V, K + 1], which outcome a token belongs to; [B, T, K + 1], the teacher's probabilities."""
        ids, values = self.top(temperature)
        belongs = ids[..., None, :] == np.arange(V)[:, None]
        known = np.where(ids >= 0, np.exp(values.astype(np.float64)), 0)
        teacher = np.concatenate([known, 1 - known.sum(axis=-1, keepdims=True)], axis=-1)
        gone = np.concatenate(
            [np.isin(ids, self.left_out) & self.banned[..., None], np.zeros((B, T, 1), bool)], axis=-1
        )
        teacher = np.where(gone, 0, teacher)
        return np.concatenate([belongs, ~belongs.any(axis=-1, keepdims=True)], axis=-1), teacher / teacher.sum(
            -1, keepdims=True
        )

    def ours(self, placement, kind, beta, temperature, top, frozen=False, chunk=7):
        """The weighted sum with its gradients, and the values of every token."""
        banned = jnp.asarray(self.banned)

        @jax.jit
        def compute(states, weight, teacher):
            def total(states, weight):
                return token_divergence(
                    states, weight, self.targets, self.weights, teacher, tied=self.tied, kind=kind, beta=beta,
                    temperature=temperature, chunk=chunk, placement=placement, frozen=frozen, banned_bt=banned,
                    banned_ids=self.left_out,
                )  # fmt: skip

            return jax.value_and_grad(total, (0, 1), has_aux=True)(states, weight)

        def put(value, axes):
            return jax.device_put(value, placement.sharding(axes, value.shape))

        deep = ("batch", "length", None)
        matrix = ("vocab", "embed") if self.tied else ("embed", "vocab")
        teacher = TeacherTop(*(put(x, deep) for x in self.top(temperature))) if top else TeacherStates(
            put(self.teacher_states, deep), put(self.teacher_weight, ("embed", "vocab")), tied=False
        )  # fmt: skip
        return compute(put(self.states, deep), put(self.weight, matrix), teacher)

    def expected(self, kind, beta, temperature, top):
        """The same from the definition, its gradient by finite differences of float64 along random directions."""

        def total(states, weight):
            pi, nu = self.probs(states, weight, temperature)
            if top:
                belongs, nu = self.outcomes(temperature)
                pi = np.einsum("btv,btvk->btk", pi, belongs)
            values = divergence(kind, beta, pi, nu)
            return (values * self.weights).sum(), values

        return total


@pytest.mark.parametrize("top", [False, True], ids=["whole", "top-k"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_divergences_and_their_gradients_equal_the_definition(tied, top):
    """Of every kind; of k tokens and a tail; with tokens left out; log-probability and entropy are the student's."""
    case, placement = Case(tied), sharding.Placement()
    directions = np.random.default_rng(1)
    for kind, beta in KINDS:
        (total, values), (dstates, dweight) = case.ours(placement, kind, beta, 0.6, top)
        of = case.expected(kind, beta, 0.6, top)
        wanted, each = of(case.states, case.weight)
        np.testing.assert_allclose(total, wanted, rtol=1e-5)
        pi, _ = case.probs(case.states, case.weight, 0.6)
        chosen = np.take_along_axis(pi, case.targets[..., None], -1)[..., 0]
        entropy = -(pi * np.log(np.where(pi > 0, pi, 1))).sum(-1)
        has_weight = case.weights != 0
        for got, expected, absolute in (
            (values.divergence, each, 1e-5), (np.exp(values.log_probs), chosen, 1e-7), (values.entropy, entropy, 1e-5),
        ):  # fmt: skip
            np.testing.assert_allclose(got[has_weight], expected[has_weight], rtol=1e-4, atol=absolute)
        for value, gradient, name in ((case.states, dstates, "states"), (case.weight, dweight, "weight")):
            along = directions.normal(size=value.shape)
            step = 1e-5 * along
            sides = [
                of(*((value + s * step, case.weight) if name == "states" else (case.states, value + s * step)))[0]
                for s in (1, -1)
            ]
            slope = (sides[0] - sides[1]) / 2e-5
            np.testing.assert_allclose((np.asarray(gradient) * along).sum(), slope, rtol=2e-4, err_msg=(kind, name))


@pytest.mark.parametrize(
    "meshes", [pytest.param((1, 4), id="some"), pytest.param(range(8), id="all", marks=pytest.mark.slow)]
)
def test_divergences_do_not_depend_on_the_mesh_or_the_chunks(meshes):
    """On meshes that split vocabulary, hidden size and tokens."""
    case = Case(tied=True)
    for top in (False, True):
        for kind, beta in KINDS[1:3] if len(meshes) == 2 else KINDS:
            (total, values), gradients = case.ours(sharding.Placement(), kind, beta, 0.9, top, chunk=1000)
            for mesh in (None, *(MESHES[i] for i in meshes)):
                placement = sharding.Placement(None if mesh is None else sharding.make_mesh(**mesh), sharding.TRAINING)
                (other, others), slopes = case.ours(placement, kind, beta, 0.9, top)
                np.testing.assert_allclose(other, total, rtol=1e-5, err_msg=str(mesh))
                # Values of tokens without a weight mean nothing: chunks of such alone are not computed.
                of_use = [[jnp.where(case.weights != 0, x, 0) for x in each] for each in (others, values)]
                for ours, theirs in zip((*of_use[0], *slopes), (*of_use[1], *gradients), strict=True):
                    worst = 1e-5 * np.abs(theirs).max()
                    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=worst, err_msg=str(mesh))


def largest(jaxpr) -> int:
    """Elements of the largest array that a program computes, in inner programs too."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(out.aval.shape)) for out in equation.outvars if hasattr(out.aval, "shape")]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            sizes += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


@pytest.mark.parametrize("top", [False, True], ids=["whole", "top-k"])
def test_logits_of_all_tokens_exist_neither_of_the_student_nor_of_the_teacher(top):
    case = Case(tied=False)
    for chunk, is_whole in ((16, False), (B * T, True)):
        program = jax.make_jaxpr(lambda c=chunk: case.ours(sharding.Placement(), "jsd", 0.5, 1.0, top, chunk=c))()
        assert (largest(program.jaxpr) >= B * T * V) == is_whole


def test_a_frozen_projection_has_no_gradient_and_what_has_no_weight_counts_nothing():
    """Not even where the teacher's states are NaN."""
    case = Case(tied=False)
    (total, _), (dstates, _) = case.ours(sharding.Placement(), "jsd", 0.5, 1.0, False)
    case.teacher_states[case.weights == 0] = np.nan
    (again, _), (slopes, dweight) = case.ours(sharding.Placement(), "jsd", 0.5, 1.0, False, frozen=True)
    assert float(again) == float(total)
    np.testing.assert_array_equal(slopes, dstates)
    assert not np.any(dweight)


def test_impossible_settings_are_refused():
    case = Case(tied=False)
    with pytest.raises(ValueError, match="temperature is 0"):
        case.ours(sharding.Placement(), "jsd", 0.5, 0.0, False)
    with pytest.raises(ValueError, match="beta is 1"):
        case.ours(sharding.Placement(), "jsd", 1.0, 1.0, False)


def test_divergences_equal_those_of_trl():
    """`generalized_jsd_loss` of TRL's GKD trainer on the same logits: value, and gradient by the student's states."""
    torch = pytest.importorskip("torch")
    gkd = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    case = Case(tied=False)
    case.left_out, case.banned = (3,), np.zeros((B, T), bool)
    case.weights = (case.weights > 0).astype(np.float32)
    labels = torch.tensor(np.where(case.weights > 0, case.targets, -100))
    for kind, beta in (("forward_kl", 0), ("reverse_kl", 1), ("jsd", 0.3)):
        (total, _), (dstates, _) = case.ours(sharding.Placement(), kind, beta, 0.8, False)
        states = torch.tensor(case.states.astype(np.float64), requires_grad=True)
        teacher = torch.tensor(case.teacher_states).double() @ torch.tensor(case.teacher_weight).double()
        loss = gkd.GKDTrainer.generalized_jsd_loss(
            states @ torch.tensor(case.weight).double(),
            teacher,
            labels=labels,
            beta=beta,
            temperature=0.8,
            reduction="sum",
        )
        loss.backward()
        np.testing.assert_allclose(total, loss.item(), rtol=1e-5)
        worst = 1e-5 * np.abs(dstates).max()
        np.testing.assert_allclose(dstates, states.grad.numpy(), rtol=1e-4, atol=worst)
