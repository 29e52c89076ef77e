"""Random checkpoints made by transformers: the peer that this model must agree with.

Weights are drawn wider than transformers' initialiser (which leaves logits near 0), norms away from 1 and biases away from 0,
so that a wrong transpose, a forgotten norm or a wrong base shows.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.helpers import tiny_models

transformers.logging.set_verbosity_error()

SMALL, MOE = tiny_models.DENSE, tiny_models.MOE

# name -> (is MoE, config fields)
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "dense_tied": (False, SMALL | dict(tie_word_embeddings=True)),
    "dense_untied": (False, SMALL),
    "dense_bias": (False, SMALL | dict(attention_bias=True)),
    "moe": (True, MOE),
    "moe_no_norm_topk": (True, MOE | dict(norm_topk_prob=False, num_experts_per_tok=3)),
    "moe_mixed_layers": (True, MOE | dict(num_hidden_layers=5, mlp_only_layers=[1], decoder_sparse_step=2)),
    "yarn": (
        False,
        SMALL
        | dict(
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            max_position_embeddings=256,
        ),
    ),
    "yarn_mscale": (
        False,
        SMALL
        | dict(
            rope_scaling={
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 64,
                "mscale": 0.8,
                "mscale_all_dim": 0.5,
                "beta_fast": 24.0,
                "beta_slow": 2.0,
                "truncate": False,
            },
            max_position_embeddings=512,
        ),
    ),
    "theta_2507": (False, SMALL | dict(rope_theta=5e6, max_position_embeddings=262_144)),
    "odd_heads": (False, SMALL | dict(num_attention_heads=9, num_key_value_heads=3, head_dim=22, hidden_size=50)),
    "one_kv_head": (False, SMALL | dict(num_attention_heads=5, num_key_value_heads=1)),
    "real_vocabulary": (False, SMALL | dict(vocab_size=151_936, num_hidden_layers=2, tie_word_embeddings=True)),
}


def build(variant: str, *, seed: int = 0) -> transformers.PreTrainedModel:
    """Return a random fp32 model of one of the `VARIANTS`, in evaluation mode."""
    moe, fields = VARIANTS[variant]
    return build_from(moe, fields, seed=seed)


def build_from(moe: bool, fields: dict[str, Any], *, seed: int = 0) -> transformers.PreTrainedModel:
    """Return a random fp32 model with these config fields."""
    torch.manual_seed(seed)
    fields = dict(fields)
    config_class = transformers.Qwen3MoeConfig if moe else transformers.Qwen3Config
    model_class = transformers.Qwen3MoeForCausalLM if moe else transformers.Qwen3ForCausalLM
    model = model_class(config_class(**fields, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * torch.randn_like(parameter))
            elif "embed" in name or "lm_head" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5)
    return model


def write(variant: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Save one of the `VARIANTS` as transformers does and return its folder."""
    build(variant, seed=seed).to(dtype).save_pretrained(folder)
    return folder
