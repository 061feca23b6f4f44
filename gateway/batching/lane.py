"""One priority level of one bucket: which request is next. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, Protocol, TypeVar


@dataclass(slots=True, eq=False)
class Item:
    """A request in the queue. Times are absolute, in seconds of one clock.

    `rows` is its first dimension. `bucket` is equal for requests that may share a batch. `slo_at`
    is when the model's own latency objective has passed; the deadline, where it has none.
    """

    rows: int
    bucket: object
    queued_at: float
    deadline: float
    level: int
    timeout_s: float
    slo_at: float
    waiting: bool = field(default=False, init=False)
    delayed: bool = field(default=False, init=False)


ItemT = TypeVar("ItemT", bound=Item)


class Lane(Protocol[ItemT]):
    """Requests in the order in which they are served, the delayed behind the others."""

    def __iter__(self) -> Iterator[ItemT]: ...

    def __len__(self) -> int: ...

    def add(self, item: ItemT) -> None:
        """Take in a new item."""
        ...

    def delay(self, item: ItemT) -> None:
        """Move an item behind all that are not delayed."""
        ...

    def remove(self, item: ItemT) -> None:
        """Take an item out."""
        ...


class _Delaying(Generic[ItemT]):
    """What both kinds do with delayed items: they go last, in the order of their delays."""

    def __init__(self) -> None:
        # ordered, and any item leaves in constant time: clients go from the middle, too
        self._delayed: OrderedDict[ItemT, None] = OrderedDict()

    def delay(self, item: ItemT) -> None:
        self.remove(item)
        item.delayed = True
        self._delayed[item] = None

    def remove(self, item: ItemT) -> None:
        if item.delayed:
            del self._delayed[item]
        else:
            self._remove_fresh(item)

    def _remove_fresh(self, item: ItemT) -> None:
        raise NotImplementedError


class Fifo(_Delaying[ItemT]):
    """First in, first out."""

    def __init__(self) -> None:
        super().__init__()
        self._fresh: OrderedDict[ItemT, None] = OrderedDict()

    def __iter__(self) -> Iterator[ItemT]:
        yield from self._fresh
        yield from self._delayed

    def __len__(self) -> int:
        return len(self._fresh) + len(self._delayed)

    def add(self, item: ItemT) -> None:
        """Take in a new item, behind the others that are not delayed."""
        self._fresh[item] = None

    def _remove_fresh(self, item: ItemT) -> None:
        del self._fresh[item]


class EarliestDeadlineFirst(_Delaying[ItemT]):
    """By `slo_at`. Going in and out costs a binary search and a shift of the list's tail."""

    def __init__(self) -> None:
        super().__init__()
        self._fresh: list[tuple[float, int, ItemT]] = []
        self._order = count()  # equal times keep their order, and items are never compared
        self._places: dict[ItemT, int] = {}

    def __iter__(self) -> Iterator[ItemT]:
        for _, _, item in self._fresh:
            yield item
        yield from self._delayed

    def __len__(self) -> int:
        return len(self._fresh) + len(self._delayed)

    def add(self, item: ItemT) -> None:
        """Take in a new item, where its time puts it."""
        place = self._places[item] = next(self._order)
        insort(self._fresh, (item.slo_at, place, item))

    def _remove_fresh(self, item: ItemT) -> None:
        del self._fresh[bisect_left(self._fresh, (item.slo_at, self._places.pop(item)))]
