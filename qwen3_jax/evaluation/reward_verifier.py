"""The verifier `reward`: an answer judged by a reward model.

    verify("reward", "4", [{"role": "user", "content": "2 + 2?"}], {"model": "runs/reward/hf", "threshold": 0.5})

The reference is the prompt: messages, or the text of one of the user. It lies here and not in `qwen3_jax.verifiers`, which
import no JAX; importing the tasks registers it.
"""

import functools
import math
import threading
from dataclasses import dataclass
from typing import Any

from qwen3_jax.bounds import above, check_bounds
from qwen3_jax.verifiers import BadReference, Verdict, register, right, wrong

_LOCK = threading.Lock()  # one answer at a time: the model is one


@dataclass(frozen=True)
class RewardSettings:
    """Settings of the verifier `reward`.

    Attributes:
        model: the reward model, a folder or hub id of Qwen3ForSequenceClassification with one label.
        threshold: the least reward of a right answer.
        dtype: its type, "float32" or "bfloat16"; null is the checkpoint's.
        scale: rewards below the threshold t score sigmoid((reward - t) / scale), which is below 0.5.
    """

    model: str
    threshold: float = 0.0
    dtype: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(vars(self), scale=above(0, finite=True))


def verify_reward(answer: str, reference: Any, settings: RewardSettings) -> Verdict:
    """Judge an answer by its reward after the prompt `reference`."""
    messages = [{"role": "user", "content": reference}] if isinstance(reference, str) else reference
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise BadReference("the prompt must be a text, or a list of messages")
    from qwen3_jax.generation import reward  # imports JAX

    with _LOCK:
        model, tokenizer = _loaded(settings.model, settings.dtype)
        value = reward(model, tokenizer, [[*messages, {"role": "assistant", "content": answer}]], batch_size=1)[0]
    reason = f"the reward is {value:.4g}, the threshold {settings.threshold:g}"
    if value >= settings.threshold:
        return right(reason)
    return wrong(reason, 1 / (1 + math.exp(min((settings.threshold - value) / settings.scale, 700.0))))


@functools.lru_cache(maxsize=1)
def _loaded(path: str, dtype: str | None) -> tuple[Any, Any]:
    from qwen3_jax.checkpoint import load

    return load(path, dtype=dtype)


register("reward", verify_reward)
