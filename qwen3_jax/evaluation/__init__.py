"""Measuring models: tasks, verifiers, thinking budgets, one stream of requests.

    from qwen3_jax.evaluation import EngineSource, EvalConfig, evaluate

    results = evaluate(EngineSource(engine, tokenizer), ["gsm8k"], EvalConfig(budgets=(0, 512, None)), folder="results")

plan (what is asked) -> source (engine or endpoint) -> runner (verifiers beside it) -> samples -> metrics, results, report
"""

from etils import epy

with epy.lazy_api_imports(globals()):  # the configuration of training imports this package, and nothing heavy with it
    from qwen3_jax.evaluation.api import evaluate
    from qwen3_jax.evaluation.comparison import compare
    from qwen3_jax.evaluation.endpoint_source import EndpointSource
    from qwen3_jax.evaluation.engine_source import EngineSource
    from qwen3_jax.evaluation.plan import EvalConfig
    from qwen3_jax.evaluation.samples import read_samples
    from qwen3_jax.evaluation.task import Problem, Source, Task

__all__ = [
    "EndpointSource",
    "EngineSource",
    "EvalConfig",
    "Problem",
    "Source",
    "Task",
    "compare",
    "evaluate",
    "read_samples",
]
