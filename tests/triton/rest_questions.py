"""What is asked by plain HTTP. What Triton says of each: rest_answers.json."""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tests.triton.server import Endpoint


class Asked(NamedTuple):
    """A request; its body is JSON where it is not bytes."""

    path: str
    body: Any = None
    headers: Mapping[str, str] = {}
    method: str = ""


class Answered(NamedTuple):
    """A response; its headers by their names in lower case."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Return what the body says; an empty one says nothing."""
        return json.loads(self.body) if self.body else None


def http_ask(endpoint: Endpoint, asked: Asked) -> Answered:
    """Ask over a connection of its own."""
    raw = asked.body is None or isinstance(asked.body, bytes)
    body = asked.body if raw else json.dumps(asked.body).encode()
    method = asked.method or ("GET" if asked.body is None else "POST")
    connection = http.client.HTTPConnection(endpoint.http, timeout=20)
    try:
        connection.request(method, asked.path, body, dict(asked.headers))
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, headers, response.read())
    finally:
        connection.close()


def with_binary(path: str, document: dict[str, Any], contents: bytes, **headers: str) -> Asked:
    """Return a request of the binary tensor data extension."""
    described = json.dumps(document).encode()
    length = {"Inference-Header-Content-Length": str(len(described))}
    return Asked(path, described + contents, {**length, **headers})


INFER = "/v2/models/identity_FP32/infer"
ROW = np.array([1, 2, 3], np.float32).tobytes()
X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
BINARY_X = {**X, "parameters": {"binary_data_size": 12}}
del BINARY_X["data"]
GOOD = {"inputs": [X]}
BINARY = {"inputs": [BINARY_X]}
BINARY_Y = [{"name": "y", "parameters": {"binary_data": True}}]
LENGTH = "Inference-Header-Content-Length"


def x(**changes: Any) -> dict[str, Any]:
    """Return a request whose input differs from the good one; None leaves a field out."""
    tensor = {name: value for name, value in {**X, **changes}.items() if value is not None}
    return {"inputs": [tensor]}


def given(**parameters: Any) -> dict[str, Any]:
    return {**GOOD, "parameters": parameters}


def texts(*data: Any) -> Asked:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 3], "data": data}
    return Asked("/v2/models/identity_BYTES/infer", {"inputs": [tensor]})


def every(datatype: str, *data: Any) -> Asked:
    """Ask `every` for one output, with these data as its input and zeros as the others."""
    tensors, contents = [], b""
    for each, zero in ZEROS.items():
        tensor: dict[str, Any] = {"name": f"x_{each}", "datatype": each, "shape": [1, 3]}
        if each == "FP16":
            tensor["parameters"] = {"binary_data_size": 6}
            contents = bytes(6)
        else:
            tensor["data"] = data if each == datatype else [zero] * 3
        tensors.append(tensor)
    document = {"inputs": tensors, "outputs": [{"name": f"y_{datatype}"}]}
    return with_binary("/v2/models/every/infer", document, contents)


ZEROS = {
    "BOOL": False,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"), 0),
    "FP16": 0,
    **dict.fromkeys(("FP32", "FP64"), 0.0),
    "BYTES": "",
}


def classified(classes: Any, **more: Any) -> Asked:
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1, 2, 3, 9, 8, 7]}
    wish = {"name": "y", "parameters": {"classification": classes, **more}}
    return Asked("/v2/models/labelled/infer", {"inputs": [tensor], "outputs": [wish]})


HALVES = {"name": "x", "datatype": "FP16", "shape": [1, 3], "parameters": {"binary_data_size": 6}}
HALF = "/v2/models/identity_FP16/infer"
BYTES_ROW = b"".join(struct.pack("<I", len(each)) + each for each in (b"a", b"", b"cc"))
BYTES_X: dict[str, Any] = {"name": "x", "datatype": "BYTES", "shape": [1, 3]}
BYTES_X["parameters"] = {"binary_data_size": len(BYTES_ROW)}
_BODY = json.dumps(GOOD).encode()

