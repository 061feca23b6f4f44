"""The zoo behind a gateway: what `make zoo` has exported, asked as any client would."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import np_to_triton_dtype

from tests.gateway.process import gateway

ROOT = Path(__file__).parents[2]
REPOSITORY = Path(os.environ.get("TIDEGATE_ZOO") or ROOT / ".zoo" / "model_repository")


@dataclass(frozen=True)
class Zoo:
    """A running gateway over the exported models."""

    client: triton.InferenceServerClient

    def ask(self, model: str, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs of one request, by name."""
        given = []
        for name, array in inputs.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            given.append(tensor)
        answer = self.client.infer(model, given)
        return {
            output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs
        }


@pytest.fixture(scope="session")
def running() -> Iterator[Zoo]:
    with gateway(REPOSITORY) as served, triton.InferenceServerClient(served.url) as client:
        yield Zoo(client)


@pytest.fixture
def zoo(request: pytest.FixtureRequest) -> Zoo:
    """The gateway; skips where the model of this test file has not been exported."""
    model = Path(str(request.path)).stem.removeprefix("test_")
    if not (REPOSITORY / model / "config.pbtxt").is_file():
        pytest.skip(f"{model} is not exported: make zoo")
    found: Zoo = request.getfixturevalue("running")
    return found
