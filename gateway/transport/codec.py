"""KServe v2 messages <-> the gateway's nouns. Pure; error texts are Triton's."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import (
    DTYPES,
    Array,
    InferRequest,
    InferResponse,
    Parameters,
    Tensor,
    request_label,
)
from gateway.errors import InvalidRequest, NotSupported
from gateway.transport import parameters

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
# what Triton calls the contents of each field
_FIELD_HOLDS = {
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}
MAX_DIMS = 64  # NumPy's own limit
_UNSUPPORTED_OUTPUT = ("classification", "shared_memory_region")


def decode(message: pb.ModelInferRequest, deadline: float) -> InferRequest:
    """Return the request. Arrays of raw contents are views of the message's bytes, uncopied.

    Raises `InvalidRequest` where contents and shapes disagree.
    """
    tensors = message.inputs
    raw = message.raw_input_contents
    raw_count = len(raw)
    if raw_count and raw_count != len(tensors):
        _refuse_count(message)
    inputs = []
    for index, tensor in enumerate(tensors):
        shape = tuple(tensor.shape)
        if len(shape) > MAX_DIMS or min(shape, default=0) < 0:
            raise _invalid(
                message,
                f"input '{tensor.name}' has a negative dim or more than {MAX_DIMS} dims: "
                f"{list(shape[:MAX_DIMS])}",
            )
        if raw_count:
            _check_raw(message, tensor)
            data = _from_raw(message, tensor, shape, raw[index])
        else:
            _check_region(tensor)
            data = _from_typed(message, tensor, shape)
        inputs.append(Tensor(tensor.name, tensor.datatype, data))
    request = InferRequest(
        message.model_name,
        message.model_version,
        message.id,
        inputs,
        _outputs(message) if message.outputs else [],
        deadline,
    )
    if message.parameters:
        parameters.take(message.parameters, request)
    return request


def encode(response: InferResponse) -> bytes:
    """Return the serialized message: every output raw, in order.

    All but the id and the contents is the same for every answer of one shape: it is serialized
    once, and the rest appended as fields of their own, as protobuf's wire format allows. Each
    output is copied once, into the message; a small one on its way there, too.
    """
    layout = (
        response.model,
        response.version,
        tuple([(tensor.name, tensor.datatype, tensor.data.shape) for tensor in response.outputs]),
    )
    head = _heads.get(layout)
    if head is None:
        head = _head(layout)
    if response.parameters:
        head += _parameters(response.parameters)
    parts: list[wire.Bytes] = [head]
    if response.id:
        parts += wire.field(_ID, response.id.encode())
    for tensor in response.outputs:
        data = tensor.data
        small = data.nbytes < VIEW_BYTES and tensor.datatype != "BYTES"
        content = data.tobytes() if small else wire.contents(tensor)
        parts += wire.field(_RAW_OUTPUT_CONTENTS, content)
    return b"".join(parts)


_Layout = tuple[str, int, tuple[tuple[str, str, tuple[int, ...]], ...]]

VIEW_BYTES = 4096  # below, a copy is cheaper than a view
MAX_HEADS = 1024  # a model whose outputs vary in shape must not fill the memory with them
_heads: dict[_Layout, bytes] = {}
_FIELDS = pb.ModelInferResponse.DESCRIPTOR.fields_by_name
_LENGTH_DELIMITED = 2  # protobuf's wire type of strings, bytes and messages
_ID = _FIELDS["id"].number << 3 | _LENGTH_DELIMITED
_RAW_OUTPUT_CONTENTS = _FIELDS["raw_output_contents"].number << 3 | _LENGTH_DELIMITED


def _head(layout: _Layout) -> bytes:
    model, version, outputs = layout
    message = pb.ModelInferResponse(model_name=model, model_version=str(version))
    for name, datatype, shape in outputs:
        message.outputs.add(name=name, datatype=datatype, shape=shape)
    if len(_heads) >= MAX_HEADS:
        _heads.clear()
    head: bytes = message.SerializeToString()
    _heads[layout] = head
    return head


def _parameters(given: Parameters) -> bytes:
    message = pb.ModelInferResponse()
    wire.put_parameters(given, message.parameters)
    serialized: bytes = message.SerializeToString()
    return serialized


def _outputs(message: pb.ModelInferRequest) -> list[str]:
    names: dict[str, None] = {}  # asked for twice, an output is sent once
    for output in message.outputs:
        for parameter in _UNSUPPORTED_OUTPUT:
            if parameter in output.parameters:
                raise NotSupported(f"output parameter '{parameter}' is not supported yet")
        names[output.name] = None
    return list(names)


def _refuse_count(message: pb.ModelInferRequest) -> NoReturn:
    """Raise for raw contents that are not as many as the inputs."""
    raw = message.raw_input_contents
    for tensor in message.inputs:
        _check_raw(message, tensor)
    if len(raw) < len(message.inputs):
        raise _no_data(message, message.inputs[len(raw)].name)
    raise _invalid(
        message,
        f"expected {len(message.inputs)} raw input contents but got {len(raw)} for model "
        f"'{message.model_name}'",
    )


def _check_region(tensor: pb.ModelInferRequest.InferInputTensor) -> None:
    if "shared_memory_region" in tensor.parameters:
        raise NotSupported("shared memory is not supported yet")


def _check_raw(
    message: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> None:
    if tensor.parameters:
        _check_region(tensor)
    if tensor.HasField("contents"):
        raise InvalidRequest(
            "contents field must not be specified when using raw_input_contents for "
            f"'{tensor.name}' for model '{message.model_name}'"
        )


def _no_data(message: pb.ModelInferRequest, name: str) -> InvalidRequest:
    return InvalidRequest(
        f"unable to find data for input tensor '{name}' for model '{message.model_name}' in "
        "request."
    )


def _shaped(
    message: pb.ModelInferRequest, name: str, array: Array, shape: tuple[int, ...]
) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:  # no elements, and dims that no array can have
        raise _impossible(message, name, shape) from None


def _impossible(message: pb.ModelInferRequest, name: str, shape: tuple[int, ...]) -> InvalidRequest:
    return _invalid(message, f"input '{name}' has the impossible shape {list(shape)}")


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
    try:
        # a view; read-only, as `bytes` are
        return np.ndarray(shape, dtype, raw)
    except ValueError:  # no elements, and dims that no array can have
        raise _impossible(message, tensor.name, shape) from None


def _from_raw_bytes(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    raw: bytes,
) -> Array:
    try:
        elements = wire.unpack_strings(raw, math.prod(shape))
    except wire.Truncated as error:
        raise _truncated(message, tensor.name, error) from None
    return _strings(message, tensor, shape, elements)


def _truncated(message: pb.ModelInferRequest, name: str, error: wire.Truncated) -> InvalidRequest:
    if error.part == "content":
        return InvalidRequest(
            f"incomplete string data for inference input '{name}', expecting string of length "
            f"{error.expected} but only {error.available} bytes available"
        )
    return _invalid(
        message,
        f"incomplete string length indicator for inference input '{name}' for model "
        f"'{message.model_name}', expecting {error.expected} bytes but only {error.available} "
        "bytes available. Please make sure the string length indicator is in one buffer.",
    )


def _strings(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    elements: list[bytes],
) -> Array:
    expected = math.prod(shape)
    count, of = len(elements), f"for inference input '{tensor.name}' for model"
    if count > expected:
        raise _invalid(
            message,
            f"unexpected number of string elements {count} {of} '{message.model_name}', "
            f"expecting {expected}",
        )
    if count < expected:
        raise _invalid(
            message, f"expected {expected} string elements {of} '{message.model_name}', got {count}"
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
    for name, holds in _FIELD_HOLDS.items():
        if name != field and len(getattr(contents, name)):
            raise InvalidRequest(
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
        raise _no_data(message, tensor.name)
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


def _invalid(message: pb.ModelInferRequest, text: str) -> InvalidRequest:
    return InvalidRequest(request_label(message.id) + text)
