"""Divergence of the distribution of a student from that of a teacher at every token, chunk by chunk.

    forward_kl    KL(nu || pi)                                    pi = softmax(student's logits / temperature)
    reverse_kl    KL(pi || nu)                                    nu = softmax(teacher's logits / temperature)
    jsd           beta KL(nu || M) + (1 - beta) KL(pi || M)       M = beta nu + (1 - beta) pi

(GKD: Agarwal et al. 2023, arXiv 2306.13649, equation 1 and algorithm 1.) The gradient reaches the student alone.

The teacher is given by its final hidden states and its output projection, or by the log-probabilities of k tokens. Those and
the rest of the vocabulary, the tail, are k + 1 outcomes between which both distributions are compared. With the whole
vocabulary each token is an outcome. Of an outcome S that token v belongs to

    D = sum_v pi_v / pi(S) d(pi(S), nu(S))        dD/dz_v = (u_v - pi_v sum_w u_w) / temperature        u_v = pi_v dD/dpi(S)

The loss is linear in the weights of tokens, so the forward pass computes the gradient with it and logits are computed once.

Invariants: [B, T, V] logits exist neither of the student nor of the teacher; the rest as in `cross_entropy`.

Shapes: b batch, t length, c tokens of a chunk, d and e hidden sizes of student and teacher, k tokens of the teacher, v
vocabulary (on this device, in the shard-mapped part).
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from qwen3_jax.training.output_chunks import (
    Settings,
    by_chunks,
    entropy_of,
    gradient_axes,
    logits_of,
    on_devices,
    over,
    products,
    scattered,
    settings_of,
    weight_spec,
    whole,
)
from sharding import Placement

Kind = Literal["forward_kl", "reverse_kl", "jsd"]

LEAST_TAIL = 1e-6  # probability of the tail where rounding, or a small vocabulary, leaves none


@struct.dataclass
class TeacherStates:
    """The teacher's distribution over the whole vocabulary.

    Attributes:
        states: [B, T, E], final hidden states, in its compute type.
        weight: [E, V], or the embedding [V, E] when `tied`.
        tied: the weight is the embedding.
    """

    states: jax.Array
    weight: jax.Array
    tied: bool = struct.field(pytree_node=False)


@struct.dataclass
class TeacherTop:
    """The teacher's most probable tokens; the tail is what they leave of 1.

    Attributes:
        ids: int32 [B, T, K], different tokens; -1 where there are fewer.
        log_probs: float [B, T, K], in nats.
    """

    ids: jax.Array
    log_probs: jax.Array


class TokenDivergence(NamedTuple):
    """Values of every token with a weight, float32 [B, T], without a gradient. Those of others mean nothing.

    Attributes:
        divergence: in nats.
        log_probs: log pi(target).
        entropy: of pi, over the whole vocabulary.
    """

    divergence: jax.Array
    log_probs: jax.Array
    entropy: jax.Array


class _Choice(NamedTuple):
    """Static settings: of the student's projection, of the teacher's (None for its top tokens), and of the divergence."""

    student: Settings
    teacher: Settings | None
    kind: Kind
    beta: float


def token_divergence(
    states_btd: jax.Array,
    weight: jax.Array,
    targets_bt: jax.Array,
    weights_bt: jax.Array,
    teacher: TeacherStates | TeacherTop,
    *,
    tied: bool,
    kind: Kind = "reverse_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk: int = 1024,
    placement: Placement = Placement(),
    frozen: bool = False,
    banned_bt: jax.Array | None = None,
    banned_ids: tuple[int, ...] = (),
) -> tuple[jax.Array, TokenDivergence]:
    """Return the weighted sum of the divergences, through which gradients flow to the student, and the values of every token.

    Args:
        states_btd, weight, targets_bt, weights_bt, tied, chunk, placement, frozen: as for `cross_entropy.token_loss`.
        teacher: its distributions, from the same tokens. Top tokens are of the temperature already.
        kind, beta: the divergence; beta is read by jsd.
        temperature: logits of both are divided by it.
        banned_bt: int or bool [B, T], where the tokens `banned_ids` are left out of both distributions; None is nowhere.
        banned_ids: the tokens.

    Raises:
        ValueError: the temperature or beta is outside its range, or only one of `banned_bt` and `banned_ids` is given.
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}; a distribution needs one above 0.")
    if kind == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"beta is {beta}; it must be between 0 and 1, both excluded: those are forward_kl and reverse_kl."
        )
    if (banned_bt is None) != (not banned_ids):
        raise ValueError("give banned_bt and banned_ids together.")

    def settings(tied: bool) -> Settings:
        own = settings_of(placement, tied, chunk, frozen)
        return own._replace(temperature=temperature, banned=tuple(banned_ids))

    choice = _Choice(settings(tied), settings(teacher.tied) if isinstance(teacher, TeacherStates) else None, kind, beta)
    rows = {"targets": targets_bt, "weights": weights_bt, "banned": banned_bt}
    if isinstance(teacher, TeacherStates):
        rows |= {"teacher_states": teacher.states}
    else:
        rows |= {"ids": teacher.ids, "log_probs": teacher.log_probs}
    matrix = teacher.weight if isinstance(teacher, TeacherStates) else None
    total, values = _divergences(choice, placement, states_btd, weight, rows, matrix)
    return total, TokenDivergence(*jax.lax.stop_gradient(values))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _divergences(choice: _Choice, placement: Placement, states_btd, weight, rows, teacher_weight):
    """Return (weighted sum, (divergence, log p, entropy)). Outside of shard_map, as `cross_entropy._token_scores`."""
    values, _ = _computed(choice, placement, states_btd, weight, rows, teacher_weight, gradients=False)
    return _weighted(values[0], rows["weights"]), values