REST: dict[str, Asked] = {
    # routes
    "live": Asked("/v2/health/live"),
    "model ready": Asked("/v2/models/two/ready"),
    "version ready": Asked("/v2/models/versions/versions/1/ready"),
    "unknown model ready": Asked("/v2/models/nobody/ready"),
    "unknown version ready": Asked("/v2/models/versions/versions/7/ready"),
    "metadata": Asked("/v2/models/two"),
    "metadata of a version": Asked("/v2/models/versions/versions/3"),
    "metadata of an unknown version": Asked("/v2/models/two/versions/9"),
    "metadata of an unknown model": Asked("/v2/models/nobody"),
    "configuration of an unknown model": Asked("/v2/models/nobody/config"),
    "statistics of an unknown model": Asked("/v2/models/nobody/stats"),
    "statistics of an unknown version": Asked("/v2/models/two/versions/9/stats"),
    "version that is no number in the path": Asked("/v2/models/two/versions/x"),
    "unknown route": Asked("/v2/models/two/foo"),
    "no route": Asked("/v2/foo"),
    "slash at the end": Asked("/v2/models/two/"),
    "GET of infer": Asked(INFER),
    "PUT of infer": Asked(INFER, GOOD, method="PUT"),
    "POST of metadata": Asked("/v2/models/two", b""),
    "DELETE of a model": Asked("/v2/models/two", method="DELETE"),
    # infer
    "good": Asked(INFER, GOOD),
    "good with a version": Asked("/v2/models/identity_FP32/versions/1/infer", GOOD),
    "good with a query": Asked(INFER + "?a=b", GOOD),
    "content type of a text": Asked(INFER, GOOD, {"Content-Type": "text/plain"}),
    "unknown fields": Asked(INFER, {**GOOD, "foo": [1]}),
    "id and parameters": Asked(INFER, {"id": "q7", **given(foo=1, bar="s", baz=True, qux=1.5)}),
    "id that is a number": Asked(INFER, {"id": 7, **GOOD}),
    "error with an id": Asked(INFER, {"id": "q7", **x(shape=[1, 4], data=[1] * 4)}),
    "nested data": Asked(INFER, x(data=[[1, 2, 3]])),
    "data nested otherwise": Asked(INFER, x(data=[[1, 2], 3])),
    "data too few": Asked(INFER, x(data=[1, 2])),
    "data too many": Asked(INFER, x(data=[1, 2, 3, 4])),
    "data empty": Asked(INFER, x(data=[])),
    "data that is no array": Asked(INFER, x(data="abc")),
    "data that is a number": Asked(INFER, x(data=5)),
    "text among numbers": Asked(INFER, x(data=[1, "a", 3])),
    "truth among numbers": Asked(INFER, x(data=[True, 2, 3])),
    "null among numbers": Asked(INFER, x(data=[None, 2, 3])),
    "no data at all": Asked(INFER, x(data=None)),
    "not a number": Asked(INFER, json.dumps(x(data=[float("nan"), 1, 2])).encode()),
    "infinities": Asked(INFER, json.dumps(x(data=[float("inf"), -float("inf"), 1e39])).encode()),
    "shape missing": Asked(INFER, x(shape=None)),
    "shape that is a number": Asked(INFER, x(shape=3)),
    "shape of texts": Asked(INFER, x(shape=["1", 3])),
    "shape of fractions": Asked(INFER, x(shape=[1.5, 3])),
    "shape that is negative": Asked(INFER, x(shape=[-1, 3])),
    "shape that does not fit": Asked(INFER, x(shape=[1, 4], data=[1, 2, 3, 4])),
    "name missing": Asked(INFER, x(name=None)),
    "name that is a number": Asked(INFER, x(name=3)),
    "name unknown": Asked(INFER, x(name="z")),
    "datatype missing": Asked(INFER, x(datatype=None)),
    "datatype unknown": Asked(INFER, x(datatype="FP31")),
    "datatype wrong": Asked(INFER, x(datatype="INT32")),
    "inputs empty": Asked(INFER, {"inputs": []}),
    "inputs missing": Asked(INFER, {}),
    "inputs that are no array": Asked(INFER, {"inputs": 3}),
    "input that is a number": Asked(INFER, {"inputs": [3]}),
    "input named twice": Asked(INFER, {"inputs": [X, X]}),
    "body that is an array": Asked(INFER, []),
    "body that is no JSON": Asked(INFER, b"hello"),
    "body that is cut": Asked(INFER, b"{"),
    "body with a tail": Asked(INFER, _BODY + b" tail"),
    "body that is no text": Asked(INFER, b"\xff\xfe"),
    "outputs empty": Asked(INFER, {**GOOD, "outputs": []}),
    "outputs that are no array": Asked(INFER, {**GOOD, "outputs": {"name": "y"}}),
    "output unknown": Asked(INFER, {**GOOD, "outputs": [{"name": "z"}]}),
    "output without a name": Asked(INFER, {**GOOD, "outputs": [{}]}),
    "output named twice": Asked(INFER, {**GOOD, "outputs": [{"name": "y"}] * 2}),
    "parameters that are a number": Asked(INFER, {**GOOD, "parameters": 3}),
    "parameter of null": Asked(INFER, given(foo=None)),
    "parameter of an array": Asked(INFER, given(foo=[1])),
    "parameter that is reserved": Asked(INFER, given(triton_x=1)),
    "empty final response wanted": Asked(INFER, given(triton_enable_empty_final_response=True)),
    "priority that is a text": Asked(INFER, given(priority="1")),
    "priority that is negative": Asked(INFER, given(priority=-1)),
    "timeout that is a text": Asked(INFER, given(timeout="1")),
    "sequence of a truth": Asked(INFER, given(sequence_id=True)),
    "sequence start that is a number": Asked(INFER, given(sequence_start=3)),
    "parameters of an input": Asked(INFER, x(parameters={"foo": 3})),
    "model unknown": Asked("/v2/models/nobody/infer", GOOD),
    "model unknown, body cut": Asked("/v2/models/nobody/infer", b"{"),
    "version unknown": Asked("/v2/models/identity_FP32/versions/7/infer", GOOD),
    "model decoupled": Asked("/v2/models/count/infer", GOOD),
    # every datatype
    **{
        f"{datatype} as JSON": every(datatype, *data)
        for datatype, data in {
            "BOOL": (True, False, True),
            "UINT8": (0, 255, 7),
            "UINT16": (0, 65535, 7),
            "UINT32": (0, 2**32 - 1, 7),
            "UINT64": (0, 2**64 - 1, 7),
            "INT8": (-128, 127, 7),
            "INT16": (-(2**15), 2**15 - 1, 7),
            "INT32": (-(2**31), 2**31 - 1, 7),
            "INT64": (-(2**63), 2**63 - 1, 7),
            "FP32": (0.1, 1e-45, -3),
            "FP64": (0.1, 1e300, -3),
            "BYTES": ("a", "", 'ä\n"\0'),
        }.items()
    },
    "UINT8 too large": every("UINT8", 256, 0, 0),
    "UINT8 negative": every("UINT8", -1, 0, 0),
    "INT8 too large": every("INT8", 200, 0, 0),
    "INT64 too large": every("INT64", 2**63, 0, 0),
    "INT32 with a fraction": every("INT32", 1.5, 0, 0),
    "INT32 with a point": every("INT32", 1.0, 0, 0),
    "BOOL of numbers": every("BOOL", 1, 0, 1),
    "texts that are numbers": texts(1, 2, 3),
    "texts too few": texts("a", "b"),
    "FP16 as JSON": Asked(HALF, {"inputs": [{**X, "datatype": "FP16"}]}),
    "FP16 wanted as JSON": with_binary(HALF, {"inputs": [HALVES]}, bytes(6)),
    "BF16 as JSON": Asked(INFER, x(datatype="BF16")),
    # binary tensor data
    "binary in": with_binary(INFER, BINARY, ROW),
    "binary in too short": with_binary(INFER, BINARY, ROW[:8]),
    "binary in too long": with_binary(INFER, BINARY, ROW + b"12"),
    "binary size wrong": with_binary(
        INFER, {"inputs": [{**BINARY_X, "parameters": {"binary_data_size": 8}}]}, ROW[:8]
    ),
    "binary size negative": with_binary(
        INFER, {"inputs": [{**BINARY_X, "parameters": {"binary_data_size": -1}}]}, ROW
    ),
    "binary size that is a text": with_binary(
        INFER, {"inputs": [{**BINARY_X, "parameters": {"binary_data_size": "12"}}]}, ROW
    ),
    "binary and data": with_binary(INFER, {"inputs": [{**BINARY_X, "data": [1, 2, 3]}]}, ROW),
    "binary without a length": Asked(INFER, with_binary(INFER, BINARY, ROW).body),
    "binary length out of range": with_binary(INFER, BINARY, ROW, **{LENGTH: "1000000"}),
    "binary length negative": with_binary(INFER, BINARY, ROW, **{LENGTH: "-3"}),
    "binary wanted with a number": Asked(
        INFER, {**GOOD, "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}
    ),
    "all binary wanted with a number": Asked(INFER, given(binary_data_output=1)),
    "binary texts": with_binary(
        "/v2/models/identity_BYTES/infer", {"inputs": [BYTES_X]}, BYTES_ROW
    ),
    "raw body too short": Asked(INFER, ROW[:8], {LENGTH: "0"}),
    "raw body for two inputs": Asked("/v2/models/two/infer", ROW, {LENGTH: "0"}),
    "empty body": Asked(INFER, b""),
    # compressed
    "gzip in": Asked(INFER, gzip.compress(_BODY), {"Content-Encoding": "gzip"}),
    "deflate in": Asked(INFER, zlib.compress(_BODY), {"Content-Encoding": "deflate"}),
    "identity in": Asked(INFER, _BODY, {"Content-Encoding": "identity"}),
    "brotli in": Asked(INFER, _BODY, {"Content-Encoding": "br"}),
    "gzip announced, not sent": Asked(INFER, _BODY, {"Content-Encoding": "gzip"}),
    "gzip cut": Asked(INFER, gzip.compress(_BODY)[:-9], {"Content-Encoding": "gzip"}),
    # classes
    "classes": classified(2),
    "more classes than there are": classified(9),
    "no classes": classified(0),
    "classes negative": classified(-1),
    "classes as a text": classified("2"),
}
