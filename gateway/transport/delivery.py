"""What a client may ask for of each output beside its contents, and where tensors lie. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from gateway.errors import InvalidRequest

Placed = AbstractSet[str]
"""The outputs that lie in shared memory. They are sent without contents."""
NOTHING_PLACED: Placed = frozenset()

_REGION = "shared_memory_region"
_OFFSET = "shared_memory_offset"
_SIZE = "shared_memory_byte_size"
_KINDS = {_REGION: "string_param", _OFFSET: "int64_param", _SIZE: "int64_param"}
_CLASSES = "classification"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a client wants one output: its `classes` best classes, or placed in a region.

    0 classes means its contents as they are; no region means in the answer itself. `offset` and
    `size` are bytes in the region.
    """

    name: str
    classes: int = 0
    region: str = ""
    offset: int = 0
    size: int = 0


class Place(NamedTuple):
    """A part of a region, in bytes."""

    region: str
    offset: int
    size: int


class Regions(Protocol):
    """The shared memory that clients have registered."""

    def check(self, region: str, offset: int, size: int) -> None:
        """Raise `NotFound` for an unknown region, `InvalidRequest` for what lies not within it."""
        ...

    def read(self, region: str, offset: int, size: int) -> bytes:
        """Return a copy of `size` bytes. Raises as `check` does, and where they are not there."""
        ...

    def write(self, region: str, offset: int, content: bytes | memoryview) -> None:
        """Copy bytes into a region. Raises as `check` does, and where there is no room for them."""
        ...


def place(tensor: str, given: Mapping[str, Any]) -> Place | None:
    """Return where a tensor's parameters say that it lies; None is in the message itself.

    `given` are InferParameter messages by name. Error texts are Triton's.
    """
    found = {name: _value(tensor, name, given[name]) for name in _KINDS if name in given}
    if _REGION not in found:
        for name in (_SIZE, _OFFSET):
            if name in found:
                raise InvalidRequest(
                    f"'{name}' can not be specified without '{_REGION}' parameter for tensor "
                    f"'{tensor}'"
                )
        return None
    if _SIZE not in found:
        raise InvalidRequest(
            f"'{_SIZE}' must be specified along with '{_REGION}' parameter for tensor '{tensor}'"
        )
    return Place(found[_REGION], found.get(_OFFSET, 0), found[_SIZE])


def asked_for(outputs: Iterable[Any]) -> Sequence[Delivery]:
    """Return what InferRequestedOutputTensor messages ask for beside names and contents.

    Of an output that is named more than once the first wish counts.
    """
    wishes: dict[str, Delivery] = {}
    for output in outputs:
        given = output.parameters
        if given and (wish := _delivery(output.name, given)):
            wishes.setdefault(output.name, wish)
    return list(wishes.values()) if wishes else ()


def _delivery(name: str, given: Mapping[str, Any]) -> Delivery | None:
    lies = place(name, given)
    if _CLASSES not in given:
        return lies and Delivery(name, 0, *lies)
    if given[_CLASSES].WhichOneof("parameter_choice") != "int64_param":
        raise InvalidRequest(f"invalid value type for '{_CLASSES}' parameter, expected int64_param")
    classes = given[_CLASSES].int64_param
    if classes < 1:
        raise InvalidRequest(f"invalid value for '{_CLASSES}' parameter, expected >= 0")
    if lies:
        raise InvalidRequest(f"output can't set both '{_REGION}' and '{_CLASSES}'")
    return Delivery(name, classes)


def _value(tensor: str, name: str, parameter: Any) -> Any:
    kind = _KINDS[name]
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InvalidRequest(
            f"invalid value type for '{name}' parameter for tensor '{tensor}', expected {kind}."
        )
    return getattr(parameter, kind)