def _weighted(values_bt, weights_bt):
    """The sum of weighted values; what has no weight counts nothing, not even NaN."""
    return jnp.where(weights_bt != 0, values_bt * weights_bt, 0).sum()


def _forward(choice, placement, states_btd, weight, rows, teacher_weight):
    values, gradients = _computed(choice, placement, states_btd, weight, rows, teacher_weight, gradients=True)
    return (_weighted(values[0], rows["weights"]), values), gradients


def _backward(choice, placement, gradients, above):
    scaled = jax.tree.map(lambda x: (above[0] * x.astype(jnp.float32)).astype(x.dtype), gradients)
    return *scaled, None, None


_divergences.defvjp(_forward, _backward)


def _computed(choice: _Choice, placement: Placement, states_btd, weight, rows, teacher_weight, *, gradients: bool):
    """Return the values of every token, and the gradients of the states and of the weight, None where it is not computed."""
    student, teacher = choice.student, choice.teacher
    tokens, matrix = placement.spec(("batch", "length")), weight_spec(placement, student.tied)
    deep = PartitionSpec(*tokens, None)
    specs = {name: deep if x is not None and x.ndim == 3 else tokens for name, x in rows.items()}
    inputs = deep, matrix, specs, None if teacher is None else weight_spec(placement, teacher.tied)
    outputs = (tokens,) * 3, (deep if gradients else None, matrix if gradients and not student.frozen else None)
    summed, copies = gradient_axes(placement, student)
    compute = functools.partial(_on_device, choice, summed, copies, gradients)
    return on_devices(placement, compute, inputs, outputs)(states_btd, weight, rows, teacher_weight)


def _on_device(
    choice: _Choice, summed: tuple[str, ...], copies: int, gradients: bool, states_btd, weight, rows, teacher_weight
):  # fmt: skip
    """`_computed` of this device's tokens and its part of the vocabulary."""
    settings = choice.student
    dtype, like = states_btd.dtype, weight.dtype
    weight = whole(settings, weight.astype(dtype))
    if choice.teacher is not None:
        teacher_weight = whole(choice.teacher, teacher_weight.astype(rows["teacher_states"].dtype))

    def chunk_of(dweight, rows):
        x_cd, of = rows
        logits_cv, log_z_c, _, chosen_c = logits_of(settings, x_cd, weight, of["targets"], of["banned"])
        log_prob_cv = logits_cv - log_z_c[:, None]
        divergence_cv, u_cv = _terms(choice, log_prob_cv, *_compared(choice, log_prob_cv, of, teacher_weight))
        divergence_c, u_c = (over(jax.lax.psum, x.sum(axis=-1), settings.vocab) for x in (divergence_cv, u_cv))
        out = divergence_c, chosen_c - log_z_c, entropy_of(settings, log_prob_cv)
        if not gradients:
            return None, (out, None)
        weight_c1 = of["weights"][:, None] / settings.temperature
        slope_cv = jnp.where(weight_c1 != 0, (u_cv - jnp.exp(log_prob_cv) * u_c[:, None]) * weight_c1, 0)
        dx_cd, dweight = products(settings, slope_cv.astype(dtype), x_cd, weight, dweight)
        return dweight, (out, over(jax.lax.psum, dx_cd, settings.vocab).astype(dtype))

    dweight = jnp.zeros(weight.shape, jnp.float32) if gradients and not settings.frozen else None
    dweight, (out, dstates_btd) = by_chunks(settings, chunk_of, dweight, (states_btd, rows), rows["weights"] != 0)
    if dweight is not None:
        dweight = (scattered(settings, over(jax.lax.psum, dweight, summed)) / copies).astype(like)
    return out, (dstates_btd, dweight)


