"""Makes `lm_eval --model qwen3_jax` work: lm-eval looks for models in a list of its own and has no entry points.

`qwen3_jax_lm_eval.pth` imports this at the start of every Python process of the environment, so it does next to nothing: when
lm-eval's list of models is imported, the model is added to it, by name; the package itself is imported once it is used.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` for it would cost every process milliseconds
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_LIST = "lm_eval.models"


class _Finder:
    """Adds the model to the list of models as soon as that has been imported."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != _LIST:
            return None
        from importlib.machinery import PathFinder

        sys.meta_path.remove(_Finder)  # type: ignore[arg-type]
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            from lm_eval.api.registry import model_registry

            model_registry.register("qwen3_jax", target="qwen3_jax.evaluation.harness:HarnessModel")

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _Finder not in sys.meta_path:
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
