"""The parameters of a request: which mean something, and what. Error texts are Triton's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway import wire
from gateway.core import InferRequest, ParameterValue
from gateway.errors import InvalidRequest
from gateway.sequence import SequenceMark

EMPTY_FINAL_RESPONSE = "triton_enable_empty_final_response"
FINAL_RESPONSE = "triton_final_response"
_RESERVED = "triton_"
_SCHEDULING = frozenset({"priority", "timeout", "sequence_id", "sequence_start", "sequence_end"})

# name -> InferParameter, as messages have it
_Given = Mapping[str, Any]


def take(given: _Given, request: InferRequest) -> None:
    """Put a request's parameters where they belong in it. Raises `InvalidRequest`.

    What says nothing to the gateway is for the model: `request.parameters`.
    """
    own: dict[str, ParameterValue] = {}
    flag(given, EMPTY_FINAL_RESPONSE)  # it says something in streams only, and is checked always
    for name, parameter in given.items():
        if name.startswith(_RESERVED):
            if name != EMPTY_FINAL_RESPONSE:
                raise InvalidRequest(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only "
                    f"the following keys starting with 'triton_' are allowed: "
                    f"{EMPTY_FINAL_RESPONSE}"
                )
        elif name not in _SCHEDULING:
            if not _kind(parameter):
                raise InvalidRequest(
                    f"invalid value type for '{name}' parameter, expected int64_param, bool_param, "
                    "or string_param."
                )
            own[name] = wire.parameter(parameter)
    request.priority = _priority(given)
    request.timeout_us = _timeout_us(given)
    request.sequence = _sequence(given)
    request.parameters = own


def flag(given: _Given, name: str) -> bool:
    """Return a yes-or-no parameter; False where it is not given."""
    if name not in given:
        return False
    if _kind(given[name]) != "bool_param":
        raise InvalidRequest(f"invalid value type for '{name}' parameter, expected bool_param.")
    return bool(given[name].bool_param)


def _kind(parameter: Any) -> str:
    return parameter.WhichOneof("parameter_choice") or ""


def _priority(given: _Given) -> int:
    if "priority" not in given:
        return 0
    kind = _kind(given["priority"])
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(
            "invalid value type for 'priority' parameter, expected int64_param or uint64_param."
        )
    priority = int(getattr(given["priority"], kind))
    if priority < 0:
        raise InvalidRequest("invalid value for 'priority', expected value >= 0.")
    return priority


def _timeout_us(given: _Given) -> int:
    if "timeout" not in given:
        return 0
    if _kind(given["timeout"]) != "int64_param":
        raise InvalidRequest("invalid value type for 'timeout' parameter, expected int64_param.")
    return max(0, int(given["timeout"].int64_param))  # to Triton a negative one is a very long one


def _sequence(given: _Given) -> SequenceMark | None:
    start, end = flag(given, "sequence_start"), flag(given, "sequence_end")
    if "sequence_id" not in given:
        return None
    kind = _kind(given["sequence_id"])
    if kind not in ("int64_param", "string_param"):
        raise InvalidRequest(
            "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."
        )
    number = getattr(given["sequence_id"], kind)
    if not number:  # 0 and "" are no sequence
        return None
    return SequenceMark(number, start, end)
