"""Loads with overrides, unloads and their error texts: a gateway's are Triton's.

Against NVIDIA's tritonserver, a gateway with its embedded engine, one in front of a Triton with the
same repository on its disk, and one that knows of the models only what its Triton says.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient as Client
from tritonclient.grpc import InferenceServerException as Refused
from tritonclient.grpc import InferInput, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

from tests.gateway.onnx_models import identity, put
from tests.gateway.process import eventually, gateway
from tests.triton.alike import BEFORE_TRITON, EMBEDDED, ONE, TRITON
from tests.triton.server import running

CATALOGUE = "triton_as_catalogue"

Parameter = pb.ModelRepositoryParameter
Load, Unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest


@pytest.fixture(scope="module", params=[TRITON, EMBEDDED, BEFORE_TRITON, CATALOGUE])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def address(
    server: str, real_triton: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A server of this module's own: its tests load and unload."""
    root = tmp_path_factory.mktemp("models")
    put(root, "m", identity(), ONE)
    with ExitStack() as stack:
        flags = ["--allow-repository-control", "--idle-timeout-s", "1"]
        known: Path | None = root
        if server != EMBEDDED:
            behind = stack.enter_context(running(root))
            # a load that has failed over a loaded model keeps it from ending for 15 s
            stack.callback(os.kill, behind.pid, signal.SIGKILL)
            flags += ["--triton", behind.address]
        if server == TRITON:
            yield behind.address
            return
        if server == CATALOGUE:
            known = None
        yield stack.enter_context(gateway(known, *flags)).url


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as connected:
        yield connected


@pytest.fixture
def stub(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def batches_of(size: int) -> str:
    one = [{"count": 1, "kind": "KIND_CPU"}]
    return json.dumps({"backend": "onnxruntime", "maxBatchSize": size, "instance_group": one})


def answered(client: Client, model: str, rows: int) -> str:
    """Return the version that has answered, or the error's text."""
    tensor = InferInput("x", [rows, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((rows, 3), np.float32))
    try:
        return str(client.infer(model, [tensor]).get_response().model_version)
    except Refused as error:
        return str(error.message())


def largest(client: Client, model: str = "m") -> int:
    return int(client.get_model_config(model).config.max_batch_size)


def test_configuration_and_files_given_take_the_place_of_the_models_own(client: Client) -> None:
    client.load_model("m", config=batches_of(2))
    assert largest(client) == 2
    assert answered(client, "m", 2) == "1"
    assert "batch-size must be <= 2 for 'm'" in answered(client, "m", 3)
    model = identity(dims=("n", 3))
    client.load_model("m", config=batches_of(5), files={"file:7/model.onnx": model})
    assert answered(client, "m", 5) == "7"
    client.load_model("m", config=batches_of(6))
    assert answered(client, "m", 6) == "1"
    client.unload_model("m")
    client.load_model("m")
    assert largest(client) == 4


def test_load_without_a_configuration_ends_the_one_given_before(
    server: str, client: Client
) -> None:
    client.load_model("m", config=batches_of(2))
    client.load_model("m")
    # this tritonserver keeps to it as long as the model's own files have not changed
    assert largest(client) == (2 if server == TRITON else 4)
    client.unload_model("m")


def test_override_that_fails_leaves_the_model_as_it_was(client: Client) -> None:
    client.load_model("m", config=batches_of(3))
    tensors = {"data_type": "TYPE_FP32", "dims": [3]}
    named = {"input": [{"name": "z", **tensors}], "output": [{"name": "y", **tensors}]}
    for config, files in (
        ("{", {}),
        (batches_of(-1), {}),
        (json.dumps({"backend": "onnxruntime", "max_batch_size": 4, **named}), {}),
        (batches_of(4), {"file:7/model.onnx": b"no model"}),
    ):
        with pytest.raises(Refused):
            client.load_model("m", config=config, files=files)
        assert largest(client) == 3
        assert answered(client, "m", 3) == "1"
    client.unload_model("m")


def test_model_of_files_alone_lives_until_it_is_unloaded(server: str, client: Client) -> None:
    with pytest.raises(Refused, match="failed to poll from model repository"):
        client.load_model("fresh", config=batches_of(5))
    client.load_model("fresh", config=batches_of(5), files={"file:1/model.onnx": identity()})
    assert answered(client, "fresh", 5) == "1"
    if server != TRITON:
        index = client.get_model_repository_index
        eventually(lambda: "UNAVAILABLE" in {m.state for m in index().models if m.name == "fresh"})
        assert answered(client, "fresh", 5) == "1"
    client.unload_model("fresh")
    eventually(lambda: answered(client, "fresh", 5).startswith("Request for unknown model: 'fres"))


CONFIG = Parameter(string_param="{}")
ELSEWHERE = "UNIMPLEMENTED 'repository_name' specification is not supported"
CANNOT = "INTERNAL failed to load 'm', "


@pytest.mark.parametrize(
    ("rpc", "message", "says"),
    [
        ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), ELSEWHERE),
        ("RepositoryModelLoad", Load(model_name="m", repository_name="r"), ELSEWHERE),
        ("RepositoryModelUnload", Unload(model_name="m", repository_name="r"), ELSEWHERE),
        (
            "RepositoryModelLoad",
            Load(model_name="m", parameters={"foo": Parameter(), "config": CONFIG}),
            "INVALID_ARGUMENT unrecognized load parameter 'foo'.",
        ),
        (
            "RepositoryModelLoad",
            Load(model_name="m", parameters={"config": Parameter(bytes_param=b"{}")}),
            "INVALID_ARGUMENT invalid value type for load parameter 'config', expected "
            "string_param.",
        ),
        (
            "RepositoryModelLoad",
            Load(model_name="nobody", parameters={"file:1/x": Parameter(), "config": CONFIG}),
            "INVALID_ARGUMENT invalid value type for load parameter 'file:1/x', expected "
            "bytes_param.",
        ),
        (
            "RepositoryModelLoad",
            Load(model_name="m", parameters={"file:1/model.onnx": Parameter(bytes_param=b"")}),
            CANNOT,
        ),
        (
            "RepositoryModelLoad",
            Load(model_name="m", parameters={"config": Parameter(string_param="")}),
            CANNOT,
        ),
        (
            "RepositoryModelLoad",
            Load(model_name="nobody", parameters={"config": CONFIG}),
            "INTERNAL failed to load 'nobody', failed to poll from model repository",
        ),
        (
            "RepositoryModelUnload",
            Unload(model_name="m", parameters={"unload_dependents": Parameter(int64_param=1)}),
            "INVALID_ARGUMENT invalid value type for 'unload_dependents' parameter, expected "
            "bool_param.",
        ),
        ("RepositoryModelUnload", Unload(model_name="m", parameters={"foo": Parameter()}), "OK"),
    ],
)
def test_control_that_is_refused_says_what_triton_says(
    rpc: str, message: Any, says: str, stub: Any
) -> None:
    try:
        getattr(stub, rpc)(message, timeout=20)
        said = "OK"
    except grpc.RpcError as error:
        said = f"{error.code().name} {error.details()}"
    assert said.startswith(says)
