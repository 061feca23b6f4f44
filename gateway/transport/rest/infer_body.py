"""The body of an inference request -> ModelInferRequest. Pure; error texts are Triton's.

A body is JSON, and behind it the contents of those inputs that say `binary_data_size`, in order.
It becomes the message that a gRPC client would have sent, so that there is one way from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import DTYPES, ModelSpec
from gateway.errors import InvalidRequest
from gateway.transport.rest import json_values

_BINARY_SIZE = "binary_data_size"
_REGION = "shared_memory_region"
_PLACE = ("shared_memory_offset", "shared_memory_byte_size")
_RAW_INPUT = "raw_input"
_CLASSES = "classification"

# which JSON values an element of each datatype may be, and what Triton calls anything else
_ELEMENTS: dict[str, tuple[frozenset[type], str]] = {
    "BOOL": (frozenset({bool}), "non-boolean as boolean"),
    "BYTES": (frozenset({str}), "non-string as string"),
    **dict.fromkeys(
        ("INT8", "INT16", "INT32", "INT64"),
        (frozenset({int}), "non-signed-integer as signed-integer"),
    ),
    **dict.fromkeys(
        ("UINT8", "UINT16", "UINT32", "UINT64"),
        (frozenset({int}), "non-unsigned-integer as unsigned-integer"),
    ),
    **dict.fromkeys(("FP32", "FP64"), (frozenset({int, float}), "non-number as double")),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and which outputs are wanted as bytes: those named, and all others."""

    message: pb.ModelInferRequest
    binary: Mapping[str, bool]
    others_binary: bool


def read(model: str, version: str, body: bytes, json_size: int) -> Question:
    """Return the request whose first `json_size` bytes are JSON."""
    document = json_values.parse(body if json_size == len(body) else body[:json_size])
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    try:
        return _read(document, message, body, json_size)
    except UnicodeEncodeError:
        raise InvalidRequest("the request has a string that is not Unicode") from None


def _read(document: Any, message: pb.ModelInferRequest, body: bytes, at: int) -> Question:
    inputs = json_values.array(document, "inputs")
    if "id" in document:
        message.id = json_values.string(document, "id")
    others_binary = False
    if "parameters" in document:
        others_binary = _add_parameters(message.parameters, document["parameters"])
    for tensor in inputs:
        at = _add_input(message, tensor, body, at)
    if at < len(body):
        raise InvalidRequest(f"unexpected additional input data for model '{message.model_name}'")
    binary: dict[str, bool] = {}
    if "outputs" in document:
        for output in json_values.array(document, "outputs"):
            _add_output(message, output, binary)
    return Question(message, binary, others_binary)


def read_raw(model: ModelSpec, version: str, body: bytes) -> Question:
    """Return the request whose body is nothing but the contents of the model's one input."""
    message = pb.ModelInferRequest(model_name=model.key.name, model_version=version)
    label = "[request id: <id_unknown>] "
    if len(model.inputs) != 1:
        raise InvalidRequest(
            f"{label}Raw request must only have 1 input (found 1) to be deduced but got "
            f"{len(model.inputs)} inputs in '{model.key.name}' model configuration"
        )
    spec = model.inputs[0]
    shape = list(spec.dims)
    if spec.datatype == "BYTES":
        if shape != [1]:
            raise InvalidRequest(
                f"{label}For BYTE datatype raw input '{spec.name}', the model must have input "
                "shape [1]"
            )
        body = len(body).to_bytes(4, "little") + body
    else:
        if shape.count(-1) > 1:
            raise InvalidRequest(
                f"{label}The shape of the raw input '{spec.name}' can not be deduced because "
                "there are more than one variable-sized dimension"
            )
        fixed = math.prod(dim for dim in shape if dim != -1) * DTYPES[spec.datatype].itemsize
        if -1 in shape:
            shape[shape.index(-1)] = len(body) // fixed if fixed else 0
        expected = math.prod(shape) * DTYPES[spec.datatype].itemsize
        if len(body) != expected:
            raise InvalidRequest(
                f"{label}input byte size mismatch for input '{_RAW_INPUT}' for model "
                f"'{model.key.name}'. Expected {expected}, got {len(body)}"
            )
    batch = [1] if model.max_batch_size > 0 else []
    message.inputs.add(name=spec.name, datatype=spec.datatype, shape=batch + shape)
    message.raw_input_contents.append(body)
    return Question(message, {}, others_binary=True)


def _add_parameters(fields: Any, given: Any) -> bool:
    """Write a request's parameters into its message; return `binary_data_output`."""
    if type(given) is not dict:
        raise InvalidRequest("failed to get request params.: attempt to get members for non-object")
    others_binary = False
    for name, value in given.items():
        match name:
            case "binary_data_output":
                others_binary = json_values.boolean(given, name)
            case "sequence_id" if type(value) is int:
                fields[name].int64_param = json_values.unsigned(given, name)
            case "sequence_id":
                fields[name].string_param = json_values.string(given, name)
            case "sequence_start" | "sequence_end":
                fields[name].bool_param = json_values.boolean(given, name)
            case "priority" | "timeout":
                fields[name].int64_param = json_values.unsigned(given, name)
            case _ if name.startswith("triton_"):
                raise InvalidRequest(
                    "parameter keys starting with 'triton_' are reserved for Triton usage and "
                    "should not be specified."
                )
            case _ if type(value) in (bool, float, str) or json_values.is_int64(value):
                wire.put_parameters({name: value}, fields)
            case _:
                raise InvalidRequest(
                    f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or "
                    "'string'."
                )
    return others_binary


