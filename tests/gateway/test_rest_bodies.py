"""Bodies of REST requests and answers. No server."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gateway import errors
from gateway.core import DTYPES, InferResponse, Tensor
from gateway.errors import InvalidRequest, RequestTooLarge, TidegateError
from gateway.transport import codec
from gateway.transport.delivery import NOTHING_PLACED, asked_for
from gateway.transport.rest import bodies, infer_answer, infer_body
from gateway.transport.shared_memory import SharedMemory
from gateway.transport.status import HTTP_CODE
from tests.gateway.fakes import spec

NO_REGIONS = SharedMemory(allowed=False)
IN_JSON = [name for name in DTYPES if name not in ("FP16", "BF16", "BYTES")]
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def asked(document: Any, contents: bytes = b"") -> infer_body.Question:
    text = json.dumps(document).encode()
    return infer_body.read("m", "", text + contents, len(text))


def tensors(question: infer_body.Question) -> list[Tensor]:
    return codec.decode(question.message, 0.0, NO_REGIONS).inputs


def one_input(datatype: str, shape: tuple[int, ...], **given: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, **given}]}


def refusal(document: Any, contents: bytes = b"") -> str:
    with pytest.raises(InvalidRequest) as caught:
        tensors(asked(document, contents))
    return str(caught.value)


@given(st.data(), st.sampled_from(IN_JSON), st.booleans())
def test_what_json_says_arrives_and_goes_back(data: Any, datatype: str, flat: bool) -> None:
    shapes = hnp.array_shapes(max_dims=3, max_side=3, min_side=0)
    array = data.draw(hnp.arrays(DTYPES[datatype], shapes))
    elements = (array.ravel() if flat else array).tolist()
    question = asked(one_input(datatype, array.shape, data=elements))
    (tensor,) = tensors(question)
    np.testing.assert_array_equal(tensor.data, array)
    body, json_size = infer_answer.write(
        InferResponse("m", 1, "", [tensor]), NOTHING_PLACED, question
    )
    assert json_size is None
    (output,) = json.loads(body)["outputs"]
    back = np.array(output["data"], DTYPES[datatype]).reshape(output["shape"])
    np.testing.assert_array_equal(back, array)


@given(st.data(), st.sampled_from([name for name in DTYPES if name != "BYTES"]))
def test_contents_behind_the_json_arrive_and_go_back(data: Any, datatype: str) -> None:
    shapes = hnp.array_shapes(max_dims=3, max_side=3, min_side=0)
    array = data.draw(hnp.arrays(DTYPES[datatype], shapes))
    raw = array.tobytes()
    document = one_input(datatype, array.shape, parameters={"binary_data_size": len(raw)})
    document["parameters"] = {"binary_data_output": True}
    question = asked(document, raw)
    (tensor,) = tensors(question)
    assert tensor.data.tobytes() == raw
    assert tensor.data.flags.aligned
    body, json_size = infer_answer.write(
        InferResponse("m", 1, "", [tensor]), NOTHING_PLACED, question
    )
    head = json.loads(body[:json_size])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
    assert (body[json_size:] if json_size is not None else b"") == raw


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_strings_arrive_and_go_back(strings: list[str]) -> None:
    question = asked(one_input("BYTES", (len(strings),), data=strings))
    (tensor,) = tensors(question)
    assert [each.decode() for each in tensor.data] == strings
    body, _ = infer_answer.write(InferResponse("m", 1, "", [tensor]), NOTHING_PLACED, question)
    assert json.loads(body)["outputs"][0]["data"] == strings


@given(JSON)
def test_no_document_does_worse_than_being_refused(document: Any) -> None:
    with_inputs = document if isinstance(document, dict) else {"inputs": document}
    with suppress(TidegateError):
        tensors(asked(with_inputs))


@given(st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JSON))
def test_no_input_does_worse_than_being_refused(member: dict[str, Any]) -> None:
    document = one_input("FP32", (1,), data=[1.0])
    document["inputs"][0].update(member)
    document["outputs"] = [member]
    with suppress(TidegateError):
        question = asked(document)
        tensors(question)
        asked_for(question.message.outputs)


@given(st.binary(max_size=40), st.integers(0, 200), st.integers(0, 200))
def test_no_bytes_do_worse_than_being_refused(noise: bytes, at: int, json_size: int) -> None:
    text = json.dumps(one_input("INT8", (3,), parameters={"binary_data_size": 3})).encode()
    body = text[:at] + noise + text[at + len(noise) :] + b"abc"
    with suppress(TidegateError):
        tensors(infer_body.read("m", "", body, min(json_size, len(body))))


def test_nested_however_data_are_taken_in_order() -> None:
    (tensor,) = tensors(asked(one_input("INT32", (2, 2), data=[[[1], 2], 3, [[[4]]]])))
    assert tensor.data.tolist() == [[1, 2], [3, 4]]


def test_json_and_contents_may_be_mixed() -> None:
    document = {
        "inputs": [
            {"name": "a", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}},
            {"name": "b", "datatype": "INT8", "shape": [1], "data": [5]},
            {"name": "c", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}},
        ]
    }
    a, b, c = tensors(asked(document, bytes([1, 2, 3])))
    assert (a.data.tolist(), b.data.tolist(), c.data.tolist()) == ([1, 2], [5], [3])


def test_what_no_json_can_say_is_written_as_triton_writes_it() -> None:
    text = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[3],"data":[NaN,-Infinity,1e300]}]}'
    question = infer_body.read("m", "", text, len(text))
    (tensor,) = tensors(question)
    np.testing.assert_array_equal(tensor.data, np.array([np.nan, -np.inf, np.inf], np.float32))
    body, _ = infer_answer.write(InferResponse("m", 1, "", [tensor]), NOTHING_PLACED, question)
    assert b"[NaN, -Infinity, Infinity]" in body


def test_an_output_is_as_its_own_wish_says_and_others_as_the_request_says() -> None:
    document = one_input("INT8", (1,), data=[1])
    document["parameters"] = {"binary_data_output": True}
    assert asked(document).others_binary
    document["outputs"] = [
        {"name": "y"},
        {"name": "z", "parameters": {"binary_data": True}},
        {"name": "y", "parameters": {"binary_data": True}},
    ]
    assert asked(document).binary == {"y": False, "z": True}


def test_parameters_reach_the_request() -> None:
    document = one_input("INT8", (1,), data=[1])
    document["id"] = "7"
    document["parameters"] = {"priority": 2, "timeout": 9, "sequence_id": "s", "own": 1.5}
    request = codec.decode(asked(document).message, 0.0, NO_REGIONS)
    assert (request.id, request.priority, request.timeout_us) == ("7", 2, 9)
    assert request.sequence is not None
    assert request.sequence.id == "s"
    assert request.parameters == {"own": 1.5}


def test_shared_memory_and_classes_are_asked_for_as_by_grpc() -> None:
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 8}
    document = one_input("INT8", (1,), data=[1])
    document["outputs"] = [
        {"name": "y", "parameters": place},
        {"name": "z", "parameters": {"classification": 3}},
    ]
    y, z = asked_for(asked(document).message.outputs)
    assert (y.region, y.offset, y.size) == ("r", 8, 4)
    assert z.classes == 3


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "But no field is set"),
        ({"data": [1], "parameters": {"binary_data_size": 1}}, "But set 'data' 'binary_data_size'"),
        ({"data": [1, 2]}, "Unable to parse 'data': Shape does not match true shape"),
        ({"data": ["1"]}, "Unable to parse 'data': attempt to access JSON non-signed-integer"),
        ({"data": [True]}, "Unable to parse 'data': attempt to access JSON non-signed-integer"),
        ({"data": [1.0]}, "Unable to parse 'data': attempt to access JSON non-signed-integer"),
        ({"data": [300]}, "input 'x' has a value that INT8 cannot hold"),
        ({"data": 1}, "Unable to parse 'data': attempt to access JSON non-array as array"),
        (
            {"data": [1], "shape": [-1]},
            "Unable to parse 'shape': attempt to access JSON non-unsign",
        ),
        ({"data": [1], "datatype": "FP16"}, "receiving FP16 data via JSON is not supported"),
        ({"data": [1], "datatype": "INT9"}, "invalid datatype for input x"),
        ({"parameters": {"binary_data_size": 1}}, "expecting 1 additional bytes for model 'm'"),
    ],
)
def test_refusals_speak_as_triton_does(given: dict[str, Any], text: str) -> None:
    document = one_input("INT8", (1,))
    document["inputs"][0].update(given)
    assert text in refusal(document)


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    document = one_input("INT8", (1,), data=[1])
    assert refusal(document, b"x") == "unexpected additional input data for model 'm'"


def test_half_precision_and_strings_that_are_not_utf8_need_the_binary_format() -> None:
    question = asked(one_input("INT8", (1,), data=[1]))
    half = Tensor("y", "FP16", np.ones(1, np.float16))
    strings = Tensor("y", "BYTES", np.array([b"\xff"], np.object_))
    for tensor in (half, strings):
        with pytest.raises(InvalidRequest, match="binary data format"):
            infer_answer.write(InferResponse("m", 1, "", [tensor]), NOTHING_PLACED, question)


@pytest.mark.parametrize(
    ("dims", "sent", "shape"), [((3,), 3, [1, 3]), ((-1, 2), 6, [1, 3, 2]), ((-1,), 0, [1, 0])]
)
def test_raw_body_takes_its_shape_from_the_model(
    dims: tuple[int, ...], sent: int, shape: list[int]
) -> None:
    question = infer_body.read_raw(spec(dims=dims), "", struct.pack(f"<{sent}f", *range(sent)))
    (tensor,) = tensors(question)
    assert list(tensor.data.shape) == shape
    assert question.others_binary


def test_raw_body_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="'raw_input' for model 'm'"):
        infer_body.read_raw(spec(dims=(3,)), "", bytes(8))
    with pytest.raises(InvalidRequest, match="more than one variable-sized dimension"):
        infer_body.read_raw(spec(dims=(-1, -1)), "", bytes(8))


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_compressed_bodies_come_back_whole(body: bytes, coding: str) -> None:
    packed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    assert bodies.decompress(packed, coding, 300) == body
    for broken in (packed[:-1], packed + b"x", b"x" + packed):
        with pytest.raises(InvalidRequest):
            bodies.decompress(broken, coding, 300)


def test_zip_bomb_is_refused_before_it_has_grown() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(RequestTooLarge):
        bodies.decompress(bomb, "gzip", 1_000_000)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"gzip", "gzip"),
        (b"deflate, gzip", "deflate"),
        (b"deflate;q=0.5, gzip;q=0.8", "gzip"),
        (b"gzip;q=0", ""),
        (b"identity, gzip;q=0.5", ""),
        (b"br, *", ""),
        (b"gzip;q=many", ""),
    ],
)
def test_best_liked_coding_is_used(header: bytes, coding: str) -> None:
    assert bodies.accepted(header) == coding


def test_every_error_has_a_code_of_http() -> None:
    def below(kind: type[TidegateError]) -> set[type[TidegateError]]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    assert below(errors.TidegateError) - {errors.TidegateError} == HTTP_CODE.keys()
