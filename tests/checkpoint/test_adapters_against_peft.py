"""Adapters against PEFT: logits, folders in both directions, and training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from qwen3_jax.checkpoint.adapters.attach import merged, save_adapter, with_adapter
from qwen3_jax.checkpoint.adapters.files import read_adapter
from qwen3_jax.checkpoint.hf_load import load_model
from qwen3_jax.training import adapters
from qwen3_jax.training.config import ModelConfig, OptimizerConfig
from qwen3_jax.training.methods import LoraConfig
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.step import Trainer
from sharding import Placement
from tests.helpers import hf_checkpoints

pytestmark = pytest.mark.slow
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]
TOKENS = np.random.default_rng(0).integers(0, 320, (2, 17))
# variant of the model, fields of LoraConfig
CASES = {
    "every weight with experts": (
        "moe",
        dict(target_modules=["q_proj", "v_proj", "o_proj", "lm_head", "embed_tokens"], target_parameters=PARAMETERS),
    ),
    "all-linear with experts": ("moe", dict(target_modules="all-linear", use_rslora=True)),
    "gate and up": ("moe", dict(target_modules=["gate_proj", "up_proj"])),
    "down, one layer": ("moe", dict(target_modules=["down_proj", "k_proj"], layers_to_transform=[1])),
    "patterns": (
        "dense_untied",
        dict(
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"layers.1.self_attn.q_proj": 2, "down_proj": 6},
            alpha_pattern={"v_proj": 3},
        ),
    ),
    "all-linear, tied": ("dense_tied", dict(target_modules="all-linear", exclude_modules=["k_proj"])),
    "biases": ("dense_bias", dict(target_modules=["q_proj", "o_proj"])),
    "a pattern": ("dense_untied", dict(target_modules=r".*\.[12]\..*(q|gate|up)_proj")),
}


def peft_model(variant: str, folder: Path, **fields):
    """Save a base model of transformers, and return it with new adapters."""
    import peft

    model = hf_checkpoints.build(variant)
    model.save_pretrained(folder)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, **fields)).eval()


def logits(model, tokens: np.ndarray = TOKENS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


@pytest.mark.parametrize("name", CASES)
def test_logits_and_folders_in_both_directions(name, tmp_path):
    import peft

    variant, fields = CASES[name]
    theirs = peft_model(variant, tmp_path / "base", **fields, init_lora_weights=False)
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.1
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits(theirs)
    plain = load_model(tmp_path / "base")
    adapter = read_adapter(tmp_path / "theirs", plain.config)
    ours = with_adapter(plain, adapter)
    scale = max(1.0, float(np.abs(expected).max()) / 10)
    for model in (ours, merged(ours)):
        np.testing.assert_allclose(np.asarray(model(TOKENS.astype(np.int32))), expected, atol=2e-5 * scale)
    save_adapter(ours, adapter.config, tmp_path / "ours")
    first, second = (load_file(tmp_path / one / "adapter_model.safetensors") for one in ("theirs", "ours"))
    assert {key for key in first if not key.endswith("base_layer.weight")} == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in second)
    again = peft.PeftModel.from_pretrained(hf_checkpoints.build(variant), tmp_path / "ours").eval()
    np.testing.assert_array_equal(logits(again), expected)


@pytest.mark.parametrize("variant", ["dense_untied", "moe"])
def test_20_steps_of_adamw_are_those_of_peft_and_torch(variant, tmp_path):
    moe = variant == "moe"
    modules = ["q_proj", "v_proj", "o_proj", "lm_head", *([] if moe else ["gate_proj", "down_proj"])]
    base, start = tmp_path / "base", tmp_path / "start"
    theirs = peft_model(variant, base, target_modules=modules, target_parameters=PARAMETERS if moe else None)
    theirs.save_pretrained(start)
    model, lora = ModelConfig(init_from=str(base)), LoraConfig(init_from=str(start))
    options = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=0, schedule="constant", clip_norm=1e9, spike_sigmas=0, weight_decay=0.1
    )
    config = dataclasses.replace(load_model(base).config, router_aux_loss_coef=0.0)
    trainer = Trainer(
        config,
        model,
        options,
        schedule(options, 100),
        Placement(),
        micro_batches=2,
        lora=adapters.lora_of(lora, config),
    )
    state = adapters.initial_state(model, lora, 0, trainer, base)
    peers = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(peers, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    rng = np.random.default_rng(1)
    for _ in range(20):
        tokens = rng.integers(0, 320, (8, 17)).astype(np.int32)
        ones = np.ones((8, 16), np.int32)
        batch = dict(
            tokens=tokens[:, :-1], targets=tokens[:, 1:], segment_ids=ones, loss_mask=ones.astype(np.float32),
            positions=np.tile(np.arange(16, dtype=np.int32), (8, 1)),
        )  # fmt: skip
        state, metrics = trainer.step(state, trainer.place(batch))
        labels = torch.tensor(tokens.astype(np.int64))
        loss = theirs(labels, labels=labels).loss
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        assert float(metrics.loss.total) == pytest.approx(loss.item(), rel=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(trainer.model(state.params), adapters.adapter_config(lora), tmp_path / "ours")
    first, second, before = (
        load_file(tmp_path / one / "adapter_model.safetensors") for one in ("theirs", "ours", "start")
    )
    for key, value in second.items():
        assert np.abs(value - before[key]).max() > 1e-3, key
        np.testing.assert_allclose(value, first[key], atol=1e-4, err_msg=key)
