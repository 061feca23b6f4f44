"""How long a batch of so many rows takes, as measured. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Weight of a new measurement: the estimate follows a change within about ten batches.
_GAIN = 0.2
# An upper estimate: mean and twice the mean deviation, about the 90th percentile.
_DEVIATIONS = 2.0
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
        known.mean_s += _GAIN * (seconds - known.mean_s)
        known.measured_at = now

    def predict(self, rows: int, now: float) -> float:
        """Return how long such a batch will hardly exceed, in seconds; 0 while nothing is known.

        A size that was never measured is estimated from the nearest: no dearer than the next
        larger one, and than the next smaller one as many times as its rows go in.
        """
        step = rows.bit_length()
        found = self._upper(step, now)
        if found is not None or not self._estimates:
            return found or 0.0
        bounds = []
        larger = [known for known in self._estimates if known > step]
        smaller = [known for known in self._estimates if known < step]
        if larger:
            bounds.append(self._upper(min(larger), now) or 0.0)
        if smaller:
            nearest = max(smaller)
            bounds.append((self._upper(nearest, now) or 0.0) * 2.0 ** (step - nearest))
        return min(bounds)

    def _upper(self, step: int, now: float) -> float | None:
        known = self._estimates.get(step)
        if known is None:
            return None
        upper = known.mean_s + _DEVIATIONS * known.deviation_s
        return upper * math.pow(0.5, (now - known.measured_at) / HALF_LIFE_S)
