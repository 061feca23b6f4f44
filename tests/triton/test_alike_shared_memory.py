"""Shared memory regions: Tidegate registers, uses and refuses them as Triton does."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import serialize_byte_tensor

from tests.triton.alike import COMPATIBILITY, TRITON
from tests.triton.questions import ask, floats, said
from tests.triton.rest_questions import Asked, http_ask
from tests.triton.server import Endpoint

SIZE = 4096
F = "identity_FP32"
FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)
SYSTEM, CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"


@pytest.fixture
def key() -> str:
    return f"/alike-{uuid.uuid4().hex}"


@pytest.fixture
def region(client: triton.InferenceServerClient, key: str) -> Iterator[Any]:
    """`SIZE` bytes that client and server share, registered as `r`; FLOATS at their beginning."""
    handle = shm.create_shared_memory_region("r", key, SIZE)
    shm.set_shared_memory_region(handle, [FLOATS])
    client.register_system_shared_memory("r", key, SIZE)
    yield handle
    client.unregister_system_shared_memory()
    shm.destroy_shared_memory_region(handle)


def floats_at(region: Any, offset: int) -> Any:
    return shm.get_contents_as_numpy(region, np.float32, [2, 3], offset)


@pytest.mark.parametrize("api", [triton, triton_http])
def test_inputs_and_outputs_lie_in_a_region(api: Any, endpoint: Endpoint, region: Any) -> None:
    x, y = api.InferInput("x", [2, 3], "FP32"), api.InferRequestedOutput("y")
    x.set_shared_memory("r", 24)
    y.set_shared_memory("r", 24, offset=512)
    url = endpoint.grpc if api is triton else endpoint.http
    with api.InferenceServerClient(url) as client:
        output = client.infer(F, [x], outputs=[y]).get_output("y")
        plain = client.infer(F, [x]).as_numpy("y")
    np.testing.assert_array_equal(floats_at(region, 512), FLOATS)
    np.testing.assert_array_equal(plain, FLOATS)
    if api is triton_http:
        assert output == {"name": "y", "datatype": "FP32", "shape": [2, 3]}


def test_output_in_a_region_leaves_an_empty_entry(stub: Any, region: Any) -> None:
    message = placed(floats(2, 3), "output", region="r", byte_size=24)
    response = stub.ModelInfer(message)
    assert list(response.raw_output_contents) == [b""]
    assert not response.outputs[0].parameters


def test_strings_lie_in_a_region(client: triton.InferenceServerClient, region: Any) -> None:
    strings = np.array([[b"tide", b"", b"gate"]], np.object_)
    shm.set_shared_memory_region(region, [serialize_byte_tensor(strings)], offset=1024)
    x, y = triton.InferInput("x", [1, 3], "BYTES"), triton.InferRequestedOutput("y")
    x.set_shared_memory("r", 20, offset=1024)
    y.set_shared_memory("r", 20, offset=2048)
    client.infer("identity_BYTES", [x], outputs=[y])
    sent = shm.get_contents_as_numpy(region, np.object_, [1, 3], 2048)
    np.testing.assert_array_equal(sent, strings)


def test_raw_contents_skip_what_lies_in_a_region(
    client: triton.InferenceServerClient, region: Any
) -> None:
    shm.set_shared_memory_region(region, [np.array([[3, 4]], np.float32)])
    a, b = (triton.InferInput(name, [1, 2], "FP32") for name in "ab")
    a.set_shared_memory("r", 8)
    b.set_data_from_numpy(np.array([[5, 6]], np.float32))
    np.testing.assert_array_equal(client.infer("two", [a, b]).as_numpy("product"), [[15, 24]])


def test_streamed_answers_lie_in_a_region(stub: Any, region: Any) -> None:
    fits = placed(floats(2, 3), "output", region="r", byte_size=24, offset=512)
    too_small = placed(floats(2, 3), "output", region="r", byte_size=8, offset=512)
    first, second = stub.ModelStreamInfer(iter([fits, too_small]), timeout=20)
    assert list(first.infer_response.raw_output_contents) == [b""]
    np.testing.assert_array_equal(floats_at(region, 512), np.ones((2, 3)))
    assert "(8 bytes) should be at least 24 bytes to hold the results" in second.error_message


def placed(tensor: Any, side: str, **where: Any) -> pb.ModelInferRequest:
    """Return a request whose input or output lies in shared memory, as the parameters say."""
    message = ask(F, tensor if side == "output" else tensor._replace(raw=None), outputs=("y",))
    parameters = (message.outputs if side == "output" else message.inputs)[0].parameters
    for name, value in where.items():
        kind = "string_param" if isinstance(value, str) else "int64_param"
        setattr(parameters[f"shared_memory_{name}"], kind, value)
    return message


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize(
    ("where", "says"),
    [
        (
            {"region": "q", "byte_size": 24},
            "NOT_FOUND Unable to find shared memory region: 'q'",
        ),
        (
            {"region": "r", "byte_size": SIZE + 1},
            "INVALID_ARGUMENT Invalid offset + byte size for shared memory region: 'r'",
        ),
        (
            {"region": "r", "byte_size": 24, "offset": SIZE - 23},
            "INVALID_ARGUMENT Invalid offset + byte size for shared memory region: 'r'",
        ),
        (
            {"region": "r", "byte_size": 24, "offset": SIZE},
            "INVALID_ARGUMENT Invalid offset for shared memory region: 'r'",
        ),
        (
            {"region": "r", "byte_size": 24, "offset": -1},
            "INVALID_ARGUMENT Invalid offset for shared memory region: 'r'",
        ),
        (
            {"region": "r"},
            "INVALID_ARGUMENT 'shared_memory_byte_size' must be specified along with "
            "'shared_memory_region' parameter for tensor 'T'",
        ),
        (
            {"byte_size": 24},
            "INVALID_ARGUMENT 'shared_memory_byte_size' can not be specified without "
            "'shared_memory_region' parameter for tensor 'T'",
        ),
        (
            {"offset": 4},
            "INVALID_ARGUMENT 'shared_memory_offset' can not be specified without "
            "'shared_memory_region' parameter for tensor 'T'",
        ),
        (
            {"region": 3, "byte_size": 24},
            "INVALID_ARGUMENT invalid value type for 'shared_memory_region' parameter for tensor "
            "'T', expected string_param.",
        ),
        (
            {"region": "r", "byte_size": "24"},
            "INVALID_ARGUMENT invalid value type for 'shared_memory_byte_size' parameter for "
            "tensor 'T', expected int64_param.",
        ),
        (
            {"region": "r", "byte_size": 24, "offset": "4"},
            "INVALID_ARGUMENT invalid value type for 'shared_memory_offset' parameter for "
            "tensor 'T', expected int64_param.",
        ),
    ],
)
def test_parameters_that_lead_nowhere_are_refused(
    where: dict[str, Any], says: str, side: str, stub: Any, region: Any
) -> None:
    name = "y" if side == "output" else "x"
    expected = says.replace("'T'", f"'{name}'")
    assert said(stub.ModelInfer, placed(floats(2, 3), side, **where)) == expected


def test_sizes_that_do_not_fit_are_refused(stub: Any, region: Any) -> None:
    short = placed(floats(2, 3), "input", region="r", byte_size=20)
    assert said(stub.ModelInfer, short) == (
        "INVALID_ARGUMENT [request id: <id_unknown>] input byte size mismatch for input 'x' for "
        "model 'identity_FP32'. Expected 24, got 20"
    )
    small = placed(floats(2, 3), "output", region="r", byte_size=20, offset=512)
    assert said(stub.ModelInfer, small) == (
        "INTERNAL shared memory size specified with the request for output 'y' (20 bytes) should "
        "be at least 24 bytes to hold the results"
    )
    assert not shm.get_contents_as_numpy(region, np.uint8, [24], 512).any()


def test_contents_beside_a_region_are_refused(stub: Any, region: Any) -> None:
    message = placed(floats(2, 3), "input", region="r", byte_size=24)
    message.inputs[0].contents.fp32_contents.extend([0] * 6)
    assert said(stub.ModelInfer, message) == (
        "INVALID_ARGUMENT unexpected 'content' provided when using shared memory for input tensor "
        "'x' for model 'identity_FP32'"
    )
    message = placed(floats(2, 3), "output", region="r", byte_size=24)
    message.outputs[0].parameters["classification"].int64_param = 2
    assert said(stub.ModelInfer, message) == (
        "INVALID_ARGUMENT output can't set both 'shared_memory_region' and 'classification'"
    )


def test_regions_are_listed_and_forgotten(
    client: triton.InferenceServerClient, stub: Any, region: Any, key: str
) -> None:
    (described,) = client.get_system_shared_memory_status().regions.items()
    assert described[0] == "r"
    assert (described[1].key, described[1].offset, described[1].byte_size) == (key, 0, SIZE)
    assert list(client.get_system_shared_memory_status("r").regions) == ["r"]
    again = pb.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=SIZE)
    assert said(stub.SystemSharedMemoryRegister, again) == (
        "ALREADY_EXISTS shared memory region 'r' already in manager"
    )
    client.unregister_system_shared_memory("nobody")
    assert list(client.get_system_shared_memory_status().regions) == ["r"]
    client.unregister_system_shared_memory("r")
    assert said(stub.SystemSharedMemoryStatus, pb.SystemSharedMemoryStatusRequest(name="r")) == (
        "NOT_FOUND Unable to find system shared memory region: 'r'"
    )
    client.unregister_system_shared_memory()
    assert not client.get_system_shared_memory_status().regions


@pytest.mark.parametrize("name", ["/nothing-here", "/../passwd", "/a/b", ""])
def test_file_that_cannot_be_opened_is_no_region(name: str, server: str, stub: Any) -> None:
    message = pb.SystemSharedMemoryRegisterRequest(name="n", key=name, byte_size=8)
    status = "INTERNAL" if server == TRITON else "INVALID_ARGUMENT"
    assert said(stub.SystemSharedMemoryRegister, message) == (
        f"{status} Unable to open shared memory region: '{name}'"
    )
    assert "| region that cannot be opened |" in COMPATIBILITY


@pytest.mark.parametrize("where", [{"byte_size": SIZE + 1}, {"offset": SIZE}])
def test_region_beyond_the_end_of_its_file_is_refused(
    where: dict[str, int], stub: Any, key: str
) -> None:
    handle = shm.create_shared_memory_region("n", key, SIZE)
    described = {"name": "n", "key": key, "byte_size": SIZE, **where}
    message = pb.SystemSharedMemoryRegisterRequest(**described)
    try:
        assert said(stub.SystemSharedMemoryRegister, message) == (
            "INVALID_ARGUMENT failed to register shared memory region 'n': invalid args"
        )
    finally:
        shm.destroy_shared_memory_region(handle)


def test_cuda_regions_need_a_gpu(
    server: str, client: triton.InferenceServerClient, stub: Any, endpoint: Endpoint
) -> None:
    register = pb.CudaSharedMemoryRegisterRequest(name="c", raw_handle=bytes(64), byte_size=64)
    answer = said(stub.CudaSharedMemoryRegister, register)
    assert answer.startswith("INVALID_ARGUMENT failed to register shared memory region")
    # the gateway says why: no driver, or no such memory
    assert answer.endswith("region: invalid args") == (server == TRITON)
    assert "| CUDA region without a GPU |" in COMPATIBILITY
    assert not client.get_cuda_shared_memory_status().regions
    assert said(stub.CudaSharedMemoryStatus, pb.CudaSharedMemoryStatusRequest(name="c")) == (
        "NOT_FOUND Unable to find cuda shared memory region: 'c'"
    )
    client.unregister_cuda_shared_memory("c")
    client.unregister_cuda_shared_memory()
    assert http_ask(endpoint, Asked(f"{CUDA}/status")).json == []
    no_handle = {"raw_handle": {"b64": "aGVsbG8="}, "device_id": 0, "byte_size": 64}
    answered = http_ask(endpoint, Asked(f"{CUDA}/region/c/register", no_handle))
    by_triton = {"error": "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"}
    assert answered.code == 400
    assert (answered.json == by_triton) == (server == TRITON)


def test_rest_registers_lists_and_forgets(
    http_client: triton_http.InferenceServerClient, endpoint: Endpoint, key: str
) -> None:
    handle = shm.create_shared_memory_region("h", key, SIZE)
    http_client.register_system_shared_memory("h", key, SIZE)
    described = [{"name": "h", "key": key, "offset": 0, "byte_size": SIZE}]
    assert http_client.get_system_shared_memory_status() == described
    assert http_client.get_system_shared_memory_status("h") == described
    again = Asked(f"{SYSTEM}/region/h/register", {"key": key, "byte_size": SIZE})
    assert http_ask(endpoint, again).json == {
        "error": "shared memory region 'h' already in manager"
    }
    assert http_ask(endpoint, again).code == 400
    http_client.unregister_system_shared_memory("h")
    http_client.unregister_system_shared_memory()
    assert http_client.get_system_shared_memory_status() == []
    shm.destroy_shared_memory_region(handle)


_SIZE = "attempt to access JSON non-unsigned-integer as unsigned-integer"


@pytest.mark.parametrize(
    ("path", "body", "code", "text"),
    [
        (f"{SYSTEM}/region/x/status", None, 404, "Unable to find system shared memory region: 'x'"),
        (f"{SYSTEM}/region/x/unregister", b"", 200, ""),
        (f"{SYSTEM}/unregister", b"{", 200, ""),
        (
            f"{SYSTEM}/register",
            {"key": "/k", "byte_size": 8},
            400,
            "'region name' is necessary to register system shared memory region",
        ),
        (
            f"{SYSTEM}/region/x/register",
            {"byte_size": 8},
            400,
            "Shared memory register request has no 'key' field",
        ),
        (
            f"{SYSTEM}/region/x/register",
            {"key": "/k"},
            400,
            "Shared memory register request has no 'byte_size' field",
        ),
    ],
)
def test_rest_says_what_is_wrong_with_a_region(
    path: str, body: Any, code: int, text: str, endpoint: Endpoint
) -> None:
    answered = http_ask(endpoint, Asked(path, body))
    assert answered.code == code
    assert (answered.json or {"error": ""})["error"] == text


def _in_region(**parameters: Any) -> dict[str, Any]:
    where = {f"shared_memory_{name}": value for name, value in parameters.items()}
    return {"name": "x", "datatype": "FP32", "shape": [2, 3], "parameters": where}


FROM_REGION = _in_region(region="r", byte_size=24)
_ONLY_ONE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)


@pytest.mark.parametrize(
    ("tensor", "output", "code", "text"),
    [
        (_in_region(region="q", byte_size=24), {}, 404, "Unable to find shared memory region: 'q'"),
        (_in_region(byte_size=24), {}, 400, f"{_ONLY_ONE}no field is set"),
        (
            {**FROM_REGION, "data": [0] * 6},
            {},
            400,
            f"{_ONLY_ONE}set 'data' 'shared_memory_region'",
        ),
        (
            _in_region(region="r", byte_size="24"),
            {},
            500,
            f"Unable to parse 'shared_memory_byte_size': {_SIZE}",
        ),
        (
            FROM_REGION,
            {"shared_memory_region": "r", "shared_memory_byte_size": 24, "binary_data": True},
            400,
            "Output can't set both 'shared_memory_region' and 'binary_data'",
        ),
        (
            FROM_REGION,
            {"shared_memory_region": "r", "shared_memory_byte_size": 24, "classification": 2},
            400,
            "Output can't set both 'shared_memory_region' and 'classification'",
        ),
        (
            FROM_REGION,
            {"shared_memory_region": "r", "shared_memory_byte_size": 8},
            500,
            "shared memory size specified with the request for output 'y' (8 bytes) should be at "
            "least 24 bytes to hold the results",
        ),
    ],
)
def test_rest_refuses_what_cannot_be_placed(
    tensor: Any,
    output: Any,
    code: int,
    text: str,
    server: str,
    endpoint: Endpoint,
    region: Any,
) -> None:
    document = {"inputs": [tensor], "outputs": [{"name": "y", "parameters": output}]}
    answered = http_ask(endpoint, Asked(f"/v2/models/{F}/infer", document))
    # a fault in the client's JSON is the client's
    json_fault = server != TRITON and text.startswith("Unable to parse")
    assert (answered.code, answered.json) == (400 if json_fault else code, {"error": text})
