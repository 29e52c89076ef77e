"""What `qwen3 quantize --to fp8` writes is Qwen's own form: transformers reads it, and finds the same model."""

import numpy as np
import pytest
import torch
import transformers

import qwen3_jax
from qwen3_jax.checkpoint.formats.write import save_quantized
from tests.helpers import packed_folders


@pytest.mark.parametrize("moe", [False, True])
def test_transformers_reads_a_written_fp8_folder_as_the_same_model(moe, tmp_path):
    model, _ = qwen3_jax.load(packed_folders.plain(tmp_path / "plain", moe=moe))
    folder = save_quantized(model, None, tmp_path / "fp8", "fp8")
    tokens = np.arange(24).reshape(2, 12)
    logits = np.asarray(qwen3_jax.load(folder)[0](tokens))
    unpack = transformers.FineGrainedFP8Config(dequantize=True)  # no CPU multiplies e4m3
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=unpack)
    with torch.no_grad():
        expected = peer.eval()(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(logits - np.asarray(model(tokens))).max() > 1e-3 * np.abs(logits).max()
