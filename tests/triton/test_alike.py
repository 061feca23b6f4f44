"""Tidegate answers as Triton does, with its own engine and with a Triton server behind it.

Each law runs three times: against NVIDIA's own tritonserver, which shows that what is expected here
is what Triton says; against a gateway with its embedded engine; against a gateway in front of that
tritonserver. Where they are meant to differ, alike.py says so, and docs/compatibility.md why.
"""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import triton_to_np_dtype

from tests.triton.alike import (
    ANSWERS,
    BEFORE_TRITON,
    BEFORE_TRITON_DIFFERENCES,
    COMPATIBILITY,
    CONFIG_DIFFERENCES,
    CONFIGS,
    DATATYPES,
    DIFFERENCES,
    FITTING,
    GATEWAYS,
    METADATA,
    SERVERS_OWN,
    TRITON,
)
from tests.triton.questions import QUESTIONS, ask, floats, said, tensor


@pytest.mark.parametrize("question", QUESTIONS)
def test_request_with_a_fault_gets_tritons_code_and_text(
    question: str, server: str, stub: Any
) -> None:
    expected = ANSWERS[question]
    if server in GATEWAYS:
        expected = DIFFERENCES.get(question, expected)
    if server == BEFORE_TRITON:
        expected = BEFORE_TRITON_DIFFERENCES.get(question, expected)
    assert said(stub.ModelInfer, QUESTIONS[question]) == expected


def test_every_difference_is_one() -> None:
    assert QUESTIONS.keys() == ANSWERS.keys()
    for question, answer in DIFFERENCES.items():
        assert answer != ANSWERS[question]


def sample(datatype: str) -> np.ndarray[Any, Any]:
    if datatype == "BYTES":
        return np.array([[b"tide", b"", "gäte".encode()], [b"a" * 300, b"\0", b"b"]], np.object_)
    return np.array([[0, 1, 0], [1, 1, 100]]).astype(triton_to_np_dtype(datatype))


def test_every_datatype_comes_back_and_outputs_in_the_models_order(
    client: triton.InferenceServerClient,
) -> None:
    inputs = [tensor(f"x_{each}", sample(each), each) for each in DATATYPES]
    answer = client.infer("every", inputs, request_id="17")
    response = answer.get_response()
    assert (response.model_name, response.model_version, response.id) == ("every", "1", "17")
    assert [output.name for output in response.outputs] == [f"y_{each}" for each in DATATYPES]
    for each, output in zip(DATATYPES, response.outputs, strict=True):
        assert (output.datatype, list(output.shape)) == (each, [2, 3])
        np.testing.assert_array_equal(answer.as_numpy(output.name), sample(each))


def test_outputs_asked_for_are_those_sent(
    server: str, client: triton.InferenceServerClient
) -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[3, 4]], np.float32)
    inputs = [tensor("b", b), tensor("a", a)]
    for names in (["sum"], ["product"], ["product", "sum"]):
        outputs = [triton.InferRequestedOutput(name) for name in names]
        answer = client.infer("two", inputs, outputs=outputs)
        sent = [output.name for output in answer.get_response().outputs]
        assert sent == (sorted(names, reverse=True) if server == TRITON else names)
        if "sum" in names:
            np.testing.assert_array_equal(answer.as_numpy("sum"), a + b)
        if "product" in names:
            np.testing.assert_array_equal(answer.as_numpy("product"), a * b)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ("any_width", (1, 1)),
        ("any_width", (3, 70)),
        ("unbatched", (2, 3)),
        ("scalars", (4, 1)),
        ("declared", (4, 3)),
    ],
)
def test_shapes_that_fit_come_back(
    model: str, shape: tuple[int, ...], client: triton.InferenceServerClient
) -> None:
    data = np.random.default_rng(1).random(shape, np.float32)
    np.testing.assert_array_equal(client.infer(model, [tensor("x", data)]).as_numpy("y"), data)


def test_version_asked_for_answers_and_without_one_the_latest(
    client: triton.InferenceServerClient,
) -> None:
    x = [tensor("x", np.zeros((1, 3), np.float32))]
    for asked, answers in (("1", "1"), ("3", "3"), ("", "3")):
        response = client.infer("versions", x, model_version=asked).get_response()
        assert response.model_version == answers


def test_typed_contents_are_understood(stub: Any) -> None:
    request = ask("two")
    for name in "ab":
        request.inputs.add(name=name, datatype="FP32", shape=(1, 2)).contents.fp32_contents.extend(
            [1.5, 2.5]
        )
    response = stub.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["sum", "product"]
    np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[0], "f4"), [3, 5])
    assert not response.outputs[0].HasField("contents")


MODELS = ("every", "two", "any_width", "unbatched", "scalars", "declared", "bounded", "versions")


