from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.onnx_models import (
    ELEMENT_TYPES,
    add_and_multiply,
    identity,
    put,
)
from tests.gateway.process import Gateway, gateway

DECLARED = """max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 3 }
output { name: "y" data_type: TYPE_FP32 dims: 3 }
"""

RESHAPED = """max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { shape: [] } }
"""


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that are right, and some that are not."""
    root = tmp_path_factory.mktemp("repository")
    for datatype in ELEMENT_TYPES:
        put(root, f"identity_{datatype}", identity(datatype))
    put(root, "two", add_and_multiply())
    put(root, "any_width", identity(dims=("n", "k")))
    put(root, "scalars", identity(dims=("n",)), RESHAPED)
    put(root, "versions", identity(), "version_policy { all { } }", 1)
    put(root, "versions", identity(), "version_policy { all { } }", 3)
    put(root, "truncated", identity()[:40], DECLARED)
    put(root, "wrong_dims", identity(dims=("n", 4)), DECLARED)
    put(root, "unknown_field", identity(), "max_bach_size: 8\n")
    put(root, "version_zero", identity(), version=0)
    return root


@pytest.fixture(scope="session")
def served(repository: Path) -> Iterator[Gateway]:
    """A gateway over that repository, shared by the tests that change nothing in it."""
    with gateway(
        repository, "--max-message-bytes", "1000000", "--allow-repository-control"
    ) as running:
        yield running
        assert running.metric("tidegate_model_in_flight") == 0
        assert running.metric("nv_inference_pending_request_count") == 0
        assert running.stop() == 0
