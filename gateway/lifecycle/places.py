"""The engines of one kind, in the orders in which a decision looks for a place. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterable

from gateway.lifecycle.space import Space

Figure = tuple[float, ...]


class Order:
    """Engines, the least figure first. A decision changes the figures as it is made.

    A heap whose entries are put right as they come up, which does for figures that grow; `less`
    has to be told of one that shrinks. So a place among many engines costs no look at each.
    """

    def __init__(self, spaces: Iterable[Space], figure: Callable[[Space], Figure]) -> None:
        self._spaces = {space.engine.name: space for space in spaces}
        self._figure = figure
        self._heap = [(figure(space), name) for name, space in self._spaces.items()]
        heapq.heapify(self._heap)

    def walk(self) -> Generator[Space]:
        """Yield the engines in order. To be closed: the order is whole again then."""
        passed: dict[str, Figure] = {}
        try:
            while self._heap:
                figure, name = heapq.heappop(self._heap)
                if name in passed:
                    continue
                space = self._spaces[name]
                if (now := self._figure(space)) != figure:
                    heapq.heappush(self._heap, (now, name))
                    continue
                passed[name] = figure
                yield space
        finally:
            for name, figure in passed.items():
                heapq.heappush(self._heap, (figure, name))

    def less(self, space: Space) -> None:
        """Take it that an engine's figure has become less."""
        if space.engine.name in self._spaces:
            heapq.heappush(self._heap, (self._figure(space), space.engine.name))


class Places:
    """Where models may be loaded: by what is free, will be free, and is worth little."""

    def __init__(self, spaces: Iterable[Space], now: float) -> None:
        usable = [space for space in spaces if space.usable]
        self.free = Order(usable, lambda space: (-space.free, len(space.lodgers)))
        self.freeing = Order(usable, lambda space: (-space.free - space.freeing,))
        self.poor = {
            starving: Order(usable, lambda space, s=starving: space.least_worth(now, s))  # type: ignore[misc]
            for starving in (False, True)
        }
        # no engine can make room for as much or more: who waits has shown that
        self.barren = {False: float("inf"), True: float("inf")}
        # and nobody gives way to who is expected, as large as this or larger, and worth no more
        self.modest, self.modest_bytes = float("-inf"), float("inf")
