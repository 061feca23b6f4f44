"""Latencies exact enough to trust a percentile, in memory that does not grow with the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

# Neighbouring buckets differ by 0.5 %, so the middle of a bucket is off by 0.25 % at the most.
# Locust's own percentiles round to whole milliseconds (and to two digits above 100 ms).
_LOG_WIDTH = math.log(1.005)
_SMALLEST_S = 1e-6


@dataclass(slots=True)
class Latencies:
    """Counts of durations in log-spaced buckets.

    Percentiles are nearest-rank: `percentile(0.99)` of n durations is the ceil(0.99 n)-th
    smallest, read off as the middle of its bucket (0.25 % error at the most). Count, sum, least
    and greatest are exact. Durations in seconds; those under 1 us share one bucket.
    """

    count: int = 0
    total_s: float = 0.0
    min_s: float = math.inf
    max_s: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict)

    def record(self, duration_s: float) -> None:
        """Count one duration."""
        index = int(math.log(max(duration_s, _SMALLEST_S) / _SMALLEST_S) / _LOG_WIDTH)
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1
        self.total_s += duration_s
        self.min_s = min(self.min_s, duration_s)
        self.max_s = max(self.max_s, duration_s)

    def percentile(self, fraction: float) -> float:
        """Return the nearest-rank percentile in seconds; NaN without a single duration."""
        if not self.count:
            return math.nan
        # 0.99 * 100 is a hair above 99 in binary: without the rounding its rank would be 100.
        rank = max(1, math.ceil(round(fraction * self.count, 9)))
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                middle = _SMALLEST_S * math.exp((index + 0.5) * _LOG_WIDTH)
                return min(max(middle, self.min_s), self.max_s)
        raise AssertionError("buckets hold fewer durations than were counted: this is a bug")

    def summary_ms(self) -> dict[str, float]:
        """Return least, mean, p50, p90, p95, p99 and greatest in milliseconds; {} if empty."""
        if not self.count:
            return {}
        seconds = {
            "min": self.min_s,
            "mean": self.total_s / self.count,
            "p50": self.percentile(0.50),
            "p90": self.percentile(0.90),
            "p95": self.percentile(0.95),
            "p99": self.percentile(0.99),
            "max": self.max_s,
        }
        return {name: round(value * 1e3, 4) for name, value in seconds.items()}
