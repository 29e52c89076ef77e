"""Saved folders in MLX's language models, where they are installed: pip install "mlx[cpu]" mlx-lm."""

import jax
import numpy as np
import pytest

import qwen3_jax
from tests.helpers import tiny_models

mx = pytest.importorskip("mlx.core", reason='no MLX: pip install "mlx[cpu]" mlx-lm')
mlx_lm = pytest.importorskip("mlx_lm", reason='no mlx-lm: pip install "mlx[cpu]" mlx-lm')


@pytest.mark.parametrize("experts", [0, 4], ids=["dense", "moe"])
def test_mlx_loads_what_is_saved_and_computes_the_same(tmp_path, experts):
    model, tokenizer = tiny_models.model(0, experts=experts), tiny_models.tokenizer()
    qwen3_jax.save(model, tokenizer, tmp_path / "saved")
    theirs, their_tokenizer = mlx_lm.load(str(tmp_path / "saved"))
    text = "What is 2 + 3? <think>\n"
    ids = tokenizer.encode(text)
    assert their_tokenizer.encode(text) == ids
    logits = np.asarray(jax.device_get(model(np.asarray([ids], np.int32))))
    np.testing.assert_allclose(np.array(theirs(mx.array([ids]))), logits, rtol=1e-4, atol=1e-4)
    greedy = qwen3_jax.generate(model, tokenizer, [ids], max_new_tokens=12, sampling=qwen3_jax.Sampling(temperature=0))
    written = mlx_lm.stream_generate(theirs, their_tokenizer, ids, max_tokens=12)
    assert [each.token for each in written] == greedy[0].token_ids
