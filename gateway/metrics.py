"""Every figure that the gateway publishes, in one place.

One thread, the event loop's, writes plain numbers; a scrape turns them into Prometheus families.
Where the meaning is Triton's the name is Triton's, so that existing dashboards work.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.core import ModelKey, ModelRow, ModelState

READY = ModelState.READY

LATENCY_BOUNDS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Histogram:
    """Counts of observations by upper bound, ready for Prometheus."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def exposed(self) -> tuple[list[tuple[str, float]], float]:
        """Return cumulative buckets by upper bound, and the sum."""
        total = 0.0
        buckets = []
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        return buckets, self._sum


@dataclass(slots=True)
class ModelStats:
    """What one model version has done since the gateway started. Durations in seconds."""

    success: int = 0
    failure: int = 0
    refused: int = 0
    inferences: int = 0
    executions: int = 0
    request_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0
    loads: int = 0
    load_failures: int = 0
    unloads: int = 0
    load_s: float = 0.0
    batch_rows: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))

    def executed(self, rows: int, waits_s: Iterable[float], took_s: float) -> None:
        """Count one run of `rows` elements; its requests have waited `waits_s` in the queue."""
        self.executions += 1
        self.inferences += rows
        self.batch_rows.observe(rows)
        for waited_s in waits_s:
            self.queue_s += waited_s
            self.compute_s += took_s

    def answered(self, took_s: float) -> None:
        """Count one request that was answered after `took_s` seconds."""
        self.success += 1
        self.request_s += took_s
        self.latency.observe(took_s)


# name, help, and how to read it off a model's stats. The `nv_` names mean what Triton's mean.
_COUNTERS: tuple[tuple[str, str, Callable[[ModelStats], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda s: s.success),
    ("nv_inference_request_failure", "Requests failed", lambda s: s.failure),
    ("nv_inference_count", "Inferences performed (batch elements)", lambda s: s.inferences),
    ("nv_inference_exec_count", "Batches executed", lambda s: s.executions),
    (
        "nv_inference_request_duration_us",
        "Time from admission to answer, microseconds",
        lambda s: s.request_s * 1e6,
    ),
    (
        "nv_inference_queue_duration_us",
        "Time in the batch queue, microseconds",
        lambda s: s.queue_s * 1e6,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time in the engine, counted for each request, microseconds",
        lambda s: s.compute_s * 1e6,
    ),
    (
        "tidegate_requests_refused_total",
        "Requests turned away before they cost a slot: their deadlines could not be met",
        lambda s: s.refused,
    ),
    ("tidegate_model_loads_total", "Loads that succeeded", lambda s: s.loads),
    ("tidegate_model_load_failures_total", "Loads that failed", lambda s: s.load_failures),
    ("tidegate_model_unloads_total", "Unloads", lambda s: s.unloads),
    ("tidegate_model_load_seconds_total", "Time spent loading", lambda s: s.load_s),
)
_GAUGES: tuple[tuple[str, str, Callable[[ModelRow], float]], ...] = (
    (
        "nv_inference_pending_request_count",
        "Requests that wait for the model to be ready, or in its batch queue",
        lambda row: row.waiting + row.queued,
    ),
    ("tidegate_model_in_flight", "Requests in flight on a ready model", lambda row: row.in_flight),
    ("tidegate_model_ready", "1 while the model is loaded", lambda row: row.state == READY),
    (
        "tidegate_model_bytes",
        "Memory of a loaded model, by the size of its files",
        lambda row: row.resident_bytes,
    ),
)


class Metrics(Collector):
    """The figures of every model, and their Prometheus text."""

    def __init__(self) -> None:
        self._models: dict[ModelKey, ModelStats] = {}
        self._rows: Callable[[], Sequence[ModelRow]] = tuple
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def model(self, key: ModelKey) -> ModelStats:
        """Return the figures of one model version, to be written to."""
        return self._models.setdefault(key, ModelStats())

    def watch(self, rows: Callable[[], Sequence[ModelRow]]) -> None:
        """Read the gauges off these rows at every scrape."""
        self._rows = rows

    def exposition(self) -> bytes:
        """Return everything as Prometheus text (format 0.0.4)."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families of a scrape."""
        models = [
            ({"model": key.name, "version": str(key.version)}, stats)
            for key, stats in self._models.items()
        ]
        rows = self._rows()
        for name, text, read in _COUNTERS:
            # prometheus_client appends `_total` to whatever it calls a counter; Triton's names
            # have none, so these go out without a type.
            family = Metric(name, text, "unknown")
            for labels, stats in models:
                family.add_sample(name, labels, read(stats))
            yield family
        for name, text, look in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model", "version"])
            for row in rows:
                gauge.add_metric([row.key.name, str(row.key.version)], look(row))
            yield gauge
        for name, text, pick in (
            ("tidegate_batch_rows", "Batch elements in an executed batch", "batch_rows"),
            ("tidegate_request_seconds", "Time from admission to answer", "latency"),
        ):
            histogram = HistogramMetricFamily(name, text, labels=["model", "version"])
            for labels, stats in models:
                buckets, total = getattr(stats, pick).exposed()
                histogram.add_metric([*labels.values()], buckets, total)
            yield histogram
