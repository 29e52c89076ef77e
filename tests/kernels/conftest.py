"""What kernel tests share."""

import functools

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from qwen3_jax.kernels.experts import grouped, triton, triton_mlp
from qwen3_jax.kernels.experts.megablox import megablox_dot


@pytest.fixture
def no_compilation_cache():
    """Programs for TPUs that are not here can be put into the cache but not read back: each hit would warn."""
    for enabled in (False, True):
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # or it goes on as it began
        if not enabled:
            yield


@pytest.fixture
def pallas_anywhere(monkeypatch):
    """Run Pallas kernels as plain JAX, where there is no TPU and no GPU."""
    monkeypatch.setattr(grouped, "megablox_dot", lambda x, w, sizes: megablox_dot(x, w, sizes, True))
    for module, name in ((triton, "quantized_dot"), (triton_mlp, "triton_mlp"), (grouped, "gathered_mlp")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
