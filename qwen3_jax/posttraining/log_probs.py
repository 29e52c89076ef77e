"""Log probabilities of samples under the trainer's weights or a reference model, for ratios and the KL term.

They are computed as the objective computes them: same rows, same micro-batches, same temperature, same banned tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from qwen3_jax.checkpoint import load_model
from qwen3_jax.checkpoint.hub import resolve
from qwen3_jax.errors import UserError
from qwen3_jax.kernels import Execution
from qwen3_jax.model import Qwen3, flatten
from qwen3_jax.posttraining.samples import Sample, arrange, pack, spread, take_back
from qwen3_jax.progress import doing
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import TrainConfig
from qwen3_jax.training.losses import REPLAYED
from qwen3_jax.training.objectives import banned_tokens
from qwen3_jax.training.optimizer import schedule
from qwen3_jax.training.policy import log_probs_of
from qwen3_jax.training.step import DeviceBatch, Params, Trainer
from qwen3_jax.training.token_values import TokenValues

OfParams = Callable[[Params, Sequence[Sample]], list[np.ndarray]]


def batch_of(
    samples: Sequence[Sample], trainer: Trainer, rows: int, length: int
) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """Pack samples into a global batch; return it and the samples of each of its rows.

    Filled rows come first in every device's part, so that whole micro-batches stay empty.

    Args:
        samples: at most `rows`, each of at most `length` pairs.
        trainer: whose mesh divides the rows.
        rows, length: of the batch.
    """
    packed = spread(pack([one.pairs for one in samples], rows, length), trainer.placement.parts("batch"))
    batch = arrange(samples, packed, length)
    for name, (kind, *rest) in trainer.fields.items():
        batch.setdefault(name, np.full((rows, length, *rest), -1, kind))  # experts, where there is no sample
    return batch, packed


def log_probs_of_state(
    trainer: Trainer, config: TrainConfig, tokenizer: Tokenizer, *, own_experts: bool = False
) -> OfParams:
    """Return a function of (parameters, samples): the log probability of each sample's tokens, NaN where not learned.

    Args:
        own_experts: the router chooses, also where the trainer replays those of the rollout.
    """
    assert config.rl is not None
    options = dict(
        temperature=config.rl.rollouts.temperature, banned_ids=banned_tokens(tokenizer), chunk=config.loss.chunk_tokens
    )

    def of(model: Qwen3, batch: DeviceBatch) -> jax.Array:
        if own_experts:
            batch = {name: value for name, value in batch.items() if name != REPLAYED}
        return log_probs_of(model, batch, **options).log_probs  # type: ignore[arg-type]

    compute = TokenValues(trainer, of)
    rows, length = config.data.batch_size, config.data.sequence_length

    def of_samples(params: Params, samples: Sequence[Sample]) -> list[np.ndarray]:
        out: list[np.ndarray] = []
        for start in range(0, len(samples), rows):
            some = samples[start : start + rows]
            batch, packed = batch_of(some, trainer, rows, length)
            out += take_back(compute(params, trainer.place(batch)), some, packed)
        return out

    return of_samples


@doing("loading the reference model")
def reference_log_probs(
    config: TrainConfig, trainer: Trainer, tokenizer: Tokenizer, name: str, key: str
) -> Callable[[Sequence[Sample]], list[np.ndarray]]:
    """Return the log probabilities of samples under a reference model, or a teacher.

    With adapters over model.init_from that model is the trainer's frozen base, of which there is no second copy.

    Args:
        name: a Hugging Face folder or hub id.
        key: of the configuration that names it.

    Raises:
        UserError: the reference cannot be loaded, or has another vocabulary.
    """
    assert config.rl is not None
    own = key == "model.init_from"
    model = dataclasses.replace(config.model, quantization=None)
    if own and trainer.base is not None:
        architecture, params = trainer.config, {n: v for n, v in trainer.base.items() if "adapters." not in n}
    else:
        loaded = load_model(
            resolve(name, key=key), dtype=model.dtype, param_dtype=model.param_dtype,
            execution=Execution(trainer.placement), scan_layers=model.scan_layers,
        )  # fmt: skip
        architecture, params = loaded.config, flatten(loaded)
    if architecture.vocab_size != trainer.config.vocab_size:
        raise UserError(
            f"{key}: the reference model has {architecture.vocab_size} vocabulary rows and the trained one "
            f"{trainer.config.vocab_size}; both must have the same vocabulary."
        )
    judge = Trainer(
        architecture, model, config.optimizer, schedule(config.optimizer, 10**6), trainer.placement, config.loss,
        config.micro_batches, objective=dataclasses.replace(trainer.objective, computed={}),
    )  # fmt: skip
    compute = log_probs_of_state(judge, config, tokenizer, own_experts=True)
    return lambda samples: compute(params, samples)
