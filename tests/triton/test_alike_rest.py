"""Plain HTTP: Tidegate's REST interface is Triton's, code, headers and JSON."""

from __future__ import annotations

import gzip
import http.client
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.triton.alike import BEFORE_TRITON, COMPATIBILITY, GATEWAYS, TRITON
from tests.triton.rest_differences import REST_DIFFERENCES, by_gateway
from tests.triton.rest_questions import (
    BINARY,
    BINARY_Y,
    BYTES_ROW,
    BYTES_X,
    GOOD,
    HALF,
    HALVES,
    INFER,
    LENGTH,
    REST,
    ROW,
    Answered,
    Asked,
    given,
    http_ask,
    with_binary,
)
from tests.triton.server import Endpoint

# Triton's own answer: a code and what the body says
REST_ANSWERS: dict[str, Any] = json.loads(Path(__file__).with_name("rest_answers.json").read_text())
BINARY_OUTPUTS: dict[str, Any] = {"model_name": "identity_FP32", "model_version": "1"}
BINARY_OUTPUTS["outputs"] = [
    {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
]


@pytest.mark.parametrize("question", REST)
def test_request_is_answered_with_tritons_code_and_json(
    question: str, server: str, endpoint: Endpoint
) -> None:
    expected = REST_ANSWERS[question]
    if server in GATEWAYS:
        expected = by_gateway(question, expected, before_triton=server == BEFORE_TRITON)
    answered = http_ask(endpoint, REST[question])
    # as texts, because not a number is not equal to itself
    assert json.dumps([answered.code, answered.json]) == json.dumps(expected)


def test_every_difference_is_one_and_documented() -> None:
    assert REST.keys() == REST_ANSWERS.keys()
    for question, answer in REST_DIFFERENCES.items():
        assert answer != REST_ANSWERS[question]
        assert f"| {question} |" in COMPATIBILITY


def binary_answer(answered: Answered) -> tuple[Any, bytes]:
    assert answered.code == 200
    assert answered.headers["content-type"] == "application/octet-stream"
    length = int(answered.headers[LENGTH.lower()])
    return json.loads(answered.body[:length]), answered.body[length:]


@pytest.mark.parametrize(
    "asked",
    [
        with_binary(INFER, {**BINARY, "outputs": BINARY_Y}, ROW),
        with_binary(INFER, {**BINARY, "parameters": {"binary_data_output": True}}, ROW),
        Asked(INFER, {**GOOD, "outputs": BINARY_Y}),
        Asked(INFER, given(binary_data_output=True)),
        Asked(INFER, ROW, {LENGTH: "0"}),
    ],
    ids=["both", "all outputs", "output alone", "all outputs alone", "raw body"],
)
def test_outputs_are_binary_where_that_is_wanted(asked: Asked, endpoint: Endpoint) -> None:
    assert binary_answer(http_ask(endpoint, asked)) == (BINARY_OUTPUTS, ROW)


@pytest.mark.parametrize(
    "outputs", [[{"name": "y"}], [{"name": "y", "parameters": {"binary_data": False}}]]
)
def test_output_asked_for_by_name_says_itself_whether_it_is_binary(
    outputs: list[Any], endpoint: Endpoint
) -> None:
    document = {**given(binary_data_output=True), "outputs": outputs}
    answered = http_ask(endpoint, Asked(INFER, document))
    assert answered.headers["content-type"] == "application/json"
    assert answered.json["outputs"][0]["data"] == [1.0, 2.0, 3.0]


def test_halves_and_texts_travel_binary(endpoint: Endpoint) -> None:
    halves = np.array([1, 2, 3], np.float16).tobytes()
    for path, tensor, contents in (
        (HALF, HALVES, halves),
        ("/v2/models/identity_BYTES/infer", BYTES_X, BYTES_ROW),
    ):
        document = {"inputs": [tensor], "outputs": BINARY_Y}
        _, sent = binary_answer(http_ask(endpoint, with_binary(path, document, contents)))
        assert sent == contents


def test_json_and_binary_outputs_share_an_answer(endpoint: Endpoint) -> None:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": [1, 2], "data": [1, 2]} for name in ("a", "b")
    ]
    outputs = [{"name": "sum", "parameters": {"binary_data": True}}, {"name": "product"}]
    asked = Asked("/v2/models/two/infer", {"inputs": inputs, "outputs": outputs})
    document, contents = binary_answer(http_ask(endpoint, asked))
    by_name = {output["name"]: output for output in document["outputs"]}
    assert by_name["sum"]["parameters"] == {"binary_data_size": 8}
    assert by_name["product"]["data"] == [1.0, 4.0]
    assert contents == np.array([2, 4], np.float32).tobytes()


