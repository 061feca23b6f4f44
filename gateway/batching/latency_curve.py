"""How long a batch of so many rows takes, as measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.core import BatchTime

# Weight of a new measurement: the estimate follows a change within about ten batches.
_GAIN = 0.2
# An upper estimate: mean and twice the mean deviation, about the 90th percentile.
_DEVIATIONS = 2.0
# A batch that took more than four times the mean (a pause of the machine, a page fault) moves the
# mean as if it had taken so long, and the deviation as it is.
_OUTLIER = 4.0
_LEAST_OUTLIER_S = 0.0005
# All figures lose half of themselves in so many seconds without any new one: requests are refused
# by them, and while all are refused nothing is measured. One slow batch must not close a model.
HALF_LIFE_S = 2.0
# One that is not confirmed while others are does so, too, slowly: where a size is avoided for what
# it took once, that is not known to be so any more.
POINT_HALF_LIFE_S = 30.0


@dataclass(slots=True)
class _Point:
    """Batches of about `rows` rows."""

    rows: float
    mean_s: float
    deviation_s: float
    measured_at: float

    def seconds(self, now: float, deviations: float) -> float:
        value = self.mean_s + deviations * self.deviation_s
        return value * math.pow(0.5, (now - self.measured_at) / POINT_HALF_LIFE_S)


class LatencyCurve:
    """A line through points: one for the batches of 1 row, of 2 and 3, of 4 to 7, and so on.

    `told` is what the exporter measured, perhaps on another machine: it counts from the first
    question on, and fades as a measurement of that moment would.
    """

    __slots__ = ("_measured_at", "_points", "_told")

    def __init__(self, told: Sequence[BatchTime] = ()) -> None:
        self._measured_at = 0.0
        self._points: dict[int, _Point] = {}
        self._told = told

    def observe(self, rows: int, seconds: float, now: float) -> None:
        """Take in one batch that was answered `seconds` after it was sent."""
        if self._told:
            self._begin(now)
        rows = max(1, rows)  # an empty batch costs no less than one row
        step = rows.bit_length()
        self._measured_at = now
        point = self._points.get(step)
        if point is None:
            self._points[step] = _Point(rows, seconds, 0.0, now)
            self._points = dict(sorted(self._points.items()))
            return
        # how far off the line was, not the mean: sizes within a point differ by a factor of two
        off = abs(seconds - self.typical(rows, now))
        point.deviation_s += _GAIN * (off - point.deviation_s)
        bound = max(_OUTLIER * point.mean_s, _LEAST_OUTLIER_S)
        point.mean_s += _GAIN * (min(seconds, bound) - point.mean_s)
        point.rows += _GAIN * (rows - point.rows)
        point.measured_at = now

    def predict(self, rows: int, now: float) -> float:
        """Return how long such a batch will hardly exceed, in seconds; 0 while nothing is known.

        Below the smallest size that was measured it is that size's figure, above the largest in
        proportion to the rows.
        """
        return self._at(rows, now, _DEVIATIONS)

    def typical(self, rows: int, now: float) -> float:
        """Return how long such a batch takes on the average, in seconds; otherwise as `predict`."""
        return self._at(rows, now, 0.0)

    def _begin(self, now: float) -> None:
        self._measured_at = now
        for each in self._told:
            deviation_s = max(0.0, each.p99_s - each.median_s) / _DEVIATIONS
            point = _Point(each.rows, each.median_s, deviation_s, now)
            self._points[each.rows.bit_length()] = point
        self._told = ()

    def _at(self, rows: int, now: float, deviations: float) -> float:
        if self._told:
            self._begin(now)
        faded = math.pow(0.5, (now - self._measured_at) / HALF_LIFE_S)
        return faded * self._on_line(rows, now, deviations)

    def _on_line(self, rows: int, now: float, deviations: float) -> float:
        below: _Point | None = None
        for point in self._points.values():
            if rows <= point.rows:
                end = point.seconds(now, deviations)
                if below is None:
                    return end
                start = below.seconds(now, deviations)
                return start + (end - start) * (rows - below.rows) / (point.rows - below.rows)
            below = point
        if below is None:
            return 0.0
        return below.seconds(now, deviations) * rows / below.rows
