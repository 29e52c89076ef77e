"""Qwen3 in JAX: load, train, and sample under a thinking budget.

    import qwen3_jax, sharding
    model, tok = qwen3_jax.load("Qwen/Qwen3-0.6B", dtype="bfloat16")
    out = qwen3_jax.generate(model, tok, [[{"role": "user", "content": "Hi"}]], thinking_budget=512)

Names are imported on first use, so that `import qwen3_jax` costs milliseconds.
"""

from etils import epy

from qwen3_jax.absent_tpu import skip_absent_tpu

skip_absent_tpu()  # before JAX looks for devices

with epy.lazy_api_imports(globals()):
    from qwen3_jax.checkpoint import AdapterConfig, load, merged, save, save_adapter
    from qwen3_jax.config import PRESETS, Qwen3Config
    from qwen3_jax.embedding_config import EmbeddingConfig
    from qwen3_jax.errors import UserError
    from qwen3_jax.generation import (
        Delta,
        DraftModel,
        Engine,
        Generation,
        PromptLookup,
        Request,
        Sampling,
        Scores,
        embed,
        generate,
        rerank,
        reward,
        score,
        stream,
    )
    from qwen3_jax.generation_config import GenerationConfig
    from qwen3_jax.kernels import Execution, Kernels
    from qwen3_jax.model import EmbeddingModel, KVCache, Qwen3
    from qwen3_jax.position_config import RopeScaling
    from qwen3_jax.text import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "AdapterConfig",
    "Delta",
    "DraftModel",
    "EmbeddingConfig",
    "EmbeddingModel",
    "Engine",
    "Execution",
    "Generation",
    "GenerationConfig",
    "KVCache",
    "Kernels",
    "PromptLookup",
    "Qwen3",
    "Qwen3Config",
    "Request",
    "RopeScaling",
    "Sampling",
    "Scores",
    "Tokenizer",
    "UserError",
    "embed",
    "generate",
    "load",
    "merged",
    "rerank",
    "reward",
    "save",
    "save_adapter",
    "score",
    "stream",
]
