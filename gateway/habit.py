"""When a model is asked for again after it has fallen idle, learnt from when it was. Pure.

The hybrid histogram policy of M. Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), with
bins that grow: gaps of seconds are told apart as well as those of hours. Gaps that are too rare or
too long for a histogram have no forecast here (the paper falls back to ARIMA).
"""

from __future__ import annotations

import math
from array import array

SHORTEST_S = 1.0  # shorter gaps are a burst's own
LONGEST_S = 4 * 3600.0  # the paper's range
GROWTH = 1.1  # of each bin over the one before
BINS = math.ceil(math.log(LONGEST_S / SHORTEST_S) / math.log(GROWTH))
FEWEST_GAPS = 5
MOST_OUT_OF_RANGE = 0.5
HEAD, TAIL = 0.05, 0.99  # percentiles between which the next request is expected
MARGIN = 0.1
REMEMBERED_GAPS = 256  # with so many all count half from then on: habits change
# A forecast that is wider says less than the idle timeout.
WIDEST = 3.0


class Habit:
    """The idle gaps of one model, as counts in about 100 bins."""

    __slots__ = ("_counts", "_forecast", "_gaps", "_idle_since", "_too_long")

    def __init__(self) -> None:
        self._counts = array("I", bytes(4 * BINS))
        self._gaps = 0
        self._too_long = 0
        self._idle_since: float | None = None
        self._forecast: tuple[float, float] | None = None

    def use_begins(self, now: float) -> None:
        """Note that somebody wants the model."""
        if self._idle_since is None:
            return
        gap_s, self._idle_since = now - self._idle_since, None
        if gap_s < SHORTEST_S:
            return
        if gap_s >= LONGEST_S:
            self._too_long += 1
        else:
            if self._gaps >= REMEMBERED_GAPS:
                self._counts = array("I", (count // 2 for count in self._counts))
                self._gaps, self._too_long = sum(self._counts), self._too_long // 2
            self._counts[int(math.log(gap_s / SHORTEST_S) / math.log(GROWTH))] += 1
            self._gaps += 1
        self._forecast = self._learn()

    def use_ends(self, now: float) -> None:
        """Note that nobody uses the model any more."""
        self._idle_since = now

    @property
    def expected(self) -> tuple[float, float] | None:
        """From when until when the next request is expected; None where that is not known."""
        if self._forecast is None or self._idle_since is None:
            return None
        head_s, tail_s = self._forecast
        return self._idle_since + head_s, self._idle_since + tail_s

    def _learn(self) -> tuple[float, float] | None:
        seen = self._gaps + self._too_long
        if self._gaps < FEWEST_GAPS or self._too_long > MOST_OUT_OF_RANGE * seen:
            return None
        first, last = self._bin(HEAD), self._bin(TAIL)
        head_s = SHORTEST_S * GROWTH**first * (1 - MARGIN)
        tail_s = SHORTEST_S * GROWTH ** (last + 1) * (1 + MARGIN)
        return (head_s, tail_s) if tail_s <= WIDEST * head_s else None

    def _bin(self, fraction: float) -> int:
        """Return the first bin up to which there are so many of the gaps."""
        wanted, count = fraction * self._gaps, 0
        for index, gaps in enumerate(self._counts):
            count += gaps
            if count >= wanted and count:
                return index
        return BINS - 1
