"""Tensors in shared memory, with NVIDIA's client and a real gateway."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from tests.gateway.onnx_models import every, identity, put
from tests.gateway.process import Gateway, gateway

FOLDER = Path("/dev/shm")
SIZE = 4096
FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def key() -> str:
    return f"/test-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("shared")
    for datatype in ("FP32", "BYTES"):
        put(root, f"identity_{datatype}", identity(datatype))
    put(root, "every", every(("FP32", "INT32")))
    put(root, "any_width", identity(dims=("n", "k")))
    with gateway(root, "--allow-client-shm") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(opened: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(opened.url) as connected:
        yield connected
        connected.unregister_system_shared_memory()


@pytest.fixture
def stub(opened: Gateway) -> Iterator[Any]:
    with grpc.insecure_channel(opened.url) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture
def region(client: triton.InferenceServerClient, key: str) -> Iterator[Any]:
    """`SIZE` bytes that client and gateway share, registered as `r`."""
    handle = shm.create_shared_memory_region("r", key, SIZE)
    client.register_system_shared_memory("r", key, SIZE)
    yield handle
    shm.destroy_shared_memory_region(handle)


def given(name: str, datatype: str, shape: tuple[int, ...], size: int, offset: int = 0) -> Any:
    made = triton.InferInput(name, list(shape), datatype)
    made.set_shared_memory("r", size, offset)
    return made


def wanted(name: str, size: int, offset: int = 0) -> Any:
    made = triton.InferRequestedOutput(name)
    made.set_shared_memory("r", size, offset)
    return made


def refused(call: Any, *arguments: Any, **how: Any) -> str:
    with pytest.raises(triton.InferenceServerException) as caught:
        call(*arguments, **how)
    return f"{caught.value.status().removeprefix('StatusCode.')} {caught.value.message()}"


def test_inputs_and_outputs_lie_in_a_region(
    client: triton.InferenceServerClient, region: Any
) -> None:
    shm.set_shared_memory_region(region, [FLOATS])
    outputs = [wanted("y", 1024, 2048)]
    answer = client.infer("identity_FP32", [given("x", "FP32", (2, 3), 24)], outputs=outputs)
    output = answer.get_output("y")
    assert (output.datatype, list(output.shape), len(output.parameters)) == ("FP32", [2, 3], 0)
    assert list(answer.get_response().raw_output_contents) == [b""]
    placed = shm.get_contents_as_numpy(region, np.float32, [2, 3], 2048)
    np.testing.assert_array_equal(placed, FLOATS)


def test_strings_lie_in_a_region(client: triton.InferenceServerClient, region: Any) -> None:
    strings = np.array([[b"tide", b"", b"gate"]], np.object_)
    shm.set_shared_memory_region(region, [serialize_byte_tensor(strings)])
    size = 3 * 4 + 8
    given_strings = given("x", "BYTES", (1, 3), size)
    client.infer("identity_BYTES", [given_strings], outputs=[wanted("y", size, 512)])
    placed = shm.get_contents_as_numpy(region, np.object_, [1, 3], 512)
    np.testing.assert_array_equal(placed, strings)
    assert refused(client.infer, "identity_BYTES", [given("x", "BYTES", (1, 3), size - 1)]) == (
        "INVALID_ARGUMENT incomplete string data for inference input 'x', expecting string of "
        "length 4 but only 3 bytes available"
    )


def test_raw_contents_skip_what_lies_in_a_region(
    client: triton.InferenceServerClient, region: Any
) -> None:
    shm.set_shared_memory_region(region, [FLOATS])
    integers = triton.InferInput("x_INT32", [2, 3], "INT32")
    integers.set_data_from_numpy(FLOATS.astype(np.int32))
    answer = client.infer("every", [given("x_FP32", "FP32", (2, 3), 24), integers])
    np.testing.assert_array_equal(answer.as_numpy("y_FP32"), FLOATS)
    np.testing.assert_array_equal(answer.as_numpy("y_INT32"), FLOATS.astype(np.int32))


def test_streamed_answers_lie_in_a_region(
    client: triton.InferenceServerClient, region: Any
) -> None:
    shm.set_shared_memory_region(region, [FLOATS])
    heard: list[Any] = []
    client.start_stream(lambda result, error: heard.append((result, error)))
    inputs = [given("x", "FP32", (2, 3), 24)]
    client.async_stream_infer("identity_FP32", inputs, outputs=[wanted("y", 24, 64)])
    client.async_stream_infer("identity_FP32", inputs, outputs=[wanted("y", 8, 64)])
    client.stop_stream()
    (answer, none), (_, error) = heard
    assert none is None
    assert answer.get_response().raw_output_contents == [b""]
    placed = shm.get_contents_as_numpy(region, np.float32, [2, 3], 64)
    np.testing.assert_array_equal(placed, FLOATS)
    assert "(8 bytes) should be at least 24 bytes to hold the results" in str(error)


def test_regions_are_listed_and_forgotten(
    client: triton.InferenceServerClient, region: Any, key: str
) -> None:
    client.register_system_shared_memory("s", key, 64, offset=32)
    described = client.get_system_shared_memory_status().regions
    assert {n: (r.key, r.offset, r.byte_size) for n, r in described.items()} == {
        "r": (key, 0, SIZE),
        "s": (key, 32, 64),
    }
    assert list(client.get_system_shared_memory_status("s").regions) == ["s"]
    again = refused(client.register_system_shared_memory, "r", key, SIZE)
    assert again == "ALREADY_EXISTS shared memory region 'r' already in manager"
    client.unregister_system_shared_memory("nobody")
    client.unregister_cuda_shared_memory()
    client.unregister_system_shared_memory("r")
    assert refused(client.get_system_shared_memory_status, "r") == (
        "NOT_FOUND Unable to find system shared memory region: 'r'"
    )
    client.unregister_system_shared_memory()
    assert not client.get_system_shared_memory_status().regions


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"shared_memory_region": "q", "shared_memory_byte_size": 24},
            "NOT_FOUND Unable to find shared memory region: 'q'",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": SIZE + 1},
            "INVALID_ARGUMENT Invalid offset + byte size for shared memory region: 'r'",
        ),
        (
            {
                "shared_memory_region": "r",
                "shared_memory_byte_size": 24,
                "shared_memory_offset": SIZE,
            },
            "INVALID_ARGUMENT Invalid offset for shared memory region: 'r'",
        ),
        (
            {"shared_memory_region": "r"},
            "INVALID_ARGUMENT 'shared_memory_byte_size' must be specified along with "
            "'shared_memory_region' parameter for tensor 'T'",
        ),
        (
            {"shared_memory_offset": 4},
            "INVALID_ARGUMENT 'shared_memory_offset' can not be specified without "
            "'shared_memory_region' parameter for tensor 'T'",
        ),
        (
            {"shared_memory_region": 3, "shared_memory_byte_size": 24},
            "INVALID_ARGUMENT invalid value type for 'shared_memory_region' parameter for tensor "
            "'T', expected string_param.",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": "24"},
            "INVALID_ARGUMENT invalid value type for 'shared_memory_byte_size' parameter for "
            "tensor 'T', expected int64_param.",
        ),
    ],
)
@pytest.mark.parametrize("side", ["input", "output"])
def test_parameters_that_lead_nowhere_are_refused_in_tritons_words(
    side: str, parameters: dict[str, str | int], text: str, stub: Any, region: Any
) -> None:
    message = pb.ModelInferRequest(model_name="identity_FP32")
    tensor = message.inputs.add(name="x", datatype="FP32", shape=(2, 3))
    if side == "output":
        message.raw_input_contents.append(FLOATS.tobytes())
        tensor = message.outputs.add(name="y")
    for name, value in parameters.items():
        if isinstance(value, str):
            tensor.parameters[name].string_param = value
        else:
            tensor.parameters[name].int64_param = value
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(message)
    said = f"{caught.value.code().name} {caught.value.details()}"
    assert said == text.replace("'T'", f"'{tensor.name}'")


def test_region_that_is_too_small_for_an_output_gets_nothing(
    client: triton.InferenceServerClient, region: Any
) -> None:
    shm.set_shared_memory_region(region, [FLOATS])
    said = refused(
        client.infer,
        "identity_FP32",
        [given("x", "FP32", (2, 3), 24)],
        outputs=[wanted("y", 20, 256)],
    )
    assert said == (
        "INTERNAL shared memory size specified with the request for output 'y' (20 bytes) should "
        "be at least 24 bytes to hold the results"
    )
    assert not shm.get_contents_as_numpy(region, np.uint8, [24], 256).any()


def test_region_named_many_times_does_not_fill_the_memory(stub: Any, client: Any, key: str) -> None:
    with (FOLDER / key[1:]).open("wb") as file:
        file.truncate(2**30)  # nothing is written: it takes no memory
    client.register_system_shared_memory("r", key, 2**30)
    (FOLDER / key[1:]).unlink()  # the gateway holds it open
    message = pb.ModelInferRequest(model_name="identity_FP32")
    for number in range(10_000):
        tensor = message.inputs.add(name=str(number), datatype="UINT8", shape=(2**30,))
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = 2**30
    with pytest.raises(grpc.RpcError, match="inputs in shared memory exceed 2147479552 bytes"):
        stub.ModelInfer(message)


def test_file_truncated_after_its_registration_fails_its_requests_alone(
    client: triton.InferenceServerClient, region: Any, key: str
) -> None:
    os.truncate(FOLDER / key[1:], 8)
    said = refused(client.infer, "identity_FP32", [given("x", "FP32", (2, 3), 24)])
    assert said.startswith("INVALID_ARGUMENT only 8 of 24 bytes could be read")
    x = triton.InferInput("x", [2, 3], "FP32")
    x.set_data_from_numpy(FLOATS)
    said = refused(client.infer, "identity_FP32", [x], outputs=[wanted("y", 24)])
    assert said.startswith("INVALID_ARGUMENT only 0 of 24 bytes could be written")
    np.testing.assert_array_equal(client.infer("identity_FP32", [x]).as_numpy("y"), FLOATS)
    os.truncate(FOLDER / key[1:], SIZE)  # the client's own mapping is closed by its fixture


def test_region_unregistered_under_load_answers_right_or_not_found(
    client: triton.InferenceServerClient, region: Any, key: str
) -> None:
    rows = np.arange(64, dtype=np.float32).reshape(1, 64)
    shm.set_shared_memory_region(region, [rows])

    def ask(number: int) -> str:
        outputs = [wanted("y", 256, 1024)] if number % 2 else None
        try:
            answer = client.infer("any_width", [given("x", "FP32", (1, 64), 256)], outputs=outputs)
        except triton.InferenceServerException as error:
            return str(error.status())
        if not outputs:
            np.testing.assert_array_equal(answer.as_numpy("y"), rows)
        return "OK"

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(ask, range(400))
        for _ in range(20):
            client.unregister_system_shared_memory("r")
            client.register_system_shared_memory("r", key, SIZE)
        assert set(answers) <= {"OK", "StatusCode.NOT_FOUND"}
    assert ask(1) == "OK"
    np.testing.assert_array_equal(
        shm.get_contents_as_numpy(region, np.float32, [1, 64], 1024), rows
    )


def test_gateway_that_is_closed_says_how_it_is_opened(served: Gateway, key: str) -> None:
    with triton.InferenceServerClient(served.url) as client:
        said = refused(client.register_system_shared_memory, "r", key, 8)
        assert said.startswith("UNAVAILABLE shared memory is closed to clients")
        said = refused(client.infer, "identity_FP32", [given("x", "FP32", (2, 3), 24)])
        assert said.startswith("UNAVAILABLE shared memory is closed to clients")
        assert not client.get_system_shared_memory_status().regions
        client.unregister_system_shared_memory()
