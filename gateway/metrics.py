"""Every figure that the gateway keeps of its models, in one place.

One thread, the event loop's, writes plain numbers; who asks for them reads: exposition.py for
Prometheus, the transport for ModelStatistics.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gateway import errors
from gateway.core import ModelKey
from gateway.placement import Cause
from gateway.rows import EngineRow, ModelRow

LATENCY_BOUNDS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
COLD_START_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
MAX_RESPONSES = 256  # answers of one request, to a decoupled model, that are told apart


class FailureReason(StrEnum):
    """Why a request failed, in Triton's words."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


class Shadowed(StrEnum):
    """What became of a copy of a request that was sent to another version."""

    ANSWERED = "answered"
    FAILED = "failed"
    DROPPED = "dropped"


class Phase(StrEnum):
    """What a cold start consists of, one after the other."""

    WAIT = "wait"  # until an engine has room
    FETCH = "fetch"  # of files of a repository in object storage
    LOAD = "load"
    FIRST_RUN = "first_run"


_REASONS: Mapping[FailureReason, tuple[type[Exception], ...]] = {
    FailureReason.REJECTED: (errors.QueueFull, errors.QueueTimeout),
    # a Triton knows no deadlines: a client's ends in a cancellation there
    FailureReason.CANCELED: (errors.DeadlineExceeded,),
    FailureReason.BACKEND: (
        errors.InferenceFailed,
        errors.EngineUnavailable,
        errors.EngineStalled,
        errors.ModelLost,
    ),
}


class Histogram:
    """Counts of observations by upper bound, ready for Prometheus."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def exposed(self) -> tuple[list[tuple[float, int]], float]:
        """Return cumulative buckets by upper bound, the last one's infinite, and the sum."""
        total = 0
        buckets = []
        for bound, count in zip([*self._bounds, float("inf")], self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets, self._sum


@dataclass(slots=True)
class BatchStats:
    """The runs of batches of one size: how many, and what joining, running, splitting took."""

    count: int = 0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0


@dataclass(slots=True)
class ResponseStats:
    """The n-th answers of a decoupled model's requests, each timed from the one before it."""

    count: int = 0
    took_s: float = 0.0


@dataclass(slots=True)
class ModelStats:
    """What one model version has done since the gateway started. Durations in seconds.

    As in Triton each request is charged with the whole compute time of its batch. `invalid` ones
    did not fit the model, and are no failures of it. `refused` ones were turned away because their
    deadlines could not be met; `slo_missed` were answered later than the model's own objective.
    `tags` are the configuration's own labels.
    """

    success: int = 0
    invalid: int = 0
    refused: int = 0
    slo_missed: int = 0
    failures: Counter[FailureReason] = field(default_factory=Counter)
    failed_s: float = 0.0
    executed_requests: int = 0
    request_s: float = 0.0
    queue_s: float = 0.0
    input_s: float = 0.0
    infer_s: float = 0.0
    output_s: float = 0.0
    last_inference: float = 0.0
    loads: int = 0
    load_failures: int = 0
    unloads: int = 0
    unload_causes: Counter[Cause] = field(default_factory=Counter)
    prewarms: Counter[str] = field(default_factory=Counter)
    load_s: float = 0.0
    last_load_s: float = 0.0
    cache_hits: int = 0
    cache_hit_s: float = 0.0
    cache_misses: int = 0
    cache_miss_s: float = 0.0
    batches: dict[int, BatchStats] = field(default_factory=dict)
    responses: list[ResponseStats] = field(default_factory=list)
    tags: Mapping[str, str] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    queue_time: Histogram = field(default_factory=Histogram)
    compute_time: Histogram = field(default_factory=Histogram)
    first_response: Histogram | None = None

    @property
    def failure(self) -> int:
        """Requests that failed, whatever the reason."""
        return self.failures.total()

    @property
    def executions(self) -> int:
        """Batches that have run."""
        return sum(batch.count for batch in self.batches.values())

    @property
    def inferences(self) -> int:
        """Elements of all batches that have run."""
        return sum(rows * batch.count for rows, batch in self.batches.items())

    def executed(
        self,
        rows: int,
        waits_s: Sequence[float],
        took_s: float,
        input_s: float = 0.0,
        output_s: float = 0.0,
    ) -> None:
        """Count one run of `rows` elements; its requests have waited `waits_s` in the queue.

        `input_s` and `output_s` are what joining and splitting the batch took besides.
        """
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStats()
        batch.count += 1
        batch.input_s += input_s
        batch.infer_s += took_s
        batch.output_s += output_s
        requests = len(waits_s)
        self.executed_requests += requests
        self.queue_s += sum(waits_s)
        self.input_s += input_s * requests
        self.infer_s += took_s * requests
        self.output_s += output_s * requests
        self.compute_time.observe(took_s)
        for waited_s in waits_s:
            self.queue_time.observe(waited_s)
        self.last_inference = time.time()

    def answered(self, took_s: float) -> None:
        """Count one request that was answered after `took_s` seconds."""
        self.success += 1
        self.request_s += took_s
        self.latency.observe(took_s)

    def failed(self, error: BaseException, took_s: float) -> None:
        """Count one request that ended in an error, or was cancelled by its client."""
        if isinstance(error, errors.InvalidRequest | errors.NotSupported):
            self.invalid += 1
            return
        self.failures[_reason(error)] += 1
        self.failed_s += took_s

    def responded(self, index: int, took_s: float) -> None:
        """Count one of the answers, from 0 on, of a decoupled model to one request."""
        if index == 0:
            if self.first_response is None:
                self.first_response = Histogram()
            self.first_response.observe(took_s)
        if index < MAX_RESPONSES:
            if index == len(self.responses):
                self.responses.append(ResponseStats())
            self.responses[index].count += 1
            self.responses[index].took_s += took_s


def _reason(error: BaseException) -> FailureReason:
    if isinstance(error, asyncio.CancelledError):
        return FailureReason.CANCELED
    for reason, kinds in _REASONS.items():
        if isinstance(error, kinds):
            return reason
    return FailureReason.OTHER


class Metrics:
    """The figures of every model, and those of the whole gateway.

    `overloaded` counts requests that found the gateway full, by the model whose own bound was
    reached; "" is the bound on all of them together. `cold_starts` has the seconds of loads that
    requests have waited for, by phase.
    """

    def __init__(self) -> None:
        self.models: dict[ModelKey, ModelStats] = {}
        self.overloaded: Counter[str] = Counter()
        self.shadows: Counter[tuple[ModelKey, Shadowed]] = Counter()
        self.cold_starts = {phase: Histogram(COLD_START_BOUNDS_S) for phase in Phase}
        self.rows: Callable[[], Sequence[ModelRow]] = tuple
        self.engines: Callable[[], Sequence[EngineRow]] = tuple

    def model(self, key: ModelKey) -> ModelStats:
        """Return the figures of one model version, to be written to."""
        return self.models.setdefault(key, ModelStats())

    def forget(self, key: ModelKey) -> None:
        """Let the figures of a version go that has left the repository."""
        self.models.pop(key, None)

    def watch(self, rows: Callable[[], Sequence[ModelRow]]) -> None:
        """Have gauges read off these rows."""
        self.rows = rows
