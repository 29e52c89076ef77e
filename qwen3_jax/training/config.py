"""The whole training run as one typed configuration: what `train.py --config FILE` reads.

Every key can be overridden on the command line by its dotted name: `--optimizer.learning_rate=3e-4`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen3_jax.bounds import above, at_least, between, check_bounds, whole
from qwen3_jax.config import Qwen3Config
from qwen3_jax.data import DataConfig
from qwen3_jax.errors import UserError, nearest
from qwen3_jax.evaluation.config import BudgetCurveConfig
from qwen3_jax.kernels import Kernels
from qwen3_jax.kernels.execution import Quantization
from qwen3_jax.model import Remat
from qwen3_jax.training.distillation_config import DistillationConfig
from qwen3_jax.training.method_checks import check_method
from qwen3_jax.training.methods import LEARNING_RATES, DpoConfig, LoraConfig, Method
from qwen3_jax.training.rl_config import RlConfig
from qwen3_jax.training.stage_config import StageConfig
from sharding import MeshConfig

_VOCABULARY_MULTIPLE = 128  # embedding rows are padded to a multiple of this, so that they divide over usual meshes
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
        scan_layers: stack equal layers, so that compile time is independent of depth; false is faster for small models.
        remat: what the backward pass recomputes: none; dots, all but products with weights; mlp, all but queries, keys,
            values, attention and the product of the MLP's gate (of experts on TPUs); qkv, all but queries, keys, values and
            attention; attention, all but attention; full, whole layers. From most memory to least.
        quantization: int8 or fp8 products of the attention projections and of dense MLPs, through qwix.
        kernels: implementation of attention and of the experts; auto picks the platform's fastest.
    """

    preset: str | None = None
    init_from: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    scan_layers: bool = True
    remat: Remat = "none"
    quantization: Quantization | None = None
    kernels: Kernels = field(default_factory=Kernels)

    def __post_init__(self) -> None:
        if self.preset is not None and self.init_from is not None:
            raise UserError("model.preset and model.init_from both set the architecture; give only one.")
        if self.preset is not None:
            Qwen3Config.preset(self.preset)
        fields = [f.name for f in dataclasses.fields(Qwen3Config)]
        for name in self.config:
            if name in _SET_ELSEWHERE:
                raise UserError(f"model.config.{name} has no effect: {_SET_ELSEWHERE[name]}.")
            if name not in fields:
                raise UserError(f"model.config.{name} is not an architecture field.{nearest(name, fields)}")

    def architecture(self, base: Qwen3Config | None, tokens: int) -> Qwen3Config:
        """Return the architecture: `base` (of init_from), the preset or the defaults, overridden by `config`.

        Args:
            base: the architecture of init_from.
            tokens: size of the tokenizer; the number of embedding rows is this, padded, unless base, preset or `config` set it.

        Raises:
            UserError: the embedding has fewer rows than the tokenizer has tokens.
        """
        start = base
        if start is None:
            start = (
                Qwen3Config.preset(self.preset) if self.preset else Qwen3Config(vocab_size=padded_vocabulary(tokens))
            )
        merged = {f.name: getattr(start, f.name) for f in dataclasses.fields(Qwen3Config)} | self.config
        config = Qwen3Config.checked(merged)
        if config.vocab_size < tokens:
            raise UserError(f"model.config.vocab_size is {config.vocab_size}; the tokenizer has {tokens} tokens.")
        return config


