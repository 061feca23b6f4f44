"""The inputs of a ModelInferRequest -> arrays. Pure; error texts are Triton's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import DTYPES, Array, Tensor, request_label
from gateway.errors import InvalidRequest
from gateway.transport.delivery import Place, Regions, place

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
# Of one request: as large as messages can be, and what Linux reads at once. A short message could
# name a large region many times.
MAX_BORROWED = 0x7FFF_F000


def read(message: pb.ModelInferRequest, regions: Regions) -> list[Tensor]:
    """Return the inputs. Arrays of raw contents are views of the message's bytes, uncopied.

    Raises `InvalidRequest` where contents and shapes disagree.
    """
    raw = message.raw_input_contents
    raw_count = len(raw)
    taken = 0  # of the raw contents: those in shared memory have none
    borrowed = 0  # bytes of shared memory
    inputs = []
    for tensor in message.inputs:
        shape = tuple(tensor.shape)
        if len(shape) > MAX_DIMS or min(shape, default=0) < 0:
            raise _invalid(
                message,
                f"input '{tensor.name}' has a negative dim or more than {MAX_DIMS} dims: "
                f"{list(shape[:MAX_DIMS])}",
            )
        lies = place(tensor.name, tensor.parameters) if tensor.parameters else None
        if lies is not None:
            borrowed += lies.size
            if borrowed > MAX_BORROWED:
                raise _invalid(message, f"inputs in shared memory exceed {MAX_BORROWED} bytes")
            data = _from_raw(message, tensor, shape, _from_region(message, tensor, lies, regions))
        elif raw_count:
            _refuse_typed(message, tensor)
            if taken == raw_count:
                raise _no_data(message, tensor.name)
            data = _from_raw(message, tensor, shape, raw[taken])
            taken += 1
        else:
            data = _from_typed(message, tensor, shape)
        inputs.append(Tensor(tensor.name, tensor.datatype, data))
    if taken != raw_count:
        raise _invalid(
            message,
            f"expected {taken} raw input contents but got {raw_count} for model "
            f"'{message.model_name}'",
        )
    return inputs


def _refuse_typed(
    message: pb.ModelInferRequest, tensor: pb.ModelInferRequest.InferInputTensor
) -> None:
    if tensor.HasField("contents"):
        raise InvalidRequest(
            "contents field must not be specified when using raw_input_contents for "
            f"'{tensor.name}' for model '{message.model_name}'"
        )


def _from_region(
    message: pb.ModelInferRequest,
    tensor: pb.ModelInferRequest.InferInputTensor,
    lies: Place,
    regions: Regions,
) -> bytes:
    if tensor.HasField("contents"):
        raise InvalidRequest(
            "unexpected 'content' provided when using shared memory for input tensor "
            f"'{tensor.name}' for model '{message.model_name}'"
        )
    return regions.read(*lies)


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
    values: Any = getattr(contents, field) if field else ()
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
