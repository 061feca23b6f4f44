"""JSON that a client wrote, read with care. Pure; error texts are Triton's."""

from __future__ import annotations

import json
from typing import Any

import orjson

from gateway.errors import InvalidRequest

MAX_INT64 = 2**63 - 1
_NOT_FINITE = (b"NaN", b"Infinity")  # no JSON, but Triton and its clients write and read them


def parse(text: bytes) -> Any:
    """Return a document. Raises `InvalidRequest`."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if not any(word in text for word in _NOT_FINITE):
            raise InvalidRequest(
                f"failed to parse the request JSON buffer: {error.msg} at {error.pos}"
            ) from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"failed to parse the request JSON buffer: {error}") from None


def string(given: Any, name: str) -> str:
    """Return a member that has to be a string."""
    value = _member(given, name)
    if type(value) is not str:
        raise _wrong(name, "non-string as string")
    return value


def boolean(given: Any, name: str) -> bool:
    """Return a member that has to be true or false."""
    value = _member(given, name)
    if type(value) is not bool:
        raise _wrong(name, "non-boolean as boolean")
    return value


def unsigned(given: Any, name: str, verb: str = "parse") -> int:
    """Return a member that has to be a whole number from 0 to 2^63 - 1."""
    value = _member(given, name)
    if not is_unsigned(value):
        raise _wrong(name, "non-unsigned-integer as unsigned-integer", verb)
    return int(value)


def array(given: Any, name: str) -> list[Any]:
    """Return a member that has to be an array."""
    value = _member(given, name)
    if type(value) is not list:
        raise _wrong(name, "non-array as array")
    return value


def strings(given: Any, name: str) -> list[str]:
    """Return a member that has to be an array of strings."""
    values = array(given, name)
    if not all(type(value) is str for value in values):
        raise _wrong(name, "non-string as string")
    return values


def members(value: Any, name: str) -> dict[str, Any]:
    """Return a value that has to be an object; `name` says what it is."""
    if type(value) is not dict:
        raise unreadable(name, "attempt to get members for non-object")
    return value


def is_unsigned(value: Any) -> bool:
    """Whether a value is a whole number from 0 to 2^63 - 1; true and false are none."""
    return type(value) is int and 0 <= value <= MAX_INT64


def is_int64(value: Any) -> bool:
    """Whether a value is a whole number of 64 bits; true and false are none."""
    return type(value) is int and -MAX_INT64 - 1 <= value <= MAX_INT64


def unreadable(name: str, reason: str, verb: str = "parse") -> InvalidRequest:
    """Return the error for a member that is not as it should be."""
    return InvalidRequest(f"Unable to {verb} '{name}': {reason}")


def _wrong(name: str, what: str, verb: str = "parse") -> InvalidRequest:
    return unreadable(name, f"attempt to access JSON {what}", verb)


def _member(given: Any, name: str) -> Any:
    try:
        return given[name]
    except (KeyError, TypeError):
        raise unreadable(name, f"attempt to access non-existing object member '{name}'") from None
