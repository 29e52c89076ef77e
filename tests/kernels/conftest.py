"""What kernel tests share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def no_compilation_cache():
    """Programs for TPUs that are not here can be put into the cache but not read back: each hit would warn."""
    for enabled in (False, True):
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()  # or it goes on as it began
        if not enabled:
            yield
