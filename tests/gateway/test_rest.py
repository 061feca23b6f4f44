"""REST v2 with NVIDIA's clients and by hand, against a real gateway."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import np_to_triton_dtype, shared_memory

from tests.gateway.onnx_models import ELEMENT_TYPES, identity, put
from tests.gateway.process import Gateway, eventually, gateway
from tests.gateway.rest_calls import INFER, ask, error_of, question

DATATYPES = [name for name in ELEMENT_TYPES if name != "BF16"]
ONE_TO_THREE = np.array([[1, 2, 3]], np.float32)


@pytest.fixture
def client(served: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.http.removeprefix("http://")) as made:
        yield made


def tensor(name: str, array: np.ndarray[Any, Any], binary: bool = True) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def some(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([[b"a", b"", "ü\n\0".encode()]], np.object_)
    return np.array([[1, 0, 1]]).astype(by_grpc.triton_to_np_dtype(datatype))


@pytest.mark.parametrize(
    ("datatype", "binary"),
    # FP16 goes as bytes only, as in Triton
    [(each, binary) for each in DATATYPES for binary in (True, False) if binary or each != "FP16"],
)
def test_every_datatype_goes_there_and_back(
    client: triton.InferenceServerClient, datatype: str, binary: bool
) -> None:
    array = some(datatype)
    answer = client.infer(
        f"identity_{datatype}",
        [tensor("x", array, binary)],
        outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
        request_id="7",
    )
    given = answer.as_numpy("y")
    if datatype == "BYTES" and not binary:  # the client leaves JSON's strings as they are
        given = np.array([[each.encode() for each in given[0]]], np.object_)
    np.testing.assert_array_equal(given, array)
    assert answer.get_response()["id"] == "7"
    assert answer.get_response()["model_version"] == "1"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests_and_answers_are_understood(
    client: triton.InferenceServerClient, coding: str
) -> None:
    array = np.arange(4000, dtype=np.float32).reshape(4, 1000)
    answer = client.infer(
        "any_width",
        [tensor("x", array)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(answer.as_numpy("y"), array)


def test_asked_for_outputs_come_alone_and_in_order(client: triton.InferenceServerClient) -> None:
    inputs = [tensor(name, np.full((1, 2), 3, np.float32)) for name in "ab"]
    wanted = [
        triton.InferRequestedOutput("product"),
        triton.InferRequestedOutput("sum", binary_data=False),
    ]
    answer = client.infer("two", inputs, outputs=wanted)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["product", "sum"]
    assert answer.as_numpy("product").tolist() == [[9, 9]]
    assert answer.as_numpy("sum").tolist() == [[6, 6]]
    only = client.infer("two", inputs, outputs=wanted[1:])
    assert only.as_numpy("product") is None


def test_best_classes_are_told(client: triton.InferenceServerClient) -> None:
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput("y", binary_data=binary, class_count=2)]
        answer = client.infer("identity_FP32", [tensor("x", ONE_TO_THREE)], outputs=wanted)
        told = [
            each if isinstance(each, str) else each.decode() for each in answer.as_numpy("y")[0]
        ]
        assert told == ["3.000000:2", "2.000000:1"]


def test_everything_that_is_told_over_grpc_is_told(
    served: Gateway, client: triton.InferenceServerClient
) -> None:
    with by_grpc.InferenceServerClient(served.url) as other:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("two")
        assert not client.is_model_ready("nobody")
        assert client.get_server_metadata() == other.get_server_metadata(as_json=True)
        told = other.get_model_metadata("two", as_json=True)
        for side in ("inputs", "outputs"):
            for each in told[side]:
                each["shape"] = [int(dim) for dim in each["shape"]]  # protobuf's own JSON: texts
        assert client.get_model_metadata("two") == told
        config = client.get_model_config("two")
        assert config["max_batch_size"] == 4
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        assert config["input"][0]["dims"] == [2]
        assert config["dynamic_batching"]["priority_levels"] == 0
        assert "sequence_batching" not in config
        (statistics,) = client.get_inference_statistics("two")["model_stats"]
        assert statistics["inference_stats"]["fail"] == {"count": 0, "ns": 0}
        index = {model["name"]: model for model in client.get_model_repository_index()}
        assert index["two"]["version"] == "1"
        assert "reason" in index["truncated"]
        assert len(client.get_inference_statistics()["model_stats"]) > 10
        assert client.get_log_settings()["log_info"] is True
        assert client.get_trace_settings()["trace_level"] == ["OFF"]
        assert client.get_trace_settings("two")["trace_rate"] == "1000"
        assert client.get_system_shared_memory_status() == []
        assert client.get_cuda_shared_memory_status() == []


def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    put(tmp_path, "m", identity())
    with (
        gateway(tmp_path, "--allow-repository-control") as running,
        triton.InferenceServerClient(running.http.removeprefix("http://")) as client,
    ):
        client.load_model("m")
        assert client.get_model_repository_index()[0]["state"] == "READY"
        client.unload_model("m", unload_dependents=True)
        eventually(lambda: client.get_model_repository_index()[0]["state"] != "READY")
        config = '{"max_batch_size": 2}'
        client.load_model("m", config=config, files={"file:1/model.onnx": identity()})
        assert client.get_model_config("m")["max_batch_size"] == 2
        with pytest.raises(triton.InferenceServerException, match="failed to load 'nobody'"):
            client.load_model("nobody")
        assert running.stop() == 0


def test_tensors_lie_in_shared_memory(tmp_path: Path) -> None:
    put(tmp_path, "m", identity())
    region = shared_memory.create_shared_memory_region("r", "/test_rest", 24)
    try:
        with (
            gateway(tmp_path, "--allow-client-shm") as running,
            triton.InferenceServerClient(running.http.removeprefix("http://")) as client,
        ):
            shared_memory.set_shared_memory_region(region, [ONE_TO_THREE])
            client.register_system_shared_memory("r", "/test_rest", 24)
            (status,) = client.get_system_shared_memory_status("r")
            expected = {"name": "r", "key": "/test_rest", "offset": 0, "byte_size": 24}
            assert status == expected
            asked = triton.InferInput("x", [1, 3], "FP32")
            asked.set_shared_memory("r", 12)
            wanted = triton.InferRequestedOutput("y")
            wanted.set_shared_memory("r", 12, offset=12)
            output = client.infer("m", [asked], outputs=[wanted]).get_output("y")
            assert output == {"name": "y", "datatype": "FP32", "shape": [1, 3]}
            placed = shared_memory.get_contents_as_numpy(region, np.float32, [1, 3], 12)
            np.testing.assert_array_equal(placed, ONE_TO_THREE)
            client.unregister_system_shared_memory("r")
            assert client.get_system_shared_memory_status() == []
            assert running.stop() == 0
    finally:
        shared_memory.destroy_shared_memory_region(region)


def test_settings_are_changed(tmp_path: Path) -> None:
    with (
        gateway(tmp_path) as running,
        triton.InferenceServerClient(running.http.removeprefix("http://")) as client,
    ):
        assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
        assert client.update_trace_settings(settings={"trace_rate": "7"})["trace_rate"] == "7"
        assert client.update_trace_settings(settings={"trace_rate": None})["trace_rate"] == "1000"
        refused = ask(running, "POST", "/v2/trace/setting", {"trace_rate": 7})
        assert error_of(refused)[0] == 400
        assert running.stop() == 0


def test_asyncio_client_is_served(served: Gateway) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(served.http.removeprefix("http://")) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("two"))["name"] == "two"
            inputs = [tensor("x", ONE_TO_THREE)]
            answers = await asyncio.gather(
                *(client.infer("identity_FP32", inputs, request_id=str(n)) for n in range(50))
            )
            assert [each.get_response()["id"] for each in answers] == [str(n) for n in range(50)]
            with pytest.raises(triton_aio.InferenceServerException, match="unknown model"):
                await client.infer("nobody", inputs)

    asyncio.run(talk())


def test_by_hand_with_json_alone(served: Gateway) -> None:
    code, headers, body = ask(served, "POST", INFER, question(id="a"))
    assert (code, headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {
        "id": "a",
        "model_name": "identity_FP32",
        "model_version": "1",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}],
    }


def test_by_hand_with_nothing_but_the_contents(served: Gateway) -> None:
    raw = ONE_TO_THREE.tobytes()
    sized = {"Inference_Header_Content_Length": "0"}
    code, headers, body = ask(served, "POST", INFER, raw, **sized)
    assert (code, headers["content-type"]) == (200, "application/octet-stream")
    assert body[int(headers["inference-header-content-length"]) :] == raw
    several = error_of(ask(served, "POST", "/v2/models/two/infer", raw, **sized))
    assert "Raw request must only have 1 input (found 1) to be deduced but got 2" in several[1]


def test_versions_are_asked_for_by_path(served: Gateway) -> None:
    for version in ("1", "3"):
        path = f"/v2/models/versions/versions/{version}"
        answer = json.loads(ask(served, "POST", f"{path}/infer", question())[2])
        assert answer["model_version"] == version
        assert ask(served, "GET", f"{path}/ready")[0] == 200
    missing = ask(served, "POST", "/v2/models/versions/versions/2/infer", question())
    assert error_of(missing) == (
        404,
        "Request for unknown model: 'versions' version 2 is not found",
    )


def test_names_of_models_are_decoded(served: Gateway) -> None:
    assert ask(served, "GET", "/v2/models/t%77o/ready")[0] == 200
    unknown = ask(served, "POST", "/v2/models/a%20b/infer", question())
    assert error_of(unknown) == (404, "Request for unknown model: 'a b' is not found")


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "text"),
    [
        ("GET", "/v2/", None, 404, "Not Found"),
        ("GET", "/v2/models/two/nothing", None, 404, "Not Found"),
        ("GET", "/v2/models/nobody", None, 404, "Request for unknown model: 'nobody' is not found"),
        ("GET", "/v2/models/nobody/ready", None, 400, "Model version not ready"),
        ("GET", INFER, None, 405, "Method Not Allowed"),
        ("POST", "/v2/models/two", {}, 405, "Method Not Allowed"),
        ("DELETE", "/v2/logging", None, 405, "Method Not Allowed"),
        ("POST", "/v2/repository/index", {"ready": 3}, 400, "Unable to parse 'ready'"),
        ("POST", "/v2/repository/r/models/two/load", {}, 501, "'repository_name' specification"),
        ("POST", "/v2/systemsharedmemory/register", {}, 400, "'region name' is necessary"),
        ("POST", "/v2/systemsharedmemory/region/r/register", {}, 400, "has no 'key' field"),
        ("GET", "/v2/systemsharedmemory/region/r/status", None, 404, "Unable to find system"),
        ("POST", "/v2/logging", {"log_file": "x"}, 501, "log file location can not be updated"),
        ("POST", "/v2/logging", [], 400, "attempt to get members for non-object"),
        ("POST", INFER, b"{", 400, "failed to parse the request JSON buffer"),
        ("POST", INFER, {}, 400, "Unable to parse 'inputs'"),
        ("POST", INFER, question(outputs=[{"name": "z"}]), 400, "unexpected inference output 'z'"),
        ("POST", INFER, question(parameters={"triton_x": 1}), 400, "are reserved for Triton usage"),
    ],
)
def test_refusals_have_codes_and_texts(
    served: Gateway, method: str, path: str, body: Any, code: int, text: str
) -> None:
    told = error_of(ask(served, method, path, body))
    assert told[0] == code
    assert text in told[1]


def test_files_to_load_are_base64(served: Gateway) -> None:
    path = "/v2/repository/models/two/load"
    broken = {"parameters": {"config": "{}", "file:1/model.onnx": "***"}}
    assert error_of(ask(served, "POST", path, broken))[0] == 400
    unknown = {"parameters": {"other": base64.b64encode(b"x").decode()}}
    assert error_of(ask(served, "POST", path, unknown)) == (
        400,
        "unrecognized load parameter 'other'.",
    )
