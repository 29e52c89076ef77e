"""What a run trains, and how: its method, the settings of DPO, and adapters; parts of `qwen3_jax.training.config`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from qwen3_jax.bounds import above, check_bounds, whole
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import WeightType

Method = Literal["pretrain", "sft", "dpo", "reward_model", "grpo", "distillation"]
# Peaks where the configuration names none: fine-tuning moves weights that are good already. TRL 1.16 has 2e-5 for SFT and 1e-6
# for DPO; verl's and slime's GRPO recipes for Qwen3 have 1e-6, and so has verl's on-policy distillation.
LEARNING_RATES: dict[str, float] = {
    "pretrain": 3e-4,
    "sft": 1e-5,
    "dpo": 1e-6,
    "reward_model": 1e-5,
    "grpo": 1e-6,
    "distillation": 1e-6,
}


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290).

    Attributes:
        beta: how far the model may go from the reference; higher is nearer.
        reference: the reference model, a Hugging Face folder or hub id; null is model.init_from. Its log-probabilities of all
            answers are computed once and kept in run_dir/reference.
    """

    beta: float = 0.1
    reference: str | None = None

    def __post_init__(self) -> None:
        check_bounds(vars(self), "dpo.", beta=above(0, finite=True))


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA: Hu et al. 2021, arXiv 2106.09685) over the frozen weights of model.init_from.

    Attributes:
        rank: of the product A B; null is 16.
        alpha: numerator of the scaling alpha / rank; null is twice the rank.
        targets: the weights that get an adapter, as PEFT names modules: a list of names (q_proj, gate_proj, gate for the
            router, lm_head, embed_tokens), each of which stands for all modules that end in it; all-linear; or one regular
            expression for whole module names. gate_proj, up_proj and down_proj are the experts in an MoE layer.
        target_parameters: the same for parameters of transformers 5: mlp.experts.gate_up_proj, mlp.experts.down_proj,
            mlp.gate.weight.
        rslora: scaling by alpha / sqrt(rank) (arXiv 2312.03732).
        init_from: train an existing adapter on, a folder in PEFT's format or hub id; it sets the keys above.
        quantize: keep the frozen weights in int8, fp8 or int4.
        merge: also export the model with its adapter added, to run_dir/hf.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: list[str] | str = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    target_parameters: list[str] = field(default_factory=list)
    rslora: bool = False
    init_from: str | None = None
    quantize: WeightType | None = None
    merge: bool = False

    def __post_init__(self) -> None:
        check_bounds(vars(self), "lora.", rank=whole(1), alpha=above(0))
        if self.init_from is None:
            return
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            default = setting.default if setting.default_factory is dataclasses.MISSING else setting.default_factory()
            if setting.name in ("rank", "alpha", "targets", "target_parameters", "rslora") and value != default:
                raise UserError(f"lora.init_from sets lora.{setting.name}; leave that out.")
