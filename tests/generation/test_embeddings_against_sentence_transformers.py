"""Embeddings are those of sentence-transformers on the same folders: every pooling, prompts, truncation, dimensions."""

import numpy as np
import pytest
import torch  # noqa: F401 - the peer needs it

import qwen3_jax
from qwen3_jax.embedding_config import POOLING_MODES
from tests.helpers import embedding_folders
from tests.helpers.embedding_folders import TEXTS, write_layout

peers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.slow

TOLERANCE = 2e-5
WIDTH = embedding_folders.FIELDS["hidden_size"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embedding_folders.write_model(tmp_path_factory.mktemp("peer") / "x")


def both(folder):
    return qwen3_jax.load(folder), peers.SentenceTransformer(str(folder), device="cpu")


def test_prompts_truncation_and_dimensions(folder):
    write_layout(folder, limits={"max_seq_length": 40, "do_lower_case": False})
    (model, tokenizer), peer = both(folder)
    assert any(len(tokenizer.encode_whole(text)) > 40 for text in TEXTS)
    for options, theirs in (
        ({}, {}),
        ({}, dict(batch_size=1)),
        (dict(batch_size=2), {}),
        (dict(prompt_name="query"), dict(prompt_name="query")),
        (dict(prompt="X: "), dict(prompt="X: ")),
        (dict(dimensions=24), dict(truncate_dim=24, normalize_embeddings=True)),
    ):
        given = qwen3_jax.embed(model, tokenizer, TEXTS, truncate=True, **options)
        np.testing.assert_allclose(given, peer.encode(TEXTS, **theirs), atol=TOLERANCE)
    alone = np.stack([peer.encode(text) for text in TEXTS])
    np.testing.assert_allclose(qwen3_jax.embed(model, tokenizer, TEXTS, truncate=True), alone, atol=TOLERANCE)
    peer.tokenizer.padding_side = "left"
    np.testing.assert_allclose(peer.encode(TEXTS), alone, atol=TOLERANCE)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_every_pooling_mode_in_both_spellings(include_prompt, folder, tmp_path):
    """All modes at once are one behind the other; a folder that is saved gives sentence-transformers the same."""
    flags = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    old = {f"pooling_mode_{flag}": True for flag in flags} | {"word_embedding_dimension": WIDTH}
    new = {
        "pooling_mode": list(reversed(POOLING_MODES)),
        "embedding_dimension": WIDTH,
        "word_embedding_dimension": WIDTH,
    }
    for fields in (old, new):
        prompts = {"default_prompt_name": "query"}
        write_layout(
            folder,
            pooling=fields | {"include_prompt": include_prompt},
            normalize=False,
            prompts=prompts,
            limits={"max_seq_length": 300},
        )
        (model, tokenizer), peer = both(folder)
        given = qwen3_jax.embed(model, tokenizer, TEXTS)
        assert given.shape == (len(TEXTS), WIDTH * len(POOLING_MODES))
        np.testing.assert_allclose(given, peer.encode(TEXTS), atol=TOLERANCE)
        saved = qwen3_jax.save(model, tokenizer, tmp_path / str(fields is old))
        again = peers.SentenceTransformer(str(saved), device="cpu")
        np.testing.assert_allclose(given, again.encode(TEXTS), atol=TOLERANCE)