def _compared(choice: _Choice, log_prob_cv, of: dict[str, Any], teacher_weight):
    """Return the log-probabilities of each token's outcome under student and teacher, [C, V] each, and the token's share of
    the outcome under the student, [C, V] or 1."""
    if choice.teacher is not None:
        logits_cv, log_z_c, *_ = logits_of(
            choice.teacher, of["teacher_states"], teacher_weight, of["targets"], of["banned"]
        )
        return log_prob_cv, logits_cv - log_z_c[:, None], 1
    settings, rows = choice.student, jnp.arange(len(log_prob_cv))[:, None]
    ids_ck, teacher_ck = of["ids"], of["log_probs"].astype(jnp.float32)
    is_known = ids_ck >= 0
    if of["banned"] is not None:
        is_known &= ~(jnp.isin(ids_ck, jnp.asarray(settings.banned)) & (of["banned"] != 0)[:, None])
    teacher_ck = jnp.where(is_known, teacher_ck, -jnp.inf)
    known_c = jnp.exp(teacher_ck).sum(axis=-1)
    # A tail below the bound is one of rounding; the banned tokens' probability goes to all others in proportion.
    lost_c = jnp.exp(jnp.where(is_known | (ids_ck < 0), -jnp.inf, of["log_probs"].astype(jnp.float32))).sum(axis=-1)
    tail_c = jnp.log(jnp.maximum(1 - known_c - lost_c, LEAST_TAIL))
    norm_c = jnp.logaddexp(jnp.log(known_c), tail_c)
    size = log_prob_cv.shape[-1]
    first = jax.lax.axis_index(settings.vocab) * size if settings.vocab else 0
    here_ck = jnp.where(is_known & (ids_ck >= first) & (ids_ck < first + size), ids_ck - first, size)  # size: not here
    is_top_cv = jnp.zeros(log_prob_cv.shape, bool).at[rows, here_ck].set(True, mode="drop")
    teacher_cv = jnp.broadcast_to((tail_c - norm_c)[:, None], log_prob_cv.shape)
    teacher_cv = teacher_cv.at[rows, here_ck].set(teacher_ck - norm_c[:, None], mode="drop")
    rest_c = over(jax.lax.psum, jnp.where(is_top_cv, 0, jnp.exp(log_prob_cv)).sum(axis=-1), settings.vocab)
    rest_c = jnp.log(jnp.maximum(rest_c, jnp.finfo(jnp.float32).tiny))
    student_cv = jnp.where(is_top_cv, log_prob_cv, rest_c[:, None])
    return student_cv, teacher_cv, jnp.where(is_top_cv, 1, jnp.exp(log_prob_cv - rest_c[:, None]))


def _terms(choice: _Choice, log_prob_cv, student_cv, teacher_cv, share_cv):
    """Return each token's part of the divergence, and u (see above), [C, V] each; both 0 for a token that is left out."""
    is_left_out = log_prob_cv == -jnp.inf
    student_cv, teacher_cv = (jnp.where(is_left_out, 0, x) for x in (student_cv, teacher_cv))
    teacher_prob_cv = share_cv * jnp.exp(teacher_cv)
    if choice.kind == "forward_kl":
        terms = teacher_prob_cv * (teacher_cv - student_cv), -teacher_prob_cv
    elif choice.kind == "reverse_kl":
        part_cv = jnp.exp(log_prob_cv) * (student_cv - teacher_cv)
        terms = part_cv, part_cv
    else:
        mean_cv = jnp.logaddexp(student_cv + math.log1p(-choice.beta), teacher_cv + math.log(choice.beta))
        u_cv = (1 - choice.beta) * jnp.exp(log_prob_cv) * (student_cv - mean_cv)
        terms = choice.beta * teacher_prob_cv * (teacher_cv - mean_cv) + u_cv, u_cv
    return tuple(jnp.where(is_left_out, 0, x) for x in terms)