WIDE = {"name": "x", "datatype": "FP32", "shape": [4, 300], "data": [1] * 1200}


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0", None),
        ("br", None),
        ("identity", None),
    ],
)
def test_answers_are_compressed_as_the_client_accepts(
    accepted: str, coding: str | None, endpoint: Endpoint
) -> None:
    undo: dict[str | None, Callable[[bytes], bytes]] = {
        "gzip": gzip.decompress,
        "deflate": zlib.decompress,
        None: bytes,
    }
    asked = Asked("/v2/models/any_width/infer", {"inputs": [WIDE]}, {"Accept-Encoding": accepted})
    answered = http_ask(endpoint, asked)
    assert answered.headers.get("content-encoding") == coding
    assert json.loads(undo[coding](answered.body))["outputs"][0]["data"] == [1.0] * 1200


def test_binary_request_and_answer_compress_as_wholes(endpoint: Endpoint) -> None:
    contents = np.ones((4, 300), np.float32).tobytes()
    tensor = {**WIDE, "parameters": {"binary_data_size": len(contents)}}
    del tensor["data"]
    plain = with_binary(
        "/v2/models/any_width/infer", {"inputs": [tensor], "outputs": BINARY_Y}, contents
    )
    headers = {**plain.headers, "Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    answered = http_ask(endpoint, plain._replace(body=gzip.compress(plain.body), headers=headers))
    assert answered.headers["content-encoding"] == "gzip"
    _, sent = binary_answer(answered._replace(body=gzip.decompress(answered.body)))
    assert sent == contents


def test_errors_are_json_and_never_compressed(server: str, endpoint: Endpoint) -> None:
    answered = http_ask(endpoint, Asked(INFER, b"{", {"Accept-Encoding": "gzip"}))
    assert answered.code == (500 if server == TRITON else 400)
    assert "content-encoding" not in answered.headers
    assert answered.json["error"].startswith("failed to parse the request JSON buffer: ")


def test_configuration_names_every_field_as_the_protocol_does(endpoint: Endpoint) -> None:
    config = http_ask(endpoint, Asked("/v2/models/declared/config")).json
    assert config["name"] == "declared"
    assert config["max_batch_size"] == 4
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [3],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    for field in ("batch_input", "batch_output", "model_warmup"):
        assert config[field] == []
    for field in ("parameters", "metric_tags", "cc_model_filenames"):
        assert config[field] == {}


def test_body_may_come_in_chunks(endpoint: Endpoint) -> None:
    body = json.dumps(GOOD).encode()
    connection = http.client.HTTPConnection(endpoint.http, timeout=20)
    try:
        for _ in range(2):  # the connection is kept
            connection.request("POST", INFER, iter([body[:10], body[10:]]), encode_chunked=True)
            answered = json.loads(connection.getresponse().read())
            assert answered["outputs"][0]["data"] == [1.0, 2.0, 3.0]
    finally:
        connection.close()


def test_server_describes_itself(server: str, endpoint: Endpoint) -> None:
    described = http_ask(endpoint, Asked("/v2")).json
    assert described.keys() == {"name", "version", "extensions"}
    assert described["name"] == ("triton" if server == TRITON else "tidegate")
    assert {"binary_tensor_data", "statistics", "trace", "logging"} <= set(described["extensions"])


def test_server_is_ready_over_http(server: str, endpoint: Endpoint) -> None:
    answered = http_ask(endpoint, Asked("/v2/health/ready"))
    # a Triton in which one model could not be loaded is not ready any more: another test does that
    assert answered.body == b""
    assert answered.code == 200 or server == TRITON
