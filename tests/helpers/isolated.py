"""Tests that need the sandbox are skipped, with the reason, on machines whose kernel isolates nothing."""

import pytest

from qwen3_jax import UserError
from qwen3_jax.sandbox import find_isolation


def require_isolation() -> None:
    """Skip the running test where the sandbox refuses to run programs."""
    try:
        find_isolation()
    except UserError as error:
        pytest.skip(str(error))
