"""Tensors as KServe v2 carries them in raw contents. Pure, and shared by both ends of the gateway.

Elements are row-major and little-endian, without padding. An element of BYTES is its length, 4
bytes, and then its content.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Literal

import numpy as np

from gateway.core import DTYPES, Array, Parameters, ParameterValue, Tensor

Bytes = bytes | memoryview

_LENGTH = struct.Struct("<I")


def contents(tensor: Tensor) -> Bytes:
    """Return a tensor's elements as the wire has them: a view of the array where it can be one.

    BYTES are packed, arrays that are not contiguous copied.
    """
    if tensor.datatype == "BYTES":
        return pack_strings(tensor.data)
    # of one dimension, and never empty: a memoryview casts neither scalars nor empty shapes
    data = np.ascontiguousarray(tensor.data).reshape(-1)
    return data.view(np.uint8).data if data.size else b""


def array(datatype: str, shape: tuple[int, ...], raw: bytes) -> Array:
    """Return raw contents as an array: a view of `raw`, uncopied, unless they are BYTES.

    Raises `ValueError` where datatype, shape and contents disagree.
    """
    if datatype == "BYTES":
        elements = unpack_strings(raw, math.prod(shape))
        strings = np.empty(len(elements), np.object_)
        strings[:] = elements
        return strings.reshape(shape)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise ValueError(f"unknown data type '{datatype}'")
    return np.frombuffer(raw, dtype).reshape(shape)


def field(tag: int, content: Bytes) -> tuple[bytes, Bytes]:
    """Return a length-delimited field of a number below 16, as protobuf has it on the wire."""
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)), content
    prefix = bytearray((tag,))
    while length >= 0x80:  # a varint: seven bits a byte, the lowest first
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix), content


def parameter(given: Any) -> ParameterValue:
    """Return the value of an InferParameter message; "" where it has none."""
    kind = given.WhichOneof("parameter_choice")
    value: ParameterValue = getattr(given, kind) if kind else ""
    return value


def put_parameters(given: Parameters, fields: Any) -> None:
    """Write parameters into a message's map from names to InferParameter messages."""
    for name, value in given.items():
        match value:
            case bool():  # before int, which it is, too
                fields[name].bool_param = value
            case int() if value >= 2**63:
                fields[name].uint64_param = value
            case int():
                fields[name].int64_param = value
            case float():
                fields[name].double_param = value
            case str():
                fields[name].string_param = value


def pack_strings(strings: Array) -> bytes:
    """Return an array of `bytes` objects with their lengths."""
    return b"".join([_LENGTH.pack(len(element)) + element for element in strings.ravel()])


def unpack_strings(raw: bytes, expected: int) -> list[bytes]:
    """Return the elements of raw BYTES contents, no more than one above `expected`.

    (A message holds millions of empty ones.) Of that one only the length need be there. Raises
    `Truncated`.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) <= expected:
        if at + _LENGTH.size > len(raw):
            raise Truncated("length", _LENGTH.size, len(raw) - at)
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw) and len(elements) < expected:
            raise Truncated("content", length, len(raw) - at)
        elements.append(raw[at : at + length])
        at += length
    return elements


class Truncated(ValueError):
    """BYTES contents end in the middle of an element."""

    def __init__(self, part: Literal["length", "content"], expected: int, available: int) -> None:
        super().__init__(f"{available} bytes where an element's {part} takes {expected}")
        self.part = part
        self.expected = expected
        self.available = available
