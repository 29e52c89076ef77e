"""Perplexities and KL divergence of two models equal NumPy over their logits, window by window."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from qwen3_jax.errors import UserError
from qwen3_jax.evaluation.divergence import _windows, divergence
from qwen3_jax.model import Qwen3
from tests.helpers.tiny_models import TINY

CONFIG = dataclasses.replace(TINY, num_hidden_layers=1, initializer_range=0.3)


def test_divergence_equals_numpy_over_windows():
    """A window of 70 (a piece of 64 and 6) and one of 31: 69 + 30 predicted tokens."""
    reference, other = (Qwen3(CONFIG, rngs=nnx.Rngs(seed), scan_layers=False) for seed in (0, 1))
    ids = np.random.default_rng(0).integers(0, 64, 101).tolist()
    sums = np.zeros(4)
    for part in (ids[:70], ids[70:]):
        p, q = (
            (lambda z: z - np.log(np.exp(z).sum(-1, keepdims=True)))(
                np.asarray(m(np.asarray([part])), np.float64)[0, :-1]
            )
            for m in (reference, other)
        )
        t, following = np.arange(len(part) - 1), np.asarray(part[1:])
        same_top = (p.argmax(-1) == q.argmax(-1)).sum()
        sums += [-p[t, following].sum(), -q[t, following].sum(), (np.exp(p) * (p - q)).sum(), same_top]
    first, second, kl, same = sums / 99
    measured = divergence(reference, other, ids, length=70)
    assert measured.tokens == 99
    assert measured.reference_perplexity == pytest.approx(np.exp(first), rel=1e-4)
    assert measured.perplexity == pytest.approx(np.exp(second), rel=1e-4)
    assert measured.kl == pytest.approx(kl, rel=1e-4)
    assert measured.kl > 0.1
    assert measured.same_top == pytest.approx(same)
    with pytest.raises(UserError, match="1 tokens"):
        divergence(reference, other, [3])
    with pytest.raises(UserError, match="the token 64"):
        divergence(reference, other, [3, 64])


def test_windows_cover_the_text_once_without_the_first_token_of_each():
    for count, length, expected in ((10, 4, [3, 3, 1]), (9, 4, [3, 3]), (4, 512, [3]), (128, 64, [63, 63])):
        windows = list(_windows(list(range(count)), length))
        assert [int(mask.sum()) for _, mask in windows] == expected
        assert all(tokens.shape[1] % 64 == 0 for tokens, _ in windows)
        begin = 0
        for tokens, mask in windows:
            held = int(mask.sum()) + 1
            assert tokens[0, :held].tolist() == list(range(begin, begin + held))
            assert mask[0, : held - 1].all()
            begin += length
