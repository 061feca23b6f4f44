"""An event loop whose time jumps to the next timer, and which raises on deadlock."""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Every task waits and no timer will ever wake one."""


class _NoWait(selectors.SelectSelector):
    """Never waits: what select would have slept becomes a jump of the loop's time."""

    loop: SimulatedLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Deadlock
        if not ready and timeout:
            self.loop.jump()
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time stands still while there is work, then jumps. A test of an hour takes no time."""

    def __init__(self) -> None:
        selector = _NoWait()
        selector.loop = self
        self._now = 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def jump(self) -> None:
        """Move the time to the next timer."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0].cancelled():
            heapq.heappop(scheduled)
        if scheduled:
            self._now = max(self._now, scheduled[0].when())


def simulate(story: Coroutine[Any, Any, T]) -> T:
    """Run a story on simulated time and return what it returns. Raises `Deadlock`."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(story)
