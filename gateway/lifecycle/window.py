"""How busy a model has been lately, and how many copies that calls for. Pure."""

from __future__ import annotations

import math
from collections import deque

STABLE_S = 60.0
PANIC_S = 6.0
PANIC_AT = 2.0  # times the copies that there are


class Window:
    """The average of a figure over the last `length_s` seconds, by the time that it held.

    Each observation holds until the next. There is no average before the first.
    """

    def __init__(self, length_s: float) -> None:
        self._length_s = length_s
        self._steps: deque[tuple[float, float]] = deque()  # from when on, what

    def observe(self, now: float, value: float) -> None:
        """Take it that the figure is `value` from now on."""
        self._steps.append((now, value))
        # the newest step that began before the window reaches into it
        while len(self._steps) > 1 and self._steps[1][0] <= now - self._length_s:
            self._steps.popleft()

    def average(self, now: float) -> float | None:
        """Return the average up to now; None where nothing is known."""
        if not self._steps:
            return None
        begin = max(self._steps[0][0], now - self._length_s)
        if now <= begin:
            return self._steps[-1][1]
        total = 0.0
        until = now
        for start, value in reversed(self._steps):
            total += value * max(0.0, until - max(start, begin))
            until = start
        return total / (now - begin)


class Scaler:
    """How many copies of one model its concurrency calls for, as Knative's autoscaler has it.

    By the average over a minute, and by that over 6 s where it calls for twice as many copies as
    there are, or more: in that panic copies are only added, until a minute has passed without
    cause. (knative/serving, pkg/autoscaler/scaling.)
    """

    def __init__(self) -> None:
        self._stable = Window(STABLE_S)
        self._panic = Window(PANIC_S)
        self._panicked_at = -math.inf

    def observe(self, now: float, concurrency: float) -> None:
        """Note how many requests are in flight from now on."""
        self._stable.observe(now, concurrency)
        self._panic.observe(now, concurrency)

    def desired(self, now: float, ready: int, target: float) -> int:
        """Return how many copies there should be, at least 1; 0 where nothing is known.

        `target` is how many requests in flight one copy is meant for.
        """
        stable, lately = self._stable.average(now), self._panic.average(now)
        if stable is None or lately is None:
            return 0
        ready = max(1, ready)
        urgent = math.ceil(lately / target)
        if urgent >= PANIC_AT * ready:
            self._panicked_at = now
        if now < self._panicked_at + STABLE_S:
            return max(urgent, ready)
        return max(1, ready // 2, math.ceil(stable / target))

    @property
    def quiet(self) -> bool:
        """Whether nothing was in flight when last observed: nothing can come of looking again."""
        return not self._stable._steps or self._stable._steps[-1][1] == 0
