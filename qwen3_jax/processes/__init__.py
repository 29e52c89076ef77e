"""Function calls in processes that can be ended: for what may hang, or take all memory, or crash in another language.

pool = Pool(most=4, memory=2 << 30)
pool.call("package.module:function", {"path": "a.pdf"}, seconds=10)
"""

from qwen3_jax.processes.pool import Crashed, Failed, Pool, TimedOut, child_environment

__all__ = ["Crashed", "Failed", "Pool", "TimedOut", "child_environment"]
