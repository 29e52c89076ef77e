"""The data factory: records made with models, verified and filtered; what was asked once is never asked again.

    from qwen3_jax.data.factory import RecipeTask, load_recipe, run

    finished = run(Source("seeds", "seeds.jsonl"), RecipeTask(load_recipe("diverse_qa")), "made", backend)

A task is two pure functions (`task.py`); the same walk through them asks (`asking.py`) and makes records (`work.py`), from what
`answers.py` has recorded. `job.py` is the whole of it for one folder.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from qwen3_jax.data.factory.asking import Asking, AskOptions
    from qwen3_jax.data.factory.budget import Limits
    from qwen3_jax.data.factory.filter_task import FilterTask
    from qwen3_jax.data.factory.filtering import filter_records
    from qwen3_jax.data.factory.generate import GenerateTask
    from qwen3_jax.data.factory.job import Finished, run
    from qwen3_jax.data.factory.parsing import Parser
    from qwen3_jax.data.factory.recipe import Recipe, load_recipe, recipe_names
    from qwen3_jax.data.factory.recipe_task import RecipeTask
    from qwen3_jax.data.factory.refine import RefineTask
    from qwen3_jax.data.factory.task import Made, Rejection, Task

__all__ = [
    "AskOptions",
    "Asking",
    "FilterTask",
    "Finished",
    "GenerateTask",
    "Limits",
    "Made",
    "Parser",
    "Recipe",
    "RecipeTask",
    "RefineTask",
    "Rejection",
    "Task",
    "filter_records",
    "load_recipe",
    "recipe_names",
    "run",
]
