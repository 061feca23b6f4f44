"""What `sequence_batching` says of a model, and how a request belongs to a sequence. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class SequenceMark(NamedTuple):
    """How a request belongs to a sequence. `id` is a whole number > 0 or a text, never empty."""

    id: int | str
    start: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Triton's ModelSequenceBatching."""

    max_idle_s: float = 1.0