def padded_vocabulary(tokens: int) -> int:
    """Return the number of embedding rows for a tokenizer of `tokens` tokens."""
    return -(-tokens // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


@dataclass(frozen=True)
class TokenizerConfig:
    """The tokenizer to load or train.

    Attributes:
        path: a folder with tokenizer.json, or a hub id; null uses that of model.init_from, or trains one.
        vocab_size: size of a trained one, Qwen3's 26 added tokens included.
        train_records: number of training records it is trained on.
    """

    path: str | None = None
    vocab_size: int = 4096
    train_records: int = 2000


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with warm-up and decay.

    Attributes:
        learning_rate: peak; null is the method's, which config.json then has: pretrain 3e-4, sft 1e-5, dpo 1e-6, reward_model
            1e-5.
        warmup_steps: steps of the linear warm-up; the first step has peak / warmup_steps.
        schedule: after warm-up: cosine or linear to `final_learning_rate`; constant; or wsd, constant but for a linear decay
            over the last `decay_share` of the steps (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395).
        final_learning_rate: at the end, as a share of the peak.
        decay_share: share of the steps in the decay of wsd.
        weight_decay: of matrices; norms and biases are not decayed.
        beta1, beta2, eps: of Adam.
        clip_norm: largest global gradient norm.
        moment_dtype: storage type of Adam's moments; their arithmetic is float32.
        spike_sigmas: a step is skipped when its loss or gradient norm lies this many standard deviations above the mean of
            the last `spike_window` steps; 0 skips only what is not finite, which is always skipped.
        spike_window: number of steps in that mean.
        max_skips: the run ends with an error after this many skipped steps in a row.
    """

    learning_rate: float | None = None
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    final_learning_rate: float = 0.1
    decay_share: float = 0.2
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
        check_bounds(
            vars(self), "optimizer.", learning_rate=at_least(0), warmup_steps=whole(0), final_learning_rate=between(0, 1),
            decay_share=between(0, 1), weight_decay=at_least(0), beta1=between(0, 1), beta2=between(0, 1), eps=at_least(0),
            clip_norm=above(0), spike_sigmas=at_least(0), spike_window=whole(2), max_skips=whole(1),
        )  # fmt: skip


@dataclass(frozen=True)
class LossConfig:
    """Terms of the loss besides cross-entropy.

    The coefficient of the load-balancing loss belongs to the architecture: `model.config.router_aux_loss_coef`.

    Attributes:
        z_loss: coefficient of (log Z)^2 (PaLM used 1e-4).
        chunk_tokens: tokens per device whose logits are in memory at a time.
        balance_counts: how the load-balancing loss of an MoE model counts expert choices over the global batch with several
            micro-batches. exact: an additional forward pass counts them first; the result equals that of one big batch.
            buffer: the running buffer of Qiu et al. 2025 (arXiv 2501.11873), without that pass; each micro-batch uses the
            counts of the step so far. micro_batch: each micro-batch is balanced by itself, as most frameworks have it; it is
            not Qwen3's loss, and keeps experts from specialising.
    """

    z_loss: float = 0.0
    chunk_tokens: int = 1024
    balance_counts: Literal["exact", "buffer", "micro_batch"] = "exact"

    def __post_init__(self) -> None:
        check_bounds(vars(self), "loss.", z_loss=at_least(0), chunk_tokens=whole(1))


@dataclass(frozen=True)
class Stage:
    """A stage with the run's settings filled in.

    Attributes:
        name: of the stage; "train" for a run without stages.
        first, last: it takes the steps first + 1 to last of the run.
        run: the configuration of this stage as a run of its own: data, optimizer, micro-batches, mesh, remat, and `steps` =
            last - first.
        weights: shares of the sources; None for the sources' own.
        rope_theta: None for the architecture's.
    """

    name: str
    first: int
    last: int
    run: TrainConfig
    weights: dict[str, float] | None
    rope_theta: float | None


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        method: pretrain; sft, the same on records of which a part is learned; dpo, on preferences against a reference model;
            reward_model, a scalar head on preferences; grpo, reinforcement learning on answers that it samples (`rl`);
            distillation, the distribution of a teacher, on records as for sft or on answers that the student samples (`rl`).
        run_dir: output folder: checkpoints/, hf/ (or adapter/), metrics.jsonl, tensorboard/, loss.png, config.json. If it
            holds a run, that run is resumed.
        steps: optimizer steps of a run without stages.
        stages: stages of a run in order. Parameters and optimizer state carry over; the checkpoint at the end of each is
            kept.
        model: the model.
        tokenizer: its tokenizer.
        data: training data.
        optimizer: AdamW and its learning rate.
        loss: terms of the loss.
        dpo: settings of the method dpo.
        rl: settings of the method grpo, and of distillation on answers of the student.
        distillation: settings of the method distillation.
        lora: train adapters over the frozen weights of model.init_from; null trains all parameters.
        micro_batches: number of parts in which a batch is computed; the result is that of one part.
        mesh: devices; -1 on one axis takes all that are left.
        seed: of the initial weights; `data.seed` is that of the data.
        log_every: steps between lines of metrics.
        eval_every: steps between evaluations on held-out data; 0 evaluates at the end of each stage only.
        eval_at_start: evaluate before the first step too.
        eval_batches: most held-out batches of each source.
        checkpoint_every: steps between checkpoints; 0 saves at the end of each stage only.
        checkpoint_keep: number of newest checkpoints kept, besides the ends of stages.
        checkpoint_keep_best: number of checkpoints with the lowest held-out loss that are kept too.
        profile: write a trace of a few early steps to run_dir/profile, for xprof (TensorBoard's profile plugin).
        wandb: project of Weights & Biases to log to (extra `wandb`).
        export_dtype: data type of the weights in run_dir/hf; null keeps param_dtype.
        budget_curve: evaluation at the end; null for none.
    """

    data: DataConfig
    method: Method = "pretrain"
    run_dir: str = "runs/default"
    steps: int | None = None
    stages: list[StageConfig] = field(default_factory=list)
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    dpo: DpoConfig | None = None
    rl: RlConfig | None = None
    distillation: DistillationConfig | None = None
    lora: LoraConfig | None = None
    micro_batches: int = 1
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=-1))
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_at_start: bool = False
    eval_batches: int = 8
    checkpoint_every: int = 0
    checkpoint_keep: int = 2
    checkpoint_keep_best: int = 1
    profile: bool = False
    wandb: str | None = None
    export_dtype: Literal["float32", "bfloat16"] | None = None
    budget_curve: BudgetCurveConfig | None = None

    def __post_init__(self) -> None:
        check_bounds(
            vars(self), steps=whole(1), micro_batches=whole(1), log_every=whole(1), eval_every=whole(0),
            eval_batches=whole(1), checkpoint_every=whole(0), checkpoint_keep=whole(1), checkpoint_keep_best=whole(0),
        )  # fmt: skip
        data = check_method(self)
        object.__setattr__(self, "data", data)
        self._fill_learning_rate()
        if (self.steps is None) == (not self.stages):
            raise UserError("set either steps or stages.")
        if self.lora is not None and self.model.init_from is None:
            raise UserError("lora: needs model.init_from, the model that its adapters are for.")
        if self.lora is not None and self.lora.quantize and self.model.quantization:
            raise UserError(
                "lora.quantize and model.quantization exclude each other: 8-bit products need whole weights."
            )
        if self.budget_curve is not None:
            self.data.source(self.budget_curve.source)
        for i, stage in enumerate(self.stages):
            if stage.name in [other.name for other in self.stages[:i]]:
                raise UserError(f"two stages are named {stage.name!r}.")
            for name in stage.weights or ():
                self.data.source(name)
        self.resolved()  # checks each stage by itself
        if self.steps is not None and self.optimizer.warmup_steps >= self.steps:
            raise UserError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps}; it must be below the number of steps ({self.steps})."
            )

    def _fill_learning_rate(self) -> None:
        if self.optimizer.learning_rate is None:
            filled = dataclasses.replace(self.optimizer, learning_rate=LEARNING_RATES[self.method])
            object.__setattr__(self, "optimizer", filled)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return self.steps if self.steps is not None else sum(stage.steps for stage in self.stages)

    def stage(self, name: str | None) -> TrainConfig:
        """Return the configuration of one stage by itself; None is that of a run without stages.

        Raises:
            UserError: there is no such stage, or one must be named.
        """
        names = [stage.name for stage in self.stages]
        if name is None and not names:
            return self
        if name not in names:
            raise UserError(
                f"give --stage one of {names}." if names else f"the run has no stages: leave --stage {name} out."
            )
        return self.resolved()[names.index(name)].run

    def resolved(self) -> list[Stage]:
        """Every stage with the run's settings filled in; a run without stages is one stage."""
        if self.steps is not None:
            return [Stage("train", 0, self.steps, self, None, None)]
        out: list[Stage] = []
        theta = None
        for number, stage in enumerate(self.stages):
            first = out[-1].last if out else 0
            theta = theta if stage.rope_theta is None else stage.rope_theta
            own = {name: value for name, value in dataclasses.asdict(stage.optimizer).items() if value is not None}
            warmup = {"warmup_steps": 0} if number else {}
            data = {name: getattr(stage, name) for name in ("sequence_length", "batch_size", "lengths")}
            run = {name: getattr(stage, name) for name in ("micro_batches", "mesh")}
            try:
                filled = dataclasses.replace(
                    self,
                    **{name: value for name, value in run.items() if value is not None},
                    steps=stage.steps,
                    stages=[],
                    data=dataclasses.replace(self.data, **{n: v for n, v in data.items() if v is not None}),
                    optimizer=dataclasses.replace(self.optimizer, **warmup | own),
                    model=dataclasses.replace(self.model, remat=stage.remat or self.model.remat),
                )
            except UserError as error:
                raise UserError(f"stage {stage.name!r}: {error}") from None
            out.append(Stage(stage.name, first, first + stage.steps, filled, stage.weights, theta))
        return out
