"""What a request may say and how its answer comes back, over a real connection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.core import DTYPES
from tests.gateway.onnx_models import add_and_multiply, every, identity, put
from tests.gateway.process import Gateway, gateway

MEGABYTES = 1_000_000
UNBATCHED = """input { name: "x" data_type: TYPE_FP32 dims: [-1, -1] }
output { name: "y" data_type: TYPE_FP32 dims: [-1, -1] }
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that takes large messages."""
    root = tmp_path_factory.mktemp("requests")
    put(root, "every", every([each for each in DTYPES if each != "BF16"]))
    for datatype in ("FP32", "FP16", "BF16", "BYTES"):
        put(root, f"identity_{datatype}", identity(datatype))
    put(root, "two", add_and_multiply())
    put(root, "any_width", identity(dims=("n", "k")))
    put(root, "unbatched", identity(dims=("n", "k")), UNBATCHED)
    with gateway(root, "--max-message-bytes", str(250 * MEGABYTES)) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(wide: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(wide.url) as connected:
        yield connected


@pytest.fixture
def stub(wide: Gateway) -> Iterator[Any]:
    with grpc.insecure_channel(wide.url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(data: np.ndarray[Any, Any], datatype: str = "FP32", name: str = "x") -> Any:
    made = triton.InferInput(name, list(data.shape), datatype)
    made.set_data_from_numpy(data)
    return made


def ask(model: str = "identity_FP32", **fields: Any) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model, **fields)
    message.inputs.add(name="x", datatype="FP32", shape=(1, 3))
    message.raw_input_contents.append(np.ones((1, 3), np.float32).tobytes())
    return message


def said(stub: Any, message: pb.ModelInferRequest) -> str:
    try:
        stub.ModelInfer(message)
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "OK"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate", None])
def test_compressed_requests_are_understood(
    client: triton.InferenceServerClient, algorithm: str | None
) -> None:
    rows = np.tile(np.arange(10_000, dtype=np.float32), (4, 1))
    answer = client.infer("any_width", [tensor(rows)], compression_algorithm=algorithm)
    np.testing.assert_array_equal(answer.as_numpy("y"), rows)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_streams_are_understood(
    client: triton.InferenceServerClient, algorithm: str
) -> None:
    rows = np.tile(np.arange(10_000, dtype=np.float32), (4, 1))
    heard: list[Any] = []
    client.start_stream(
        lambda result, error: heard.append((result, error)), compression_algorithm=algorithm
    )
    client.async_stream_infer("any_width", [tensor(rows)])
    client.stop_stream()
    ((answer, error),) = heard
    assert error is None
    np.testing.assert_array_equal(answer.as_numpy("y"), rows)


def test_compressed_message_counts_by_what_it_unpacks_to(served: Gateway) -> None:
    zeros = np.zeros((1, 300_000), np.float32)
    with triton.InferenceServerClient(served.url) as client:
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer("any_width", [tensor(zeros)], compression_algorithm="gzip")
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert client.is_server_live()


def test_large_messages_go_both_ways(client: triton.InferenceServerClient) -> None:
    row = np.arange(50 * MEGABYTES, dtype=np.float32).reshape(1, -1)
    answer = client.infer("any_width", [tensor(row)]).as_numpy("y")
    assert np.array_equal(answer, row)


@pytest.mark.parametrize(
    ("model", "shape"),
    [("any_width", (0, 7)), ("any_width", (3, 0)), ("unbatched", (0, 5)), ("unbatched", (0, 0))],
)
def test_tensors_without_elements_come_back(
    client: triton.InferenceServerClient, model: str, shape: tuple[int, int]
) -> None:
    answer = client.infer(model, [tensor(np.zeros(shape, np.float32))]).as_numpy("y")
    assert (answer.shape, answer.dtype) == (shape, np.float32)


@pytest.mark.parametrize("typed", [False, True])
def test_input_without_elements_needs_no_contents(stub: Any, typed: bool) -> None:
    message = pb.ModelInferRequest(model_name="any_width")
    given = message.inputs.add(name="x", datatype="FP32", shape=(2, 0))
    if typed:
        given.contents.SetInParent()
    answer = stub.ModelInfer(message)
    assert list(answer.outputs[0].shape) == [2, 0]
    assert list(answer.raw_output_contents) == [b""]


def test_empty_strings_are_elements(client: triton.InferenceServerClient) -> None:
    strings = np.array([[b"", b"a\0b", "gäte".encode()]], np.object_)
    answer = client.infer("identity_BYTES", [tensor(strings, "BYTES")]).as_numpy("y")
    np.testing.assert_array_equal(answer, strings)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
@pytest.mark.parametrize("field", ["fp32_contents", "uint_contents"])
def test_half_floats_travel_raw_only(stub: Any, datatype: str, field: str) -> None:
    message = pb.ModelInferRequest(model_name=f"identity_{datatype}")
    contents = message.inputs.add(name="x", datatype=datatype, shape=(1, 3)).contents
    getattr(contents, field).extend([1, 2, 3])
    holds = "FP32" if field == "fp32_contents" else "UINT32"
    assert said(stub, message) == (
        "INVALID_ARGUMENT unexpected explicit tensor data for input tensor 'x' for model "
        f"'identity_{datatype}' of type '{holds}', expected datatype '{datatype}'"
    )


def test_contents_are_raw_for_all_inputs_or_for_none(stub: Any) -> None:
    message = ask()
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3])
    assert said(stub, message) == (
        "INVALID_ARGUMENT contents field must not be specified when using raw_input_contents for "
        "'x' for model 'identity_FP32'"
    )


@pytest.mark.parametrize("id", ["", "17", "g\u00e4te", "i" * 10_000])
def test_id_is_echoed(stub: Any, id: str) -> None:
    answer = stub.ModelInfer(ask(id=id))
    assert (answer.id, answer.model_name, answer.model_version) == (id, "identity_FP32", "1")


def test_parameters_that_say_nothing_to_the_gateway_are_no_error(stub: Any) -> None:
    message = ask()
    message.parameters["a"].string_param = "x"
    message.parameters["b"].int64_param = -1
    message.parameters["c"].bool_param = True
    message.parameters["d"].double_param = 0.5
    message.parameters["e"].uint64_param = 2**64 - 1
    message.inputs[0].parameters["f"].string_param = "x"
    message.outputs.add(name="y").parameters["g"].bool_param = True
    answer = stub.ModelInfer(message)
    assert not answer.parameters
    message.parameters["h"].SetInParent()
    assert said(stub, message) == (
        "INVALID_ARGUMENT invalid value type for 'h' parameter, expected int64_param, bool_param, "
        "or string_param."
    )


def test_outputs_come_in_the_order_asked_for_each_once(stub: Any) -> None:
    message = pb.ModelInferRequest(model_name="two")
    for name in "ab":
        message.inputs.add(name=name, datatype="FP32", shape=(1, 2))
        message.raw_input_contents.append(np.full((1, 2), 3, np.float32).tobytes())
    for name in ("product", "sum", "product"):
        message.outputs.add(name=name)
    answer = stub.ModelInfer(message)
    assert [output.name for output in answer.outputs] == ["product", "sum"]
    values = [np.frombuffer(raw, np.float32)[0] for raw in answer.raw_output_contents]
    assert values == [9, 6]


def test_of_an_output_asked_for_twice_the_first_wish_counts(stub: Any) -> None:
    message = ask()
    for classes in (0, 1, 2):
        output = message.outputs.add(name="y")
        if classes:
            output.parameters["classification"].int64_param = classes
    answer = stub.ModelInfer(message)
    assert [(each.datatype, list(each.shape)) for each in answer.outputs] == [("BYTES", [1, 1])]


@pytest.mark.parametrize("classes", [0, 2])
def test_unknown_output_is_refused(stub: Any, classes: int) -> None:
    message = ask()
    output = message.outputs.add(name="z")
    if classes:
        output.parameters["classification"].int64_param = classes
    assert said(stub, message) == (
        "INVALID_ARGUMENT unexpected inference output 'z' for model 'identity_FP32'"
    )


def test_output_is_classified_or_placed_and_not_both(stub: Any) -> None:
    message = ask()
    wishes = message.outputs.add(name="y").parameters
    wishes["classification"].int64_param = 1
    wishes["shared_memory_region"].string_param = "r"
    wishes["shared_memory_byte_size"].int64_param = 8
    assert said(stub, message) == (
        "INVALID_ARGUMENT output can't set both 'shared_memory_region' and 'classification'"
    )


def test_every_datatype_comes_back_beside_the_others(client: triton.InferenceServerClient) -> None:
    given = {
        each: np.array([[0, 1, 1]]).astype(dtype)
        if each != "BYTES"
        else np.array([[b"", b"a", b"b"]], dtype)
        for each, dtype in DTYPES.items()
        if each != "BF16"
    }
    inputs = [tensor(data, each, f"x_{each}") for each, data in given.items()]
    answer = client.infer("every", inputs)
    for each, data in given.items():
        np.testing.assert_array_equal(answer.as_numpy(f"y_{each}"), data)
