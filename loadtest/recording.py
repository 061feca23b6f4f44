"""What the client saw during a run: latencies, errors, and what the watching cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

from loadtest.latency import Latencies

# Texts that differ from request to request must not grow the books without end.
MAX_ERROR_KINDS = 50
OTHER_ERRORS = ("OTHER", "further errors of other kinds")


class Recording:
    """Latencies of the answered requests, and the failed ones by status and text.

    Elapsed time runs from the first request's start to the last one's end, so that neither the
    spawning of users nor the shutting down dilutes the throughput.
    """

    def __init__(self) -> None:
        self.latencies = Latencies()
        self.errors: Counter[tuple[str, str]] = Counter()
        self._first_start_s = math.inf
        self._last_end_s = -math.inf
        self._opened_s = time.perf_counter()
        self._opened_cpu_s = time.process_time()

    def answered(self, start_s: float, end_s: float) -> None:
        """Count a request that was answered rightly. Times of `time.perf_counter`."""
        self.latencies.record(end_s - start_s)
        self._saw(start_s, end_s)

    def failed(self, start_s: float, end_s: float, status: str, text: str) -> None:
        """Count a request that failed. Its duration is in no percentile."""
        kind = (status, text)
        if kind not in self.errors and len(self.errors) >= MAX_ERROR_KINDS:
            kind = OTHER_ERRORS
        self.errors[kind] += 1
        self._saw(start_s, end_s)

    def _saw(self, start_s: float, end_s: float) -> None:
        self._first_start_s = min(self._first_start_s, start_s)
        self._last_end_s = max(self._last_end_s, end_s)

    def summary(self) -> dict[str, Any]:
        """Return everything as JSON values: what the child process hands to `tidegate loadtest`."""
        failures = self.errors.total()
        requests = self.latencies.count + failures
        elapsed_s = max(0.0, self._last_end_s - self._first_start_s) if requests else 0.0
        wall_s = time.perf_counter() - self._opened_s
        cpu_s = time.process_time() - self._opened_cpu_s
        return {
            "requests": requests,
            "failures": failures,
            "elapsed_s": round(elapsed_s, 6),
            "latency_ms": self.latencies.summary_ms(),
            "errors": [
                {"status": status, "text": text, "count": count}
                for (status, text), count in self.errors.most_common()
            ],
            "client_cpu_share": round(cpu_s / wall_s, 4) if wall_s > 0 else 0.0,
        }
