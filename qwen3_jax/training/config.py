"""The whole training run as one typed configuration: what `train.py --config FILE` reads.

Every key can be overridden on the command line by its dotted name: `--optimizer.learning_rate=3e-4`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import DataConfig
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.kernels.choice import Kernels
from sharding import MeshConfig

# Architecture fields that a run sets itself.
_SET_ELSEWHERE = {
    "dtype": "set model.param_dtype",
    "bos_token_id": "the tokenizer decides it",
    "eos_token_id": "the tokenizer decides it",
}


@dataclass(frozen=True)
class ModelConfig:
    """Which model to train.

    Attributes:
        preset: a released architecture by name ("Qwen3-0.6B"); see `qwen3_jax.PRESETS`.
        init_from: start from these weights: a Hugging Face folder or hub id. Its architecture is used.
        config: architecture fields by their Hugging Face names, over the preset's or the checkpoint's.
        dtype: compute type of activations.
        param_dtype: storage type of parameters; float32 keeps master weights.
        scan_layers: stack equal layers, so that compile time does not depend on depth; false runs a small model faster.
        remat: what the backward pass computes again: none; dots, all but the products with weights; qkv, all but queries,
            keys, values and attention; attention, all but attention; full, whole layers. From most memory to least.
        quantization: int8 or fp8 products of the attention projections and of dense MLPs, through qwix.
        kernels: implementation of attention and of the experts; auto picks the platform's fastest.
    """

    preset: str | None = None
    init_from: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = True
    remat: Literal["none", "dots", "qkv", "attention", "full"] = "none"
    quantization: Literal["int8", "fp8"] | None = None
    kernels: Kernels = field(default_factory=Kernels)

    def __post_init__(self) -> None:
        if self.preset is not None and self.init_from is not None:
            raise UserError("model.preset and model.init_from both name an architecture; give one of them.")
        if self.preset is not None:
            Qwen3Config.preset(self.preset)
        known = [f.name for f in dataclasses.fields(Qwen3Config)]
        for name in self.config:
            if name in _SET_ELSEWHERE:
                raise UserError(f"model.config.{name} has no effect: {_SET_ELSEWHERE[name]}.")
            if name not in known:
                raise UserError(f"model.config.{name} is not an architecture field.{nearest(name, known)}")

    def architecture(self, base: Qwen3Config | None, vocab_size: int) -> Qwen3Config:
        """Return the architecture: `base` (of init_from), the preset or the defaults, with `config` over it.

        `vocab_size` is used unless something else says how many rows the embedding has.
        """
        start = base
        if start is None:
            start = Qwen3Config.preset(self.preset) if self.preset else Qwen3Config(vocab_size=vocab_size)
        merged = {f.name: getattr(start, f.name) for f in dataclasses.fields(Qwen3Config)} | self.config
        config = Qwen3Config.checked(merged)
        if config.vocab_size < vocab_size:
            raise UserError(f"model.config.vocab_size is {config.vocab_size}; the tokenizer has {vocab_size} tokens.")
        return config


@dataclass(frozen=True)
class TokenizerConfig:
    """Where the tokenizer comes from.

    Attributes:
        path: a folder with tokenizer.json, or a hub id; null trains one, or takes the one of model.init_from.
        vocab_size: size of a trained one, Qwen3's 26 added tokens included.
        train_records: records of the training data that it is trained on.
    """

    path: str | None = None
    vocab_size: int = 4096
    train_records: int = 2000


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with warm-up and decay.

    Attributes:
        learning_rate: peak.
        warmup_steps: linear from 0 to the peak.
        schedule: what follows: cosine or linear to `final_learning_rate`, or constant.
        final_learning_rate: as a share of the peak.
        weight_decay: on matrices; norms and biases are not decayed.
        beta1, beta2, eps: Adam's.
        clip_norm: largest global gradient norm.
        moment_dtype: storage type of Adam's moments; their arithmetic is float32.
        spike_sigmas: a step is skipped when its loss or gradient norm lies this many standard deviations above the mean of
            the last `spike_window` steps; 0 skips only what is not finite, which is always skipped.
        spike_window: see above.
        max_skips: the run stops after this many skipped steps in a row.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_learning_rate: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_norm: float = 1.0
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    spike_sigmas: float = 6.0
    spike_window: int = 128
    max_skips: int = 20

    def __post_init__(self) -> None:
        for name, low, high in (
            ("learning_rate", 0.0, None), ("warmup_steps", 0, None), ("final_learning_rate", 0.0, 1.0),
            ("weight_decay", 0.0, None), ("beta1", 0.0, 1.0), ("beta2", 0.0, 1.0), ("eps", 0.0, None),
            ("spike_sigmas", 0.0, None), ("spike_window", 2, None), ("max_skips", 1, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise UserError(f"optimizer.{name} is {value}; it must be {bound}.")
        if self.clip_norm <= 0:
            raise UserError(f"optimizer.clip_norm is {self.clip_norm}; it must be above 0.")


@dataclass(frozen=True)
class LossConfig:
    """What is minimised besides cross-entropy.

    The coefficient of the load-balancing loss belongs to the architecture: `model.config.router_aux_loss_coef`.

    Attributes:
        z_loss: coefficient of (log Z)^2 (PaLM used 1e-4).
        chunk_tokens: tokens of one device whose logits are held at a time.
        balance_counts: how the load-balancing loss of an MoE model counts expert choices over the whole global batch when it
            comes in several micro-batches. exact: one more forward pass counts them first, and the result is that of one
            big batch. buffer: the running buffer of Qiu et al. 2025 (arXiv 2501.11873), no extra pass; each micro-batch
            uses the counts of the step so far.
    """

    z_loss: float = 0.0
    chunk_tokens: int = 1024
    balance_counts: Literal["exact", "buffer"] = "exact"

    def __post_init__(self) -> None:
        if self.z_loss < 0:
            raise UserError(f"loss.z_loss is {self.z_loss}; it must be at least 0.")
        if self.chunk_tokens < 1:
            raise UserError(f"loss.chunk_tokens is {self.chunk_tokens}; it must be at least 1.")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        run_dir: everything the run writes: checkpoints/, hf/, metrics.jsonl, tensorboard/, loss.png, config.json. A run
            that is there already is resumed.
        steps: optimizer steps.
        model: what to train.
        tokenizer: its tokenizer.
        data: what to train on.
        optimizer: how.
        loss: what is minimised.
        micro_batches: the batch is worked through in this many parts, with the result of one.
        mesh: devices; -1 on one axis takes all that are left.
        seed: of the initial weights; the data has its own.
        log_every: steps between lines of metrics.
        eval_every: steps between measurements on held-out data; 0 measures at the end only.
        eval_batches: most batches of each source's held-out data.
        checkpoint_every: steps between checkpoints; 0 saves at the end only.
        checkpoint_keep: newest checkpoints kept.
        export_dtype: data type of the weights in run_dir/hf; null keeps param_dtype.
        budget_curve: measured at the end when given.
    """

    data: DataConfig
    run_dir: str = "runs/default"
    steps: int = 1000
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    micro_batches: int = 1
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=-1))
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 8
    checkpoint_every: int = 0
    checkpoint_keep: int = 2
    export_dtype: Literal["float32", "bfloat16"] | None = None
    budget_curve: BudgetCurveConfig | None = None

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 1), ("micro_batches", 1), ("log_every", 1), ("eval_every", 0), ("eval_batches", 1),
            ("checkpoint_every", 0), ("checkpoint_keep", 1),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if self.budget_curve is not None:
            self.data.source(self.budget_curve.source)
        if self.optimizer.warmup_steps >= self.steps:
            raise UserError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) leaves nothing of the run's steps ({self.steps})."
            )
