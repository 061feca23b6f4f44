"""KServe messages <-> tensors, and whether a request fits its model. No server."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from gateway import signature, wire
from gateway.core import DTYPES, InferRequest, InferResponse, Tensor, TensorSpec
from gateway.errors import InvalidRequest
from gateway.transport import codec
from gateway.transport.codec import encode
from gateway.transport.shared_memory import SharedMemory
from tests.gateway.fakes import spec


def decode(made: pb.ModelInferRequest, deadline: float) -> InferRequest:
    return codec.decode(made, deadline, SharedMemory(allowed=False))


def message(
    data: bytes | None = None, shape: tuple[int, ...] = (1, 2), datatype: str = "FP32", **typed: Any
) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name="m", id="7")
    tensor = made.inputs.add(name="x", datatype=datatype, shape=shape)
    if typed:
        tensor.contents.CopyFrom(pb.InferTensorContents(**typed))
    if data is not None:
        made.raw_input_contents.append(data)
    return made


def refusal(made: pb.ModelInferRequest) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(made, 0.0)
    return str(caught.value)


NUMERIC = [name for name in DTYPES if name != "BYTES"]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_every_raw_datatype_survives_both_ways(datatype: str) -> None:
    array = np.arange(6).astype(DTYPES[datatype]).reshape(2, 3)
    (tensor,) = decode(message(array.tobytes(), (2, 3), datatype), 0.0).inputs
    assert tensor.data.dtype == DTYPES[datatype]
    np.testing.assert_array_equal(tensor.data, array)
    answer = pb.ModelInferResponse.FromString(encode(InferResponse("m", 3, "7", [tensor])))
    assert answer.raw_output_contents == [array.tobytes()]
    assert (answer.model_version, answer.id) == ("3", "7")
    assert list(answer.outputs[0].shape) == [2, 3]
    assert answer.outputs[0].datatype == datatype


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-1, 2]),
        ("INT16", "int_contents", [-1, 2]),
        ("INT32", "int_contents", [-1, 2]),
        ("INT64", "int64_contents", [-1, 2]),
        ("UINT8", "uint_contents", [1, 255]),
        ("UINT16", "uint_contents", [1, 2]),
        ("UINT32", "uint_contents", [1, 2]),
        ("UINT64", "uint64_contents", [1, 2]),
        ("FP32", "fp32_contents", [0.5, 2]),
        ("FP64", "fp64_contents", [0.5, 2]),
        ("BYTES", "bytes_contents", [b"a", b""]),
    ],
)
def test_every_typed_datatype_is_read(datatype: str, field: str, values: list[Any]) -> None:
    (tensor,) = decode(message(None, (1, 2), datatype, **{field: values}), 0.0).inputs
    assert tensor.data.dtype == DTYPES[datatype]
    assert tensor.data.tolist() == [values]


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_any_bytes_survive_both_ways(elements: list[bytes]) -> None:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    raw = wire.pack_strings(array)
    (tensor,) = decode(message(raw, (len(elements),), "BYTES"), 0.0).inputs
    assert tensor.data.tolist() == elements


@given(st.binary(max_size=40), st.lists(st.integers(0, 3), max_size=3))
def test_no_raw_bytes_can_do_worse_than_be_refused(data: bytes, shape: list[int]) -> None:
    for datatype in ("BYTES", "FP32", "INT8"):
        try:
            (tensor,) = decode(message(data, tuple(shape), datatype), 0.0).inputs
        except InvalidRequest:
            continue
        assert tensor.data.shape == tuple(shape)


def test_empty_batch_is_a_batch() -> None:
    (tensor,) = decode(message(b"", (0, 2)), 0.0).inputs
    assert tensor.data.shape == (0, 2)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            message(b"12345678", fp32_contents=[1.0]),
            "contents field must not be specified when using raw_input_contents for 'x' for model "
            "'m'",
        ),
        (
            message(b"1234"),
            "input byte size mismatch for input 'x' for model 'm'. Expected 8, got 4",
        ),
        (
            message(None, fp32_contents=[1.0]),
            "input byte size mismatch for input 'x' for model 'm'. Expected 8, got 4",
        ),
        (message(), "unable to find data for input tensor 'x' for model 'm' in request."),
        (
            message(None, datatype="INT32", fp32_contents=[1.0, 2.0]),
            "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'FP32', "
            "expected datatype 'INT32'",
        ),
        (
            message(struct.pack("<I", 9) + b"abc", (1,), "BYTES"),
            "incomplete string data for inference input 'x', expecting string of length 9 but "
            "only 3 bytes available",
        ),
        (
            message(b"ab", (1,), "BYTES"),
            "incomplete string length indicator for inference input 'x' for model 'm', expecting "
            "4 bytes but only 2 bytes available",
        ),
        (
            message(struct.pack("<I", 0), (2,), "BYTES"),
            "expected 2 string elements for inference input 'x' for model 'm', got 1",
        ),
        (
            message(struct.pack("<II", 0, 9), (1,), "BYTES"),  # one too many, and it is cut
            "unexpected number of string elements 2 for inference input 'x' for model 'm', "
            "expecting 1",
        ),
        (message(b"", (-1, 2)), "input 'x' has a negative dim or more than 64 dims: [-1, 2]"),
        (message(b"", (0,) * 65), "input 'x' has a negative dim or more than 64 dims"),
        (message(b"", (0, 2**62, 2**62)), "input 'x' has the impossible shape"),
        (message(b"12345678", datatype="FP8"), "input 'x' has an unknown data type 'FP8'"),
        (
            message(None, datatype="FP16"),
            "unable to find data for input tensor 'x' for model 'm' in request.",
        ),
        (
            message(None, datatype="UINT8", uint_contents=[1, 256]),
            "input 'x' has a value that UINT8 cannot hold",
        ),
    ],
)
def test_contradictions_are_refused_in_tritons_words(made: pb.ModelInferRequest, text: str) -> None:
    # which of them carry the label is Triton's affair: tests/triton/test_alike.py
    assert text in refusal(made)


def test_raw_contents_must_be_one_for_each_input() -> None:
    made = message(b"12345678")
    made.inputs.add(name="z", datatype="FP32", shape=[1])
    assert "unable to find data for input tensor 'z'" in refusal(made)
    made = message(b"12345678")
    made.inputs.add(name="z", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    assert "contents field must not be specified when using raw_input_contents for 'z'" in (
        refusal(made)
    )
    made = message(b"12345678")
    made.raw_input_contents.append(b"")
    assert "expected 1 raw input contents but got 2" in refusal(made)


def test_priority_and_timeout_have_their_types() -> None:
    made = message(b"12345678")
    made.parameters["priority"].uint64_param = 3
    made.parameters["timeout"].int64_param = 1500
    request = decode(made, 0.0)
    assert (request.priority, request.timeout_us) == (3, 1500)
    made.parameters["priority"].string_param = "3"
    assert "invalid value type for 'priority' parameter" in refusal(made)
    made = message(b"12345678")
    made.parameters["timeout"].bool_param = True
    assert "invalid value type for 'timeout' parameter, expected int64_param." in refusal(made)


def request(*tensors: Tensor, outputs: tuple[str, ...] = ()) -> InferRequest:
    return InferRequest("m", "", "", list(tensors), list(outputs), 0.0)


def floats(*shape: int, name: str = "x") -> Tensor:
    return Tensor(name, "FP32", np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            request(Tensor("x", "INT32", np.zeros((1, 2), np.int32))),
            "inference input 'x' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            request(floats(1, 3)),
            "unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [1,3].",
        ),
        (
            request(floats(1, 2, 1)),
            "unexpected shape for input 'x' for model 'm'. Expected [-1,2], got [1,2,1].",
        ),
        (
            request(floats()),
            "input 'x' has no shape but model requires batch dimension for 'm'",
        ),
        (request(floats(9, 2)), "inference request batch-size must be <= 8 for 'm'"),
        (
            request(),
            "expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
            "required input(s) ['x']. Please provide all required input(s).",
        ),
        (
            request(floats(1, 2), floats(1, 2, name="z")),
            "unexpected inference input 'z' for model 'm'",
        ),
        (request(floats(1, 2), floats(1, 2)), "input 'x' already exists in request"),
        (
            request(floats(1, 2), outputs=("z",)),
            "unexpected inference output 'z' for model 'm'",
        ),
    ],
)
def test_request_that_does_not_fit_is_refused_in_tritons_words(
    made: InferRequest, text: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        signature.check(made, spec())
    assert str(caught.value).removeprefix("[request id: <id_unknown>] ").startswith(text)


def test_inputs_are_put_in_the_models_order_and_must_agree_on_rows() -> None:
    two = replace(
        spec(), inputs=(TensorSpec("a", "FP32", (2,)), TensorSpec("b", "FP32", (2,), True))
    )
    swapped = request(floats(3, 2, name="b"), floats(3, 2, name="a"))
    signature.check(swapped, two)
    assert [tensor.name for tensor in swapped.inputs] == ["a", "b"]
    signature.check(request(floats(3, 2, name="a")), two)  # the other one is optional
    with pytest.raises(InvalidRequest, match="batch size does not match other inputs for 'm'"):
        signature.check(request(floats(3, 2, name="a"), floats(2, 2, name="b")), two)
