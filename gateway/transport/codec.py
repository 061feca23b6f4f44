"""KServe v2 messages <-> the gateway's nouns. Pure; error texts are Triton's."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from gateway.core import DTYPES, Array, InferRequest, InferResponse, Tensor, request_label
from gateway.errors import InvalidRequest, NotSupported

# typed field of InferTensorContents for each datatype; FP16 and BF16 travel raw only
_TYPED_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FIELD_NAMES = tuple(dict.fromkeys(_TYPED_FIELD.values()))
MAX_DIMS = 64  # NumPy's own limit
_LENGTH = struct.Struct("<I")
_UNSUPPORTED_OUTPUT = ("classification", "shared_memory_region")


def decode(message: pb.ModelInferRequest, deadline: float) -> InferRequest:
    """Return the request. Arrays of raw contents are views of the message's bytes, uncopied.

    Raises `InvalidRequest` where contents and shapes disagree.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        for tensor in message.inputs:
            _check_raw(message, tensor)
        if len(raw) < len(message.inputs):
            missing = message.inputs[len(raw)].name
            raise _invalid(
                message,
                f"unable to find data for input tensor '{missing}' for model "
                f"'{message.model_name}' in request.",
            )
        raise _invalid(
            message,
            f"expected {len(message.inputs)} raw input contents but got {len(raw)} for model "
            f"'{message.model_name}'",
        )
    inputs = []
    for index, tensor in enumerate(message.inputs):
        shape = tuple(tensor.shape)
        if len(shape) > MAX_DIMS or min(shape, default=0) < 0:
            raise _invalid(
                message,
                f"input '{tensor.name}' has a negative dim or more than {MAX_DIMS} dims: "
                f"{list(shape[:MAX_DIMS])}",
            )
        if raw:
            _check_raw(message, tensor)
            data = _from_raw(message, tensor, shape, raw[index])
        else:
            _check_region(tensor)
            data = _from_typed(message, tensor, shape)
        inputs.append(Tensor(tensor.name, tensor.datatype, data))
    outputs: dict[str, None] = {}  # asked for twice, an output is sent once
    for output in message.outputs:
        for parameter in _UNSUPPORTED_OUTPUT:
            if parameter in output.parameters:
                raise NotSupported(f"output parameter '{parameter}' is not supported yet")
        outputs[output.name] = None
    request = InferRequest(
        message.model_name, message.model_version, message.id, inputs, list(outputs), deadline
    )
    if message.parameters:
        request.priority = _priority(message)
        request.timeout_us = _timeout_us(message)
    return request


def encode(response: InferResponse) -> pb.ModelInferResponse:
    """Return the message: every output raw, in order. Copies each output once, into the message."""
    message = pb.ModelInferResponse(
        model_name=response.model, model_version=str(response.version), id=response.id
    )
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.data.shape)
        message.raw_output_contents.append(to_raw(tensor))
    return message


def to_raw(tensor: Tensor) -> bytes:
    """Return a tensor's elements as the wire has them: row-major, BYTES with their lengths."""
    if tensor.datatype != "BYTES":
        return tensor.data.tobytes()
    return b"".join(_LENGTH.pack(len(element)) + element for element in tensor.data.ravel())


def _check_region(tensor: pb.ModelInferRequest.InferInputTensor) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise NotSupported("shared memory is not supported yet")


