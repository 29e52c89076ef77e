"""Training runs: configuration, step, loop. Names are imported on first use.

from qwen3_jax.training import TrainConfig, train
train(TrainConfig(data=..., run_dir="runs/mine"))          # what train.py does with --config
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from qwen3_jax.training.config import LossConfig, ModelConfig, OptimizerConfig, TokenizerConfig, TrainConfig
    from qwen3_jax.training.loop import train
    from qwen3_jax.training.run_folder import load_run
    from qwen3_jax.training.step import Trainer

__all__ = [
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TokenizerConfig",
    "TrainConfig",
    "Trainer",
    "load_run",
    "train",
]