def test_server_and_models_are_ready(server: str, client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    # a Triton in which one model could not be loaded is not ready any more: another test does that
    assert client.is_server_ready() or server == TRITON
    for model in MODELS:
        assert client.is_model_ready(model)
    assert client.is_model_ready("versions", "1")


@pytest.mark.parametrize("model", METADATA)
def test_metadata_describes_the_model(model: str, client: triton.InferenceServerClient) -> None:
    assert MessageToDict(client.get_model_metadata(model)) == METADATA[model]


def test_metadata_of_a_version_names_that_one(client: triton.InferenceServerClient) -> None:
    assert client.get_model_metadata("versions", "3").versions == ["3"]


@pytest.mark.parametrize("model", CONFIGS)
def test_configuration_is_completed(
    model: str, server: str, client: triton.InferenceServerClient
) -> None:
    common = {
        "name": model,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "defaultModelFilename": "model.onnx",
        "versionPolicy": {"latest": {"numVersions": 1}},
    }
    own = {
        field: value(model)
        for field, value in SERVERS_OWN.items()
        if field not in CONFIG_DIFFERENCES[server]
    }
    client.infer(model, [tensor(name, data) for name, data in FITTING[model].items()])
    config = MessageToDict(client.get_model_config(model).config)
    for field in CONFIG_DIFFERENCES[server]:
        config.pop(field, None)
    assert config == {**common, **own, **CONFIGS[model]}


@pytest.mark.parametrize("rpc", ["ModelMetadata", "ModelConfig"])
def test_unknown_models_and_versions_are_described_to_nobody(rpc: str, stub: Any) -> None:
    request = {"ModelMetadata": pb.ModelMetadataRequest, "ModelConfig": pb.ModelConfigRequest}[rpc]
    call = getattr(stub, rpc)
    assert said(call, request(name="nobody")) == (
        "NOT_FOUND Request for unknown model: 'nobody' is not found"
    )
    assert said(call, request(name="two", version="9")) == (
        "NOT_FOUND Request for unknown model: 'two' version 9 is not found"
    )
    assert said(call, request(name="two", version="x")) == (
        "INVALID_ARGUMENT failed to get model version from specified version string 'x' (details: "
        "stol), version should be an integral value > 0"
    )


def test_loading_what_is_not_there_fails_as_in_triton(stub: Any) -> None:
    assert said(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="nobody")) == (
        "INTERNAL failed to load 'nobody', failed to poll from model repository"
    )


UNKNOWN_MODEL = "NOT_FOUND Request for unknown model: 'nobody' is not found"


# The rows of docs/compatibility.md that are not about ModelInfer, in its words.
@pytest.mark.parametrize(
    ("what", "rpc", "request_", "by_triton", "by_gateway"),
    [
        (
            "ModelReady of an unknown model",
            "ModelReady",
            pb.ModelReadyRequest(name="nobody"),
            "OK",
            UNKNOWN_MODEL,
        ),
        (
            "unload of an unknown model",
            "RepositoryModelUnload",
            pb.RepositoryModelUnloadRequest(model_name="nobody"),
            "OK",
            UNKNOWN_MODEL,
        ),
        (
            "load that fails",
            "RepositoryModelLoad",
            pb.RepositoryModelLoadRequest(model_name="truncated"),
            "INVALID_ARGUMENT load failed for model 'truncated': version 1 is at UNAVAILABLE state",
            "INTERNAL failed to load 'truncated', ",
        ),
        (
            "inference with a model that cannot load",
            "ModelInfer",
            ask("truncated", floats(1, 3)),
            "NOT_FOUND Request for unknown model: 'truncated' ",
            "UNAVAILABLE model 'truncated' ",
        ),
    ],
)
def test_differences_beside_inference(
    what: str, rpc: str, request_: Any, by_triton: str, by_gateway: str, server: str, stub: Any
) -> None:
    expected = by_triton if server == TRITON else by_gateway
    assert said(getattr(stub, rpc), request_).startswith(expected)
    assert f"| {what} |" in COMPATIBILITY


def test_every_difference_is_documented() -> None:
    for question in (*DIFFERENCES, *BEFORE_TRITON_DIFFERENCES):
        assert f"| {question} |" in COMPATIBILITY


def test_queue_policy_refuses_and_expires_with_tritons_texts(
    client: triton.InferenceServerClient,
) -> None:
    client.infer("bounded", [tensor("x", np.zeros((4, 3), np.float32))])  # loaded; a full batch
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    x = [tensor("x", np.zeros((1, 3), np.float32))]
    for _ in range(2):  # the first one waits for more, the second finds the queue full
        client.async_infer("bounded", x, lambda result, error: answers.put(error))
    full, expired = answers.get(timeout=10), answers.get(timeout=10)
    assert full.status() == expired.status() == "StatusCode.UNAVAILABLE"
    assert full.message() == "[request id: <id_unknown>] Exceeds maximum queue size"
    assert expired.message() == "Request timeout expired"
