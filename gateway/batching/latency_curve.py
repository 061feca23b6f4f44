"""How long a batch of so many rows takes, as measured. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Weight of a new measurement: the estimate follows a change within about ten batches.
_GAIN = 0.2
# An upper estimate: mean and twice the mean deviation, about the 90th percentile.
_DEVIATIONS = 2.0
# A batch that took more than four times the mean (a pause of the machine, a page fault) moves the
# mean as if it had taken so long, and the deviation as it is.
_OUTLIER = 4.0
_LEAST_OUTLIER_S = 0.0005
# A figure loses half of itself in so many seconds without a new one. Requests are refused by the
# estimate, and while all are refused nothing is measured: one slow batch must not close a model.
HALF_LIFE_S = 2.0


@dataclass(slots=True)
class _Estimate:
    mean_s: float
    deviation_s: float
    measured_at: float


class LatencyCurve:
    """Estimates by batch size, in steps of a factor of two: 1, 2, 4, 8 rows and so on."""

    __slots__ = ("_estimates",)

    def __init__(self) -> None:
        self._estimates: dict[int, _Estimate] = {}

    def observe(self, rows: int, seconds: float, now: float) -> None:
        """Take in one batch that was answered `seconds` after it was sent."""
        step = rows.bit_length()
        known = self._estimates.get(step)
        if known is None:
            self._estimates[step] = _Estimate(seconds, 0.0, now)
            return
        known.deviation_s += _GAIN * (abs(seconds - known.mean_s) - known.deviation_s)
        bound = max(_OUTLIER * known.mean_s, _LEAST_OUTLIER_S)
        known.mean_s += _GAIN * (min(seconds, bound) - known.mean_s)
        known.measured_at = now

    def predict(self, rows: int, now: float) -> float:
        """Return how long such a batch will hardly exceed, in seconds; 0 while nothing is known.

        A size that was never measured is estimated from the nearest: no dearer than the next
        larger one, and than the next smaller one as many times as its rows go in.
        """
        return self._estimate(rows.bit_length(), now, _DEVIATIONS)

    def typical(self, rows: int, now: float) -> float:
        """Return how long such a batch takes on the average, in seconds; otherwise as `predict`."""
        return self._estimate(rows.bit_length(), now, 0.0)

    def _estimate(self, step: int, now: float, deviations: float) -> float:
        known = self._estimates.get(step)
        if known is not None:
            value = known.mean_s + deviations * known.deviation_s
            return value * math.pow(0.5, (now - known.measured_at) / HALF_LIFE_S)
        bounds = []
        larger = [other for other in self._estimates if other > step]
        smaller = [other for other in self._estimates if other < step]
        if larger:
            bounds.append(self._estimate(min(larger), now, deviations))
        if smaller:
            nearest = max(smaller)
            factor = 2.0 ** (step - nearest)
            bounds.append(self._estimate(nearest, now, deviations) * factor)
        return min(bounds, default=0.0)
