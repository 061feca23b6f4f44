"""Items by the moment at which each falls due. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

# A time that is due by less than this is due: sums of floats miss each other by less.
EPSILON_S = 1e-6
_SWEEP_AT_LEAST = 256


class DueTimes(Generic[T]):
    """A heap that items leave lazily: `live` says which of them still count.

    Its size stays within twice the live ones (or 256): what is done is swept out as it grows.
    """

    __slots__ = ("_heap", "_live", "_order", "_sweep_at")

    def __init__(self, live: Callable[[T], bool]) -> None:
        self._live = live
        self._heap: list[tuple[float, int, T]] = []
        self._order = count()  # first come first served at equal times; items are not compared
        self._sweep_at = _SWEEP_AT_LEAST

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, due: float, item: T) -> None:
        """Have `item` fall due at `due`."""
        heappush(self._heap, (due, next(self._order), item))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if self._live(entry[2])]
            heapify(self._heap)
            self._sweep_at = max(_SWEEP_AT_LEAST, 2 * len(self._heap))

    def next(self) -> float:
        """Return when the next live item falls due; inf where there is none."""
        heap = self._heap
        while heap and not self._live(heap[0][2]):
            heappop(heap)
        return heap[0][0] if heap else math.inf

    def pop_due(self, now: float) -> Iterator[T]:
        """Take out and yield the live items that are due, in the order of their times."""
        while self.next() <= now + EPSILON_S:
            yield heappop(self._heap)[2]
