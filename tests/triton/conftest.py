from __future__ import annotations

import pytest

from tests.triton.server import why_not


@pytest.fixture(scope="session")
def real_triton() -> None:
    """Skip, with the reason, where no tritonserver can be started."""
    reason = why_not()
    if reason:
        pytest.skip(f"no tritonserver: {reason}")
