"""Whatever an HTTP client sends, it gets an HTTP answer, and one that says what was wrong."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest

from tests.fuzz.messages import EDGES, SEED, damaged, sized
from tests.gateway.process import Gateway

pytestmark = pytest.mark.usefixtures("nothing_is_lost")
LIMIT_S = 10.0
CODES = {200, 400, 404, 405, 408, 409, 413, 415, 429, 500, 501, 503}
JSON_SIZE = "Inference-Header-Content-Length"

INFER: dict[str, Any] = {
    "id": "7",
    "parameters": {"priority": 0, "binary_data_output": False},
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}],
    "outputs": [{"name": "y", "parameters": {"classification": 2}}],
}
BINARY: dict[str, Any] = {
    "inputs": [
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    ],
    "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
}
NO_MODEL = base64.b64encode(b"no model").decode()
LOAD = {"parameters": {"config": '{"max_batch_size": 2}', "file:1/model.onnx": NO_MODEL}}
OTHERS: list[tuple[str, Any]] = [
    ("repository/index", {"ready": True}),
    ("repository/models/victim/load", LOAD),
    ("repository/models/victim/unload", {"parameters": {"unload_dependents": True}}),
    ("systemsharedmemory/region/r/register", {"key": "/nothing", "offset": 0, "byte_size": 64}),
    ("systemsharedmemory/region/r/unregister", {}),
    ("cudasharedmemory/region/r/register", {"raw_handle": {"b64": "AAAA"}, "byte_size": 64}),
    ("trace/setting", {"trace_rate": "1", "trace_level": ["OFF"]}),
    ("logging", {"log_verbose_level": 0}),
]
VALUES: list[Any] = [None, True, "", "x", "\ud800", [], [[]], {}, 0.5, 1e308, float("nan"), *EDGES]


@pytest.fixture(scope="module")
def connection(fuzzed: Gateway) -> Iterator[http.client.HTTPConnection]:
    host = fuzzed.http.removeprefix("http://")
    opened = http.client.HTTPConnection(host, timeout=LIMIT_S)
    # Answered once, it has been accepted: before, the gateway has no descriptor of it to count.
    opened.request("GET", "/v2/health/live")
    opened.getresponse().read()
    yield opened
    opened.close()


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    body: bytes,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> int:
    """Return the status of an answer; an error says what it is."""
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    assert response.status in CODES, (path, response.status, content, body)
    if response.status != 200:
        assert json.loads(content)["error"], (path, body)
    return response.status


def changed(document: Any, draw: random.Random) -> Any:
    """Return a copy of a JSON document with a value that is another, gone, or one too many."""
    if draw.random() < 0.15 or not document or not isinstance(document, (dict, list)):
        return draw.choice(VALUES)
    copy: Any = document.copy()
    keys = list(copy) if isinstance(copy, dict) else range(len(copy))
    key: Any = draw.choice(keys)
    match draw.randrange(8):
        case 0:
            del copy[key]
        case 1 if isinstance(copy, dict):
            copy[draw.choice(["", "x", "name", "shared_memory_region", "sequence_id"])] = 1
        case 1:
            copy.append(copy[key])
        case _:
            copy[key] = changed(copy[key], draw)
    return copy


def bodies(document: Any, tail: bytes = b"") -> Iterator[bytes]:
    """Yield a document with faults of content and of form, by turns."""
    draw = random.Random(SEED)
    for broken in damaged([json.dumps(document).encode() + tail]):
        yield json.dumps(changed(document, draw)).encode() + tail
        yield broken


def test_document_with_faults_is_answered(connection: http.client.HTTPConnection) -> None:
    told = Counter(
        ask(connection, "/v2/models/echo/infer", body)
        for body in islice(bodies(INFER), sized(600, 5_000))
    )
    assert told[200] > 10
    assert told[400] > 200


def test_binary_contents_with_faults_are_answered(connection: http.client.HTTPConnection) -> None:
    draw = random.Random(SEED)
    right = len(json.dumps(BINARY))
    for body in islice(bodies(BINARY, bytes(12)), sized(300, 2_000)):
        sizes = [right, len(body) - 12, len(body), "", "x", "²", *EDGES]
        size = str(draw.choice(sizes)).encode().decode("latin-1")
        ask(connection, "/v2/models/echo/versions/1/infer", body, {JSON_SIZE: size})


def test_compressed_contents_with_faults_are_answered(
    connection: http.client.HTTPConnection,
) -> None:
    bomb = gzip.compress(bytes(50_000_000))  # within the bound, until it is unpacked
    assert ask(connection, "/v2/models/echo/infer", bomb, {"Content-Encoding": "gzip"}) != 200
    draw = random.Random(SEED)
    for body in islice(damaged([gzip.compress(json.dumps(INFER).encode())]), sized(200, 1_000)):
        coding = draw.choice(["gzip", "deflate", "gzip", "br", "", "gzip, gzip"])
        ask(connection, "/v2/models/echo/infer", body, {"Content-Encoding": coding})


@pytest.mark.parametrize(("path", "document"), OTHERS, ids=[path for path, _ in OTHERS])
def test_every_other_document_with_faults_is_answered(
    path: str, document: Any, connection: http.client.HTTPConnection
) -> None:
    for body in islice(bodies(document), sized(40, 250)):
        ask(connection, f"/v2/{path}", body)


def test_paths_that_lead_nowhere_are_answered(connection: http.client.HTTPConnection) -> None:
    draw = random.Random(SEED)
    words = ["v2", "models", "echo", "versions", "1", "infer", "ready", "stats", "config", ""]
    words += ["%00", "%2e%2e", "..", "%ff", "repository", "a" * 3000, "9" * 400, "%F0%9F%8C%8A"]
    for _ in range(sized(300, 2_000)):
        path = "/" + "/".join(draw.choices(words, k=draw.randrange(1, 7)))
        method = draw.choice(["GET", "POST", "PUT", "DELETE", "HEAD"])
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        assert response.status in CODES, (method, path)


def test_answer_after_all_that_is_right(connection: http.client.HTTPConnection) -> None:
    plain = {name: INFER[name] for name in ("id", "inputs")}
    connection.request("POST", "/v2/models/echo/infer", json.dumps(plain))
    answer = json.loads(connection.getresponse().read())
    assert answer["id"] == "7"
    np.testing.assert_array_equal(answer["outputs"][0]["data"], [1, 2, 3])
