"""What a client may ask for of each output beside its contents. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.core import Parameters

Placed = Mapping[str, Parameters]
"""Outputs that lie in shared memory: name -> the parameters that say where. They are sent without
contents."""


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


class Regions(Protocol):
    """The shared memory that clients have registered."""

    def read(self, region: str, offset: int, size: int) -> bytes:
        """Return a copy of `size` bytes. Raises `InvalidRequest` where they are not there."""
        ...

    def write(self, region: str, offset: int, content: bytes | memoryview) -> None:
        """Copy bytes into a region. Raises `InvalidRequest` where they do not fit."""
        ...
