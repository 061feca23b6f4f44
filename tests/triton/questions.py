"""Requests with something wrong in them. What Triton says of each: answers.json."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb


def said(call: Any, request: Any) -> str:
    """Return "OK", or the status and text of a call."""
    try:
        call(request, timeout=20)
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "OK"


def tensor(name: str, data: np.ndarray[Any, Any], datatype: str = "FP32") -> triton.InferInput:
    made = triton.InferInput(name, list(data.shape), datatype)
    made.set_data_from_numpy(data)
    return made


class Input(NamedTuple):
    """An input tensor: its raw contents, or one typed field of them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | None = None
    typed: dict[str, list[Any]] | None = None


def ask(
    model: str,
    *inputs: Input,
    version: str = "",
    id: str = "",
    outputs: tuple[str, ...] = (),
    parameters: Callable[[Any], None] = lambda _parameters: None,
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    for given in inputs:
        tensor = request.inputs.add(name=given.name, datatype=given.datatype, shape=given.shape)
        for field, values in (given.typed or {}).items():
            getattr(tensor.contents, field).extend(values)
        if given.raw is not None:
            request.raw_input_contents.append(given.raw)
    for name in outputs:
        request.outputs.add(name=name)
    parameters(request.parameters)
    return request


def floats(*shape: int, name: str = "x") -> Input:
    return Input(name, "FP32", shape, np.ones(shape, np.float32).tobytes())


def strings(*elements: bytes, shape: tuple[int, ...], tail: bytes = b"") -> Input:
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return Input("x", "BYTES", shape, raw + tail)


def with_int64(name: str, value: int) -> Callable[[Any], None]:
    def put(parameters: Any) -> None:
        parameters[name].int64_param = value

    return put


def with_string(name: str, value: str) -> Callable[[Any], None]:
    def put(parameters: Any) -> None:
        parameters[name].string_param = value

    return put


CUT = b"\x09\0\0\0c"  # nine bytes are announced, one is there
F = "identity_FP32"
OK3 = floats(1, 3)
A, B = floats(1, 2, name="a"), floats(1, 2, name="b")

QUESTIONS: dict[str, pb.ModelInferRequest] = {
    "unknown model": ask("nobody", OK3),
    "unknown version": ask(F, OK3, version="7"),
    "version that is no number": ask(F, OK3, version="one"),
    "negative version": ask(F, OK3, version="-1"),
    "version 0": ask(F, OK3, version="0"),
    "version with a tail": ask(F, OK3, version="1.0"),
    "wrong data type": ask(F, Input("x", "INT32", (1, 3), bytes(12))),
    "unknown data type": ask(F, Input("x", "FP31", (1, 3), bytes(12))),
    "wrong width": ask(F, floats(1, 4)),
    "missing dim": ask(F, floats(3)),
    "dim too many": ask(F, floats(1, 3, 1)),
    "no shape": ask(F, floats()),
    "wrong shape without batching": ask("unbatched", floats(3, 2)),
    "batch too large": ask(F, floats(5, 3)),
    "batch of none": ask(F, floats(0, 3)),
    "negative dim": ask(F, Input("x", "FP32", (-1, 3), bytes(12))),
    "batch sizes differ": ask("two", A, floats(2, 2, name="b")),
    "input missing": ask("two", A),
    "no inputs": ask("two"),
    "unknown input": ask(F, floats(1, 3, name="z")),
    "input too many": ask(F, OK3, floats(1, 3, name="z")),
    "input twice": ask(F, OK3, OK3),
    "unknown output": ask(F, OK3, outputs=("z",)),
    "raw too short": ask(F, Input("x", "FP32", (1, 3), bytes(8))),
    "raw too long": ask(F, Input("x", "FP32", (1, 3), bytes(16))),
    "raw and typed": ask(F, Input("x", "FP32", (1, 3), bytes(12), {"fp32_contents": [1, 2, 3]})),
    "no data": ask(F, Input("x", "FP32", (1, 3))),
    "raw entry missing": ask("two", A, Input("b", "FP32", (1, 2))),
    "raw entry too many": ask(F, OK3._replace(raw=bytes(12))),
    "wrong typed field": ask(F, Input("x", "FP32", (1, 3), None, {"int_contents": [1, 2, 3]})),
    "typed FP16": ask(
        "identity_FP16", Input("x", "FP16", (1, 3), None, {"fp32_contents": [1, 2, 3]})
    ),
    "typed too few": ask(F, Input("x", "FP32", (1, 3), None, {"fp32_contents": [1, 2]})),
    "typed too many": ask(F, Input("x", "FP32", (1, 3), None, {"fp32_contents": [1, 2, 3, 4]})),
    "strings too few": ask("identity_BYTES", strings(b"a", b"b", shape=(1, 3))),
    "strings too many": ask("identity_BYTES", strings(b"a", b"b", b"c", b"d", shape=(1, 3))),
    "typed strings too few": ask(
        "identity_BYTES", Input("x", "BYTES", (1, 3), None, {"bytes_contents": [b"a", b"b"]})
    ),
    "string length cut": ask("identity_BYTES", strings(b"a", b"b", shape=(1, 3), tail=b"\x01")),
    "string cut": ask("identity_BYTES", strings(b"a", b"b", shape=(1, 3), tail=CUT)),
    "priority as a string": ask(F, OK3, parameters=with_string("priority", "1")),
    "negative priority": ask(F, OK3, parameters=with_int64("priority", -1)),
    "timeout as a string": ask(F, OK3, parameters=with_string("timeout", "1")),
    "negative timeout": ask(F, OK3, parameters=with_int64("timeout", -1)),
    "reserved parameter": ask(F, OK3, parameters=with_string("triton_x", "1")),
    "final response wanted": ask(
        F, OK3, parameters=with_int64("triton_enable_empty_final_response", 1)
    ),
    "sequence start as a number": ask(F, OK3, parameters=with_int64("sequence_start", 1)),
    "parameter without a value": ask(F, OK3, parameters=lambda given: given["foo"].Clear()),
    "output twice": ask(F, OK3, outputs=("y", "y")),
    "zero-sized tensor": ask("any_width", Input("x", "FP32", (2, 0), b"")),
    "decoupled model": ask("count", Input("x", "INT32", (1,), bytes(4))),
    "with an id": ask(F, floats(1, 4), id="q7"),
    "sequence id": ask(F, OK3, parameters=with_int64("sequence_id", 3)),
}  # fmt: skip
QUESTIONS["raw entry too many"].raw_input_contents.append(bytes(12))