def _add_input(message: pb.ModelInferRequest, given: Any, body: bytes, at: int) -> int:
    """Add one input; return where the bytes of the next one begin in the body."""
    options = _options(given)
    _check_source(given, options)
    name = json_values.string(given, "name")
    datatype = json_values.string(given, "datatype")
    shape = json_values.array(given, "shape")
    if not all(map(json_values.is_unsigned, shape)):
        raise json_values.unreadable(
            "shape", "attempt to access JSON non-unsigned-integer as unsigned-integer"
        )
    tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
    if _BINARY_SIZE in options:
        end = at + json_values.unsigned(options, _BINARY_SIZE)
        if end > len(body):
            raise InvalidRequest(
                f"unexpected size for input '{name}', expecting {end - len(body)} additional "
                f"bytes for model '{message.model_name}'"
            )
        message.raw_input_contents.append(body[at:end])
        return end
    if _REGION in options:
        _add_place(tensor.parameters, options)
    else:
        message.raw_input_contents.append(_contents(name, datatype, shape, given))
    return at


def _check_source(given: Any, options: dict[str, Any]) -> None:
    there = [name for name in (_BINARY_SIZE, _REGION) if name in options]
    if type(given) is dict and "data" in given:
        there.insert(0, "data")
    if len(there) != 1:
        found = " set" + "".join(f" '{name}'" for name in there) if there else " no field is set"
        raise InvalidRequest(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in "
            f"'parameters', 'shared_memory_region' in 'parameters'. But{found}"
        )


def _add_output(message: pb.ModelInferRequest, given: Any, binary: dict[str, bool]) -> None:
    options = _options(given)
    as_bytes = "binary_data" in options and json_values.boolean(options, "binary_data")
    if _REGION in options:
        for name, asked in ((_CLASSES, _CLASSES in options), ("binary_data", as_bytes)):
            if asked:
                raise InvalidRequest(f"Output can't set both '{_REGION}' and '{name}'")
    output = message.outputs.add(name=json_values.string(given, "name"))
    if _REGION in options:
        _add_place(output.parameters, options)
    elif _CLASSES in options and (classes := json_values.unsigned(options, _CLASSES, "set")):
        output.parameters[_CLASSES].int64_param = classes
    binary.setdefault(output.name, as_bytes)  # named twice, the first wish counts


def _add_place(fields: Any, options: dict[str, Any]) -> None:
    """Write where a tensor lies in shared memory."""
    fields[_REGION].string_param = json_values.string(options, _REGION)
    for name in _PLACE:
        fields[name].int64_param = json_values.unsigned(options, name) if name in options else 0


def _contents(name: str, datatype: str, shape: list[int], given: dict[str, Any]) -> bytes:
    """Return the elements of a JSON array, nested however, as raw contents."""
    if datatype in ("FP16", "BF16"):
        raise InvalidRequest(
            f"receiving {datatype} data via JSON is not supported. Please use the binary data "
            f"format for input {name}"
        )
    if datatype not in _ELEMENTS:
        raise InvalidRequest(f"invalid datatype for input {name}")
    count = math.prod(shape)
    if not count:
        return b""
    elements, types = _flat(json_values.array(given, "data"))
    allowed, complaint = _ELEMENTS[datatype]
    if not types <= allowed:
        what = "JSON bytes array" if datatype == "BYTES" else "'data'"
        raise InvalidRequest(f"Unable to parse {what}: attempt to access JSON {complaint}")
    if datatype == "BYTES":  # the decoder counts them
        return wire.pack_strings(np.array([each.encode() for each in elements], np.object_))
    if len(elements) != count:
        raise json_values.unreadable("data", "Shape does not match true shape of 'data' field")
    try:
        with np.errstate(over="ignore"):  # 1e300 is an infinite FP32, as it is to Triton
            return np.array(elements, DTYPES[datatype]).tobytes()
    except OverflowError:
        raise InvalidRequest(f"input '{name}' has a value that {datatype} cannot hold") from None


def _flat(data: list[Any]) -> tuple[list[Any], set[type]]:
    """Return the elements of an array of arrays, row-major, and their types, in linear time."""
    while (types := set(map(type, data))) == {list}:
        data = list(chain.from_iterable(data))
    if list in types:
        data = list(_leaves(data))
        types = set(map(type, data))
    return data, types


def _leaves(data: list[Any]) -> Iterator[Any]:
    """Yield the elements of an array that is not of the same depth everywhere."""
    open_arrays = [iter(data)]
    while open_arrays:
        for each in open_arrays[-1]:
            if type(each) is list:
                open_arrays.append(iter(each))
                break
            yield each
        else:
            open_arrays.pop()


def _options(given: Any) -> dict[str, Any]:
    options = given.get("parameters") if type(given) is dict else None
    return options if type(options) is dict else {}
