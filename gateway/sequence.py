"""What `sequence_batching` says of a model, and how a request belongs to a sequence. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class SequenceMark(NamedTuple):
    """How a request belongs to a sequence. `id` is a whole number > 0 or a text, never empty."""

    id: int | str
    start: bool = False
    end: bool = False


class ControlKind(StrEnum):
    """What a control input says of a row's request."""

    START = "CONTROL_SEQUENCE_START"
    READY = "CONTROL_SEQUENCE_READY"
    END = "CONTROL_SEQUENCE_END"
    CORRID = "CONTROL_SEQUENCE_CORRID"


@dataclass(frozen=True, slots=True)
class Control:
    """An input that clients do not give: an element a row, `false` or `true`; CORRID: the id."""

    kind: ControlKind
    name: str
    datatype: str
    false: float = 0
    true: float = 1


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that a model gives back to be given it again with the sequence's next request.

    `dims` exclude the batch dimension, -1 is any size. A sequence begins with `initial_dims` of
    zeros (BYTES: empty), or with the elements in `initial`, as raw contents have them.
    """

    input_name: str
    output_name: str
    datatype: str
    dims: tuple[int, ...]
    initial_dims: tuple[int, ...]
    initial: bytes = b""


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Triton's ModelSequenceBatching.

    `slots` is how many sequences may be under way for each instance. When a batch of them is cut,
    by either strategy, is in the model's `BatchPolicy`.
    """

    max_idle_s: float = 1.0
    slots: int = 1
    controls: tuple[Control, ...] = ()
    states: tuple[State, ...] = ()
