"""Hyper-parameters and mixtures by experiment: many small runs of `qwen3_jax.training`, and predictions for a large one.

Report section 3: scaling laws for learning rate and batch size, and instance-level mixtures optimised on small proxy models.
Names are imported on first use.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from qwen3_jax.sweeps.config import MixtureConfig, ModelSize, ScalingConfig, Target, Verify
    from qwen3_jax.sweeps.laws import PUBLISHED

__all__ = ["PUBLISHED", "MixtureConfig", "ModelSize", "ScalingConfig", "Target", "Verify"]
