"""Tensors as KServe v2 carries them in raw contents. Pure, and shared by both ends of the gateway.

Elements are row-major and little-endian, without padding. An element of BYTES is its length, 4
bytes, and then its content.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from gateway.core import DTYPES, Array, Tensor

_LENGTH = struct.Struct("<I")


def contents(tensor: Tensor) -> bytes | memoryview:
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


def pack_strings(strings: Array) -> bytes:
    """Return an array of `bytes` objects with their lengths."""
    return b"".join([_LENGTH.pack(len(element)) + element for element in strings.ravel()])


def unpack_strings(raw: bytes, expected: int) -> list[bytes]:
    """Return the elements of raw BYTES contents, no more than one above `expected`.

    (A message holds millions of empty ones.) Raises `Truncated`, whose text is Triton's.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) <= expected:
        if at + _LENGTH.size > len(raw):
            raise Truncated("length indicator", f"{_LENGTH.size} bytes", len(raw) - at)
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if at + length > len(raw):
            raise Truncated("data", f"string of length {length}", len(raw) - at)
        elements.append(raw[at : at + length])
        at += length
    return elements


class Truncated(ValueError):
    """BYTES contents end in the middle of an element."""

    def __init__(self, part: str, expected: str, available: int) -> None:
        super().__init__(part, expected, available)
        self._part, self._expected, self._available = part, expected, available

    def text(self, tensor: str) -> str:
        """Return what is wrong, in Triton's words; `tensor` is "inference input 'x'"."""
        return (
            f"incomplete string {self._part} for {tensor}, expecting {self._expected} but only "
            f"{self._available} bytes available"
        )
