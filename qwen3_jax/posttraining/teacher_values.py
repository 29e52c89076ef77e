"""What the rounds of on-policy distillation need of a teacher that does not run beside the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qwen3_jax.posttraining.log_probs import reference_log_probs
from qwen3_jax.posttraining.rounds import LogProbs, Targets
from qwen3_jax.posttraining.samples import Sample
from qwen3_jax.progress import progress_bar
from qwen3_jax.text import Tokenizer
from qwen3_jax.training.config import Stage, TrainConfig
from qwen3_jax.training.hosts import from_first
from qwen3_jax.training.objectives import banned_tokens
from qwen3_jax.training.step import Trainer
from qwen3_jax.training.teacher import KEY, Teacher, teacher_folder
from qwen3_jax.training.teacher_server import TeacherAtAddress
from qwen3_jax.training.teacher_targets import TeacherInProcess, check_top_k


def teacher_of_rounds(
    config: TrainConfig, stage: Stage, trainer: Trainer, tokenizer: Tokenizer
) -> tuple[LogProbs | None, Targets | None]:
    """Return the log probabilities of samples and their targets, as far as the objective reads them; attach a teacher that the
    steps read to the trainer.

    Args:
        config: of distillation.
        stage, trainer: of the run.
        tokenizer: of the student.

    Raises:
        UserError: the teacher cannot be loaded or asked, or does not fit the student.
        ShardingError: it does not divide over its mesh.
    """
    settings, vocabulary = config.distillation, trainer.config.vocab_size
    assert settings is not None
    check_top_k(config, vocabulary)
    if settings.needs_states:
        Teacher(config, trainer, tokenizer).attach()
        return None, None
    if settings.is_server:
        server: list[TeacherAtAddress] = []
        from_first(lambda: server.append(TeacherAtAddress(settings, vocabulary)))
        if settings.top_k is None:
            return _asked(server, banned_tokens(tokenizer)), None
        return None, lambda samples: from_first(lambda: _top(server[0].top, samples))
    if settings.top_k is None:
        folder = teacher_folder(config, tokenizer)
        return reference_log_probs(config, trainer, tokenizer, str(folder), KEY), None
    local = TeacherInProcess(config, stage, trainer, tokenizer)
    return None, lambda samples: _top(local.top, samples)


def _top(top: Callable, samples: Sequence[Sample]) -> list:
    with progress_bar("teacher", len(samples), visible=False) as bar:
        return top([sample.document for sample in samples], bar)


def _asked(server: Sequence[TeacherAtAddress], banned_ids: Sequence[int]) -> LogProbs:
    """The log probabilities of samples that the first process asks for; NaN where a token is not learned."""

    def of(samples: Sequence[Sample]) -> list[np.ndarray]:
        banned = [sample.banned[sample.learned] for sample in samples]
        values = from_first(lambda: server[0].log_probs([sample.document for sample in samples], banned, banned_ids))
        out = []
        for sample, learned in zip(samples, values, strict=True):
            whole = np.full(len(sample.tokens), np.nan, np.float32)
            whole[sample.learned] = learned
            out.append(whole)
        return out

    return of
