"""NVIDIA's own client against a real gateway: it works unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.core import DTYPES
from tests.gateway.process import Gateway

SAMPLES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    "FP16": [0.5, -2, 65504],
    "FP32": [0.5, -2, 1e30],
    "FP64": [0.5, -2, 1e300],
    "BF16": [0.5, -2, 2.0**100],
    "BYTES": [b"tide", "gäte".encode(), b""],
    "UINT8": [0, 1, 255],
    "INT8": [-128, 1, 127],
    "UINT16": [0, 1, 2**16 - 1],
    "INT16": [-(2**15), 1, 2**15 - 1],
    "UINT32": [0, 1, 2**32 - 1],
    "INT32": [-(2**31), 1, 2**31 - 1],
    "UINT64": [0, 1, 2**64 - 1],
    "INT64": [-(2**63), 1, 2**63 - 1],
}


@pytest.fixture
def client(served: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as connected:
        yield connected


@pytest.fixture
def stub(served: Gateway) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(served.url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def refused(client: triton.InferenceServerClient, model: str, *inputs: Any, **how: Any) -> str:
    """Return "STATUS text" of a request that must fail."""
    with pytest.raises(triton.InferenceServerException) as caught:
        client.infer(model, list(inputs), **how)
    return f"{caught.value.status().removeprefix('StatusCode.')} {caught.value.message()}"


def test_server_is_live_ready_and_says_what_it_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "tidegate"
    assert "model_repository" in metadata.extensions


def test_cold_model_is_ready_and_described_without_loading_it(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_model_ready("any_width")
    assert client.is_model_ready("versions", "3")
    metadata = client.get_model_metadata("any_width")
    assert list(metadata.inputs[0].shape) == [-1, -1]
    assert metadata.platform == "onnxruntime_onnx"
    assert list(client.get_model_metadata("versions").versions) == ["1", "3"]
    config = client.get_model_config("any_width").config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert config.input[0].name == "x"


@pytest.mark.parametrize("datatype", sorted(SAMPLES))
def test_every_datatype_goes_through_raw(
    client: triton.InferenceServerClient, datatype: str
) -> None:
    dtype = ml_dtypes.bfloat16 if datatype == "BF16" else DTYPES[datatype]
    array = np.array([SAMPLES[datatype]], dtype)
    answer = client.infer(f"identity_{datatype}", [tensor("x", array, datatype)]).as_numpy("y")
    np.testing.assert_array_equal(answer, array)


@pytest.mark.parametrize("datatype", sorted(SAMPLES.keys() - {"FP16", "BF16"}))
def test_every_datatype_goes_through_typed(
    stub: service_pb2_grpc.GRPCInferenceServiceStub, datatype: str
) -> None:
    field = {
        **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
        **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    }.get(datatype, f"{datatype.lower()}_contents")
    message = pb.ModelInferRequest(model_name=f"identity_{datatype}", id="an id")
    made = message.inputs.add(name="x", datatype=datatype, shape=[1, 3])
    getattr(made.contents, field).extend(SAMPLES[datatype])
    answer = stub.ModelInfer(message)
    assert answer.id == "an id"
    result = triton.InferResult(answer).as_numpy("y")
    np.testing.assert_array_equal(result, np.array([SAMPLES[datatype]], DTYPES[datatype]))


def test_outputs_come_as_asked_and_in_that_order(client: triton.InferenceServerClient) -> None:
    inputs = [tensor("b", np.full((3, 2), 5, np.float32)), tensor("a", np.ones((3, 2), np.float32))]
    every = client.infer("two", inputs).get_response()
    assert [output.name for output in every.outputs] == ["sum", "product"]
    asked = [triton.InferRequestedOutput(name) for name in ("product", "sum")]
    swapped = client.infer("two", inputs, outputs=asked)
    assert [output.name for output in swapped.get_response().outputs] == ["product", "sum"]
    assert swapped.as_numpy("sum")[0, 0] == 6
    one = client.infer("two", inputs, outputs=asked[:1]).get_response()
    assert [output.name for output in one.outputs] == ["product"]


def test_latest_version_answers_unless_one_is_named(client: triton.InferenceServerClient) -> None:
    x = tensor("x", np.ones((1, 3), np.float32))
    assert client.infer("versions", [x]).get_response().model_version == "3"
    assert client.infer("versions", [x], model_version="1").get_response().model_version == "1"


def test_reshaped_tensors_have_their_declared_dims_outside(
    client: triton.InferenceServerClient,
) -> None:
    array = np.array([[1], [2]], np.float32)
    answer = client.infer("scalars", [tensor("x", array)]).as_numpy("y")
    np.testing.assert_array_equal(answer, array)


def test_empty_batch_gets_an_empty_answer(client: triton.InferenceServerClient) -> None:
    answer = client.infer("identity_FP32", [tensor("x", np.zeros((0, 3), np.float32))])
    assert answer.as_numpy("y").shape == (0, 3)


def test_concurrent_clients_share_batches_and_get_their_own_rows(served: Gateway) -> None:
    async def story() -> None:
        async with triton_aio.InferenceServerClient(served.url) as client:

            async def ask(value: int) -> None:
                array = np.full((1, 3), value, np.float32)
                answer = await client.infer("identity_FP32", [tensor("x", array)])
                np.testing.assert_array_equal(answer.as_numpy("y"), array)

            await asyncio.gather(*(ask(value) for value in range(300)))

    labels = {"model": "identity_FP32", "version": "1"}
    before = served.metric("nv_inference_exec_count", **labels)
    count = served.metric("nv_inference_count", **labels)
    asyncio.run(story())
    assert served.metric("nv_inference_count", **labels) - count == 300
    assert served.metric("nv_inference_exec_count", **labels) - before < 300


def test_requests_of_different_shapes_are_answered_right_side_by_side(served: Gateway) -> None:
    async def story() -> None:
        async with triton_aio.InferenceServerClient(served.url) as client:

            async def ask(value: int) -> None:
                array = np.full((1, 1 + value % 5), value, np.float32)
                answer = await client.infer("any_width", [tensor("x", array)])
                np.testing.assert_array_equal(answer.as_numpy("y"), array)

            await asyncio.gather(*(ask(value) for value in range(100)))

    asyncio.run(story())


def test_model_is_loaded_and_unloaded_by_name(client: triton.InferenceServerClient) -> None:
    def states() -> dict[str, str]:
        index = client.get_model_repository_index()
        return {model.name: model.state for model in index.models}

    client.load_model("identity_INT8")
    assert states()["identity_INT8"] == "READY"
    client.unload_model("identity_INT8")
    assert states()["identity_INT8"] == "UNAVAILABLE"
    assert client.is_model_ready("identity_INT8")  # the next request would wake it


def test_index_says_what_is_wrong(client: triton.InferenceServerClient) -> None:
    reasons = {model.name: model.reason for model in client.get_model_repository_index().models}
    assert 'config.pbtxt line 1: Message type "inference.ModelConfig"' in reasons["unknown_field"]
    assert "no version folder" in reasons["version_zero"]


def test_health_and_reflection_are_served(served: Gateway) -> None:
    with grpc.insecure_channel(served.url) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = [service.name for service in next(listing).list_services_response.service]
        assert "inference.GRPCInferenceService" in names
    assert served.get("/healthz") == (200, '{"status":"serving"}')


X = np.ones((1, 3), np.float32)


def test_unknown_models_and_versions_are_not_found(client: triton.InferenceServerClient) -> None:
    x = tensor("x", X)
    assert refused(client, "nope", x) == (
        "NOT_FOUND Request for unknown model: 'nope' is not found"
    )
    assert refused(client, "two", x, model_version="9") == (
        "NOT_FOUND Request for unknown model: 'two' version 9 is not found"
    )
    for version in ("one", "1.0", "9" * 30):
        assert refused(client, "two", x, model_version=version).startswith(
            f"INVALID_ARGUMENT failed to get model version from specified version string "
            f"'{version}'"
        )
    with pytest.raises(triton.InferenceServerException, match="unknown model: 'nope'"):
        client.is_model_ready("nope")
    with pytest.raises(triton.InferenceServerException, match="unknown model: 'nope'"):
        client.unload_model("nope")
    with pytest.raises(triton.InferenceServerException) as caught:
        client.load_model("../repository")
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert "failed to poll from model repository" in caught.value.message()


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (
            [tensor("x", np.ones((1, 3), np.int32), "INT32")],
            "inference input 'x' data-type is 'INT32', but model 'identity_FP32' expects 'FP32'",
        ),
        (
            [tensor("x", np.ones((1, 4), np.float32))],
            "unexpected shape for input 'x' for model 'identity_FP32'. Expected [-1,3], got [1,4].",
        ),
        (
            [tensor("x", np.ones((5, 3), np.float32))],
            "inference request batch-size must be <= 4 for 'identity_FP32'",
        ),
        ([], "expected 1 inputs but got 0 inputs for model 'identity_FP32'."),
    ],
)
def test_request_that_does_not_fit_is_invalid(
    client: triton.InferenceServerClient, inputs: list[triton.InferInput], expected: str
) -> None:
    failure = refused(client, "identity_FP32", *inputs, request_id="r1")
    assert failure.startswith(f"INVALID_ARGUMENT [request id: r1] {expected}")


def test_string_that_is_not_utf8_is_refused_alone(client: triton.InferenceServerClient) -> None:
    array = np.array([[b"\xff", b"", b""]], np.object_)
    failure = refused(client, "identity_BYTES", tensor("x", array, "BYTES"))
    assert failure.startswith("INVALID_ARGUMENT")
    assert "not UTF-8" in failure


def test_model_that_cannot_load_says_why_to_everybody(
    client: triton.InferenceServerClient,
) -> None:
    x = tensor("x", X)
    for _ in range(2):  # the second one meets the back-off
        failure = refused(client, "truncated", x)
        assert failure.startswith("UNAVAILABLE model 'truncated' version 1 is not available: ")
        assert "ONNX Runtime cannot open 'model.onnx'" in failure
    assert not client.is_model_ready("truncated")
    assert "config.pbtxt gives input 'x' the dims [-1, 3] (batch first), the model [-1, 4]" in (
        refused(client, "wrong_dims", x)
    )
    assert "has no field named" in refused(client, "unknown_field", x)
    with pytest.raises(triton.InferenceServerException) as caught:
        client.load_model("truncated")
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert caught.value.message().startswith("failed to load 'truncated', version 1: ")


def test_malformed_protobuf_is_the_callers_fault(served: Gateway) -> None:
    with grpc.insecure_channel(served.url) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == ("ModelInfer: the message is no inference.ModelInferRequest")


def test_message_above_the_bound_is_refused(client: triton.InferenceServerClient) -> None:
    wide = tensor("x", np.zeros((1, 300_000), np.float32))
    assert refused(client, "any_width", wide).startswith("RESOURCE_EXHAUSTED")


def test_repository_name_is_refused_and_not_ignored(
    stub: service_pb2_grpc.GRPCInferenceServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError, match="repository_name"):
        stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="elsewhere"))


def test_names_without_bounds_get_a_status_and_not_a_broken_call(
    client: triton.InferenceServerClient,
) -> None:
    x = tensor("x", X)
    for letter in ("n", "\u6a21"):  # a status has up to three characters for each byte of the other
        assert refused(client, letter * 20_000, x).startswith("NOT_FOUND Request for unknown model")
    for version in ("9" * 5000, str(2**63)):
        assert refused(client, "two", x, model_version=version).startswith("INVALID_ARGUMENT")
    with pytest.raises(triton.InferenceServerException, match="failed to poll"):
        client.load_model("a" * 300)


def test_output_asked_for_many_times_is_sent_once(client: triton.InferenceServerClient) -> None:
    asked = [triton.InferRequestedOutput("y")] * 1000
    answer = client.infer("identity_FP32", [tensor("x", X)], outputs=asked).get_response()
    assert [output.name for output in answer.outputs] == ["y"]


def test_faulty_model_is_not_ready_and_no_error(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("unknown_field") is False
