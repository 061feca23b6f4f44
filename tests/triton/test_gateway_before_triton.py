"""A gateway in front of a real tritonserver: its own, or one that runs already."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.gateway.onnx_models import identity, put
from tests.gateway.process import Gateway, eventually, gateway, run_to_end
from tests.triton.server import ENV, running

X = np.arange(6, dtype=np.float32).reshape(2, 3)
ONE = "instance_group { count: 1 kind: KIND_CPU }\n"
OWN = ("--spawn-triton", "1", "--triton-env", str(ENV))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    put(tmp_path / "models", "m", identity(), ONE)
    put(tmp_path / "models", "n", identity(), ONE)
    return tmp_path / "models"


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nothing listens, and nothing else can."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def answered(client: triton.InferenceServerClient, model: str = "m") -> str:
    """Return "" where a request is answered, or the error's status and text."""
    tensor = triton.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)
    try:
        answer = client.infer(model, [tensor])
    except triton.InferenceServerException as error:
        return f"{error.status()} {error.message()}"
    np.testing.assert_array_equal(answer.as_numpy("y"), X)
    return ""


def states(client: triton.InferenceServerClient) -> dict[str, str]:
    return {model.name: model.state for model in client.get_model_repository_index().models}


def children(served: Gateway) -> list[int]:
    pid = served.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.usefixtures("real_triton")
def test_requests_are_held_while_the_gateways_triton_comes_back(repository: Path) -> None:
    with gateway(repository, *OWN) as served, triton.InferenceServerClient(served.url) as client:
        assert children(served) == []  # nothing to serve yet
        assert answered(client) == ""
        (server,) = children(served)
        os.kill(server, signal.SIGKILL)
        assert answered(client) == ""
        assert answered(client, "n") == ""
        (new,) = children(served)
        assert new != server
        assert served.stop() == 0
        assert not Path(f"/proc/{new}").exists()


@pytest.mark.usefixtures("real_triton")
def test_model_sleeps_in_triton_and_wakes_for_a_request(repository: Path) -> None:
    with (
        running(repository) as server,
        triton.InferenceServerClient(server.address) as behind,
        gateway(repository, "--triton", server.address, "--idle-timeout-s", "0.5") as served,
        triton.InferenceServerClient(served.url) as client,
    ):
        for _ in range(2):
            assert answered(client) == ""
            assert behind.is_model_ready("m")
            eventually(lambda: not behind.is_model_ready("m"))
        eventually(lambda: states(client) == {"m": "UNAVAILABLE", "n": "UNKNOWN"})


@pytest.mark.usefixtures("real_triton")
def test_what_triton_has_ready_is_taken_over_and_given_back_at_the_end(repository: Path) -> None:
    with running(repository) as server, triton.InferenceServerClient(server.address) as behind:
        behind.load_model("m")
        with (
            gateway(repository, "--triton", server.address) as served,
            triton.InferenceServerClient(served.url) as client,
        ):
            eventually(lambda: states(client) == {"m": "READY", "n": "UNKNOWN"})
            assert answered(client) == ""
            assert served.stop() == 0
        assert not behind.is_model_ready("m")


def test_triton_that_is_down_is_an_error_at_once_and_not_the_end(
    repository: Path, nobody: str
) -> None:
    with (
        gateway(repository, "--triton", nobody) as served,
        triton.InferenceServerClient(served.url) as client,
    ):
        assert client.is_server_ready()
        assert f"the Triton server at {nobody} does not answer" in answered(client)
        assert client.get_model_metadata("m").inputs[0].shape == [-1, 3]
        assert served.stop() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--no-embedded",), "--no-embedded needs --triton or --spawn-triton"),
        (("--triton", "somewhere"), "setting 'triton'"),
        (("--spawn-triton", "1", "--triton-env", "nowhere"), "no tritonserver"),
    ],
)
def test_gateway_says_why_it_cannot_start(
    flags: tuple[str, ...], says: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    code, stderr = run_to_end(repository, "--port", "0", "--http-port", "0", *flags)
    assert code == 1
    assert says in stderr
    assert "Traceback" not in stderr
