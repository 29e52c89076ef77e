"""Every test of this folder runs programs in the sandbox."""

import pytest

from tests.helpers.isolated import require_isolation


@pytest.fixture(autouse=True)
def _isolated():
    require_isolation()
