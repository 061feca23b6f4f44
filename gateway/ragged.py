"""What `allow_ragged_batch`, `batch_input` and `batch_output` say of a model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class BatchInputKind(StrEnum):
    """What a batch input tells the model about its source input, in Triton's words.

    An element count is a request's, with all its rows; an item shape a row's.
    """

    ELEMENT_COUNT = "BATCH_ELEMENT_COUNT"
    ACCUMULATED = "BATCH_ACCUMULATED_ELEMENT_COUNT"
    ACCUMULATED_WITH_ZERO = "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
    MAX_AS_SHAPE = "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE"
    ITEM_SHAPE = "BATCH_ITEM_SHAPE"
    ITEM_SHAPE_FLATTEN = "BATCH_ITEM_SHAPE_FLATTEN"


@dataclass(frozen=True, slots=True)
class BatchInput:
    """An input that is made for each batch, of one `source` input of its requests."""

    name: str
    kind: BatchInputKind
    datatype: str
    source: str


@dataclass(frozen=True, slots=True)
class RaggedBatching:
    """How requests of different shapes share a batch.

    `inputs` come to the model as one dimension: the elements of all requests, one after the other.
    `scattered` are outputs that leave it so; each request's share has the shape of its input of
    the name given here, where the output's own dims are variable.
    """

    inputs: frozenset[str] = frozenset()
    batch_inputs: tuple[BatchInput, ...] = ()
    scattered: Mapping[str, str] = field(default_factory=dict)
