"""Whether this environment can compile for GPUs that are not here: a mark for tests that do."""

import pytest

from qwen3_jax.planner import gpu_nodes
from sharding import ShardingError


def _installed() -> bool:
    try:
        gpu_nodes.check_installed("h100:1")
    except ShardingError:
        return False
    return True


needs_gpu_compiler = pytest.mark.skipif(not _installed(), reason="needs jax's CUDA plug-in, which compiles for GPUs")
