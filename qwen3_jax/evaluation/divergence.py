"""Distance between the predictions of two models on a text: perplexities and mean KL divergence.

    KL(P || Q) = sum over the vocabulary of P log(P / Q), mean over tokens        P the reference, Q the other, in nats

The text is cut into windows without overlap; each token is predicted from those before it in its window. KL, unlike
perplexity, shows whether a model that is equally good on average predicts the same (llama.cpp's `--kl-divergence`).

Shapes: b windows, t length, c tokens of a piece, d hidden, v vocabulary.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from qwen3_jax.errors import UserError
from qwen3_jax.model import Qwen3
from qwen3_jax.progress import progress_bar

_PIECE = 64  # tokens whose logits over the whole vocabulary are in memory at once


@dataclass(frozen=True)
class Divergence:
    """The result of `divergence`.

    Attributes:
        tokens: predicted tokens.
        reference_perplexity, perplexity: of the two models; e to the mean cross-entropy.
        kl: mean KL divergence of the other model from the reference, nats per token.
        same_top: share of tokens for which both models have the same most probable next token.
    """

    tokens: int
    reference_perplexity: float
    perplexity: float
    kl: float
    same_top: float


def divergence(reference: Qwen3, other: Qwen3, ids: Sequence[int], length: int = 512) -> Divergence:
    """Compare two models of one vocabulary on a text.

    Args:
        reference, other: on the same devices; may be quantised.
        ids: the text's tokens.
        length: tokens of a window, 2 or more.

    Raises:
        UserError: the text has fewer than two tokens, or an id outside a vocabulary.
    """
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens; at least 2 are needed.")
    if max(ids) >= min(reference.config.vocab_size, other.config.vocab_size):
        raise UserError(f"the text has the token {max(ids)}, which is not in both vocabularies.")
    sums = np.zeros(4)
    count = 0
    windows = list(_windows(ids, length))
    left, right = nnx.split(reference), nnx.split(other)
    with progress_bar("comparing", len(windows)) as bar:
        for tokens_1t, mask_1t in windows:
            states = [_states(*model, tokens_1t) for model in (left, right)]
            sums += np.asarray(_compare(left[0], right[0], left[1], right[1], *states, tokens_1t, mask_1t), np.float64)
            count += int(mask_1t.sum())
            bar.advance(note=f"KL {sums[2] / count:.4f}")
    first, second, kl, same = sums / count
    return Divergence(count, math.exp(first), math.exp(second), float(kl), float(same))


def _windows(ids: Sequence[int], length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield tokens [1, T] and, for each, whether its next one is predicted; T is `length`, padded to whole pieces."""
    length = min(length, len(ids))
    for start in range(0, len(ids) - 1, length):
        part = np.asarray(ids[start : start + length], np.int32)
        if part.size < 2:
            return
        tokens = np.zeros((1, length + -length % _PIECE), np.int32)
        mask = np.zeros(tokens.shape, bool)
        tokens[0, : part.size] = part
        mask[0, : part.size - 1] = True  # causal: padding at the end changes nothing before it
        yield tokens, mask


@functools.partial(jax.jit, static_argnums=0)
def _states(graphdef, state, tokens_1t):
    return nnx.merge(graphdef, state).hidden(tokens_1t).states


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(left_def, right_def, left, right, left_states, right_states, tokens_1t, mask_1t):
    """Return sums over tokens: cross-entropy of both, KL, and whether the most probable token is the same."""
    models = nnx.merge(left_def, left), nnx.merge(right_def, right)
    next_t = jnp.roll(tokens_1t[0], -1)

    def piece(of):
        left_cd, right_cd, next_c, mask_c = of
        first_cv, second_cv = (
            jax.nn.log_softmax(model.logits(states)) for model, states in zip(models, (left_cd, right_cd), strict=True)
        )
        losses = [-jnp.take_along_axis(log_p, next_c[:, None], axis=1)[:, 0] for log_p in (first_cv, second_cv)]
        kl_c = (jnp.exp(first_cv) * (first_cv - second_cv)).sum(axis=1)
        same_c = first_cv.argmax(axis=1) == second_cv.argmax(axis=1)
        return jnp.stack([jnp.where(mask_c, x, 0.0).sum() for x in (*losses, kl_c, same_c)])

    pieces = [a.reshape(-1, _PIECE, *a.shape[1:]) for a in (left_states[0], right_states[0], next_t, mask_1t[0])]
    return jax.lax.map(piece, tuple(pieces)).sum(axis=0)
