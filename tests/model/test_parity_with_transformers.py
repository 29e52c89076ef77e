"""Logits and greedy tokens equal transformers', in fp32, for every architecture variant."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import qwen3_jax
from qwen3_jax.config import PRESETS, Qwen3Config
from qwen3_jax.model import parameter_count
from tests.helpers import hf_checkpoints, small_checkpoints

TOLERANCE = 2e-5  # of the largest logit


# Variants whose layers differ in both layouts; test_greedy_against_transformers has more in the other one.
STACKED = ("dense_untied", "dense_bias", "moe_no_norm_topk", "moe_mixed_layers", "yarn", "theta_2507", "odd_heads")
UNROLLED = ("dense_tied", "moe", "moe_mixed_layers", "yarn_mscale", "one_kv_head", "real_vocabulary")
CASES = [
    pytest.param(variant, scan_layers, marks=[] if variant in names else [pytest.mark.slow])
    for scan_layers, names in ((True, STACKED), (False, UNROLLED))
    for variant in hf_checkpoints.VARIANTS
]


@pytest.mark.parametrize(("variant", "scan_layers"), CASES)
def test_logits_equal_transformers(variant, scan_layers, tmp_path):
    reference = hf_checkpoints.build(variant)
    reference.save_pretrained(tmp_path / "hf")
    model, _ = qwen3_jax.load(tmp_path / "hf", scan_layers=scan_layers)
    shape = (1, 20) if variant == "real_vocabulary" else small_checkpoints.SHAPE
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, shape)
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    logits = model(jnp.asarray(tokens, jnp.int32))
    assert logits.dtype == jnp.float32
    assert logits.shape == expected.shape
    assert np.abs(np.asarray(logits) - expected).max() <= TOLERANCE * np.abs(expected).max()


SIZES = {
    "0.6B": (596_049_920, None),
    "1.7B": (1_720_574_976, None),
    "4B": (4_022_468_096, None),
    "8B": (8_190_735_360, None),
    "14B": (14_768_307_200, None),
    "32B": (32_762_123_264, None),
    "30B-A3B": (30_532_122_624, 3_353_032_704),
    "235B-A22B": (235_093_634_560, 22_190_763_520),
}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_equal_transformers_built_without_memory(size):
    import transformers

    config = Qwen3Config.preset(f"Qwen3-{size}")
    raw = config.to_hf()
    kind = transformers.Qwen3MoeConfig if config.num_experts else transformers.Qwen3Config
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(kind(**raw))
    total, active = SIZES[size]
    assert parameter_count(config) == reference.num_parameters() == total
    assert parameter_count(config, active=True) == (active or total)


def test_presets_cover_every_release():
    assert len(PRESETS) == 8 + 6 + 6
