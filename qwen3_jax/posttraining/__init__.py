"""Post-training by reinforcement: rollouts, rewards, the loop around them, and the tasks of general reinforcement learning.

    train(config)                                  # as `python train.py --config FILE` with method: grpo

    prompts -> rollouts (the engine) -> rewards -> rounds -> batches -> `qwen3_jax.training`

Names are imported on first use.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from qwen3_jax.posttraining.advantages import advantages
    from qwen3_jax.posttraining.prompts import Draw, Prompt, Prompts
    from qwen3_jax.posttraining.reinforcement import train
    from qwen3_jax.posttraining.rewards import Scorer
    from qwen3_jax.posttraining.rollouts import Rollout, Rollouts, engine_for
    from qwen3_jax.posttraining.sampled import PartScore, Sampled, Scored, Statistics
    from qwen3_jax.posttraining.samples import Sample
    from qwen3_jax.posttraining.serving_weights import ServingWeights

__all__ = [
    "Draw",
    "PartScore",
    "Prompt",
    "Prompts",
    "Rollout",
    "Rollouts",
    "Sample",
    "Sampled",
    "Scored",
    "Scorer",
    "ServingWeights",
    "Statistics",
    "advantages",
    "engine_for",
    "train",
]
