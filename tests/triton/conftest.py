from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2_grpc

from tests.gateway.process import Gateway, gateway
from tests.triton.alike import BEFORE_TRITON, EMBEDDED, SERVERS, TRITON, UNLOADED, fill
from tests.triton.server import Endpoint, running, why_not

# A Triton of today keeps both closed to clients, too, unless it is told otherwise.
OPEN = ("--allow-client-shm", "--allow-repository-control")


@pytest.fixture(scope="session")
def real_triton() -> None:
    """Skip, with the reason, where no tritonserver can be started."""
    reason = why_not()
    if reason:
        pytest.skip(f"no tritonserver: {reason}")


@pytest.fixture(scope="session")
def alike_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alike")
    fill(root)
    return root


@pytest.fixture(scope="session")
def bare_triton(alike_repository: Path, real_triton: None) -> Iterator[Endpoint]:
    """NVIDIA's tritonserver over the repository, its models loaded."""
    names = {folder.name for folder in alike_repository.iterdir()} - UNLOADED
    with running(alike_repository, "--cache-config=local,size=16777216") as server:
        with triton.InferenceServerClient(server.address) as client, ThreadPoolExecutor(4) as pool:
            list(pool.map(client.load_model, sorted(names)))
        yield Endpoint(server.address, server.http_address, server.metrics_url)


@pytest.fixture(scope="session")
def embedded(alike_repository: Path) -> Iterator[Endpoint]:
    with gateway(alike_repository, *OPEN) as served:
        yield _endpoint(served)
        assert served.stop() == 0


@pytest.fixture(scope="session")
def before_triton(alike_repository: Path, bare_triton: Endpoint) -> Iterator[Endpoint]:
    # asleep, a model would be gone from the bare server, too
    awake = ("--idle-timeout-s", "86400")
    with gateway(alike_repository, *OPEN, *awake, "--triton", bare_triton.grpc) as served:
        yield _endpoint(served)
        assert served.stop() == 0


def _endpoint(served: Gateway) -> Endpoint:
    return Endpoint(served.url, served.http.removeprefix("http://"), f"{served.http}/metrics")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    """Which of the servers the test is about; all of them, unless it says so."""
    return str(request.param)


@pytest.fixture
def endpoint(server: str, request: pytest.FixtureRequest) -> Endpoint:
    fixtures = {TRITON: "bare_triton", EMBEDDED: "embedded", BEFORE_TRITON: "before_triton"}
    found: Endpoint = request.getfixturevalue(fixtures[server])
    return found


@pytest.fixture
def client(endpoint: Endpoint) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(endpoint.grpc) as connected:
        yield connected


@pytest.fixture
def http_client(endpoint: Endpoint) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(endpoint.http) as connected:
        yield connected


@pytest.fixture
def stub(endpoint: Endpoint) -> Iterator[Any]:
    with grpc.insecure_channel(endpoint.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