def _check_raw(
    message: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> None:
    _check_region(tensor)
    if tensor.HasField("contents"):
        raise _invalid(
            message,
            "contents field must not be specified when using raw_input_contents for "
            f"'{tensor.name}' for model '{message.model_name}'",
        )


def _shaped(
    message: pb.ModelInferRequest, name: str, array: Array, shape: tuple[int, ...]
) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:  # no elements, and dims that no array can have
        raise _invalid(message, f"input '{name}' has the impossible shape {list(shape)}") from None


def _from_raw(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    raw: bytes,
) -> Array:
    if tensor.datatype == "BYTES":
        return _from_raw_bytes(message, tensor, shape, raw)
    dtype = _dtype(message, tensor)
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise _invalid(
            message,
            f"input byte size mismatch for input '{tensor.name}' for model "
            f"'{message.model_name}'. Expected {expected}, got {len(raw)}",
        )
    return _shaped(message, tensor.name, np.frombuffer(raw, dtype), shape)


def _from_raw_bytes(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    raw: bytes,
) -> Array:
    elements: list[bytes] = []
    at = 0
    expected = math.prod(shape)
    # no further than the first element too many: a message holds millions of empty ones
    while at < len(raw) and len(elements) <= expected:
        if at + _LENGTH.size > len(raw):
            raise _invalid(
                message,
                f"incomplete string length indicator for inference input '{tensor.name}', "
                f"expecting {_LENGTH.size} bytes but only {len(raw) - at} bytes available",
            )
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise _invalid(
                message,
                f"incomplete string data for inference input '{tensor.name}', expecting string "
                f"of length {length} but only {len(raw) - at} bytes available",
            )
        elements.append(raw[at : at + length])
        at += length
    return _strings(message, tensor, shape, elements)


def _strings(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    elements: list[bytes],
) -> Array:
    expected = math.prod(shape)
    if len(elements) != expected:
        raise _invalid(
            message,
            f"unexpected number of string elements {len(elements)} for inference input "
            f"'{tensor.name}', expecting {expected}",
        )
    array = np.empty(expected, np.object_)
    array[:] = elements
    return _shaped(message, tensor.name, array, shape)


def _from_typed(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
) -> Array:
    field = _TYPED_FIELD.get(tensor.datatype)
    contents = tensor.contents
    for name in _FIELD_NAMES:
        if name != field and len(getattr(contents, name)):
            holds = next(datatype for datatype, f in _TYPED_FIELD.items() if f == name)
            raise _invalid(
                message,
                f"unexpected explicit tensor data for input tensor '{tensor.name}' for model "
                f"'{message.model_name}' of type '{holds}', expected datatype "
                f"'{tensor.datatype}'",
            )
    dtype = _dtype(message, tensor)
    if field is None:
        raise _invalid(
            message,
            f"input tensor '{tensor.name}' of type '{tensor.datatype}' needs raw_input_contents",
        )
    values: Any = getattr(contents, field)
    expected = math.prod(shape)
    if not len(values) and expected:
        raise _invalid(
            message,
            f"unable to find data for input tensor '{tensor.name}' for model "
            f"'{message.model_name}' in request.",
        )
    if tensor.datatype == "BYTES":
        return _strings(message, tensor, shape, list(values))
    if len(values) != expected:
        raise _invalid(
            message,
            f"input byte size mismatch for input '{tensor.name}' for model "
            f"'{message.model_name}'. Expected {expected * dtype.itemsize}, got "
            f"{len(values) * dtype.itemsize}",
        )
    try:
        array = np.array(values, dtype)
    except OverflowError:
        raise _invalid(
            message, f"input '{tensor.name}' has a value that {tensor.datatype} cannot hold"
        ) from None
    return _shaped(message, tensor.name, array, shape)


def _dtype(
    message: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> np.dtype[Any]:
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise _invalid(
            message, f"input '{tensor.name}' has an unknown data type '{tensor.datatype}'"
        )
    return dtype


def _priority(message: pb.ModelInferRequest) -> int:
    if "priority" not in message.parameters:
        return 0
    parameter = message.parameters["priority"]
    match parameter.WhichOneof("parameter_choice"):
        case "uint64_param":
            return int(parameter.uint64_param)
        case "int64_param" if parameter.int64_param >= 0:
            return int(parameter.int64_param)
    raise _invalid(
        message,
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    )


def _timeout_us(message: pb.ModelInferRequest) -> int:
    if "timeout" not in message.parameters:
        return 0
    parameter = message.parameters["timeout"]
    if parameter.WhichOneof("parameter_choice") != "int64_param" or parameter.int64_param < 0:
        raise _invalid(message, "invalid value type for 'timeout' parameter, expected int64_param.")
    return int(parameter.int64_param)


def _invalid(message: pb.ModelInferRequest, text: str) -> InvalidRequest:
    return InvalidRequest(request_label(message.id) + text)
