"""The gateway's figures as Prometheus text (format 0.0.4).

Where the meaning is Triton's the name is Triton's, so that existing dashboards work. The text is
written here: prometheus_client appends `_total` to every counter, and Triton's names have none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest

from gateway.core import ModelKey, ModelState
from gateway.metrics import FailureReason, Histogram, Metrics, ModelStats
from gateway.rows import EngineRow, ModelRow

BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_PROCESS = CollectorRegistry()
ProcessCollector(registry=_PROCESS)
PlatformCollector(registry=_PROCESS)


def _microseconds(seconds: float) -> int:
    return int(seconds * 1e6)


# name, help, and how to read it off a model's figures
_COUNTERS: tuple[tuple[str, str, Callable[[ModelStats], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda s: s.success),
    ("nv_inference_count", "Batch elements that have run in the engine", lambda s: s.inferences),
    ("nv_inference_exec_count", "Batches that have run in the engine", lambda s: s.executions),
    (
        "nv_inference_request_duration_us",
        "Time from admission to answer, microseconds",
        lambda s: _microseconds(s.request_s),
    ),
    (
        "nv_inference_queue_duration_us",
        "Time in the queue, microseconds",
        lambda s: _microseconds(s.queue_s),
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Time to join batches, counted for each request, microseconds",
        lambda s: _microseconds(s.input_s),
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time in the engine, counted for each request, microseconds",
        lambda s: _microseconds(s.infer_s),
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time to split batches, counted for each request, microseconds",
        lambda s: _microseconds(s.output_s),
    ),
    (
        "nv_cache_num_hits_per_model",
        "Requests answered from the response cache",
        lambda s: s.cache_hits,
    ),
    (
        "nv_cache_num_misses_per_model",
        "Requests that the response cache had no answer to",
        lambda s: s.cache_misses,
    ),
    (
        "nv_cache_hit_duration_per_model",
        "Time to find answers in the response cache, microseconds",
        lambda s: _microseconds(s.cache_hit_s),
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Time to look in vain in the response cache and to fill it, microseconds",
        lambda s: _microseconds(s.cache_miss_s),
    ),
    (
        "tidegate_requests_refused_total",
        "Requests turned away before they cost a slot: their deadlines could not be met",
        lambda s: s.refused,
    ),
    (
        "tidegate_requests_invalid_total",
        "Requests that did not fit the model; they are no failures",
        lambda s: s.invalid,
    ),
    (
        "tidegate_objective_missed_total",
        "Requests answered later than the model's objective, tidegate.slo_ms",
        lambda s: s.slo_missed,
    ),
    ("tidegate_model_loads_total", "Loads that succeeded", lambda s: s.loads),
    ("tidegate_model_load_failures_total", "Loads that failed", lambda s: s.load_failures),
    ("tidegate_model_unloads_total", "Unloads", lambda s: s.unloads),
    ("tidegate_model_load_seconds_total", "Time spent loading", lambda s: s.load_s),
)
_GAUGES: tuple[tuple[str, str, Callable[[ModelRow, ModelStats], float]], ...] = (
    (
        "nv_inference_pending_request_count",
        "Requests that wait for the model to be ready, or for an instance of it",
        lambda row, _stats: row.waiting + row.queued,
    ),
    (
        "nv_model_load_duration_secs",
        "What the last load took, seconds",
        lambda _row, stats: stats.last_load_s,
    ),
    (
        "tidegate_model_in_flight",
        "Requests in flight on a ready model",
        lambda row, _stats: row.in_flight,
    ),
    (
        "tidegate_model_ready",
        "1 while the model is loaded",
        lambda row, _stats: int(row.state is ModelState.READY),
    ),
    (
        "tidegate_model_bytes",
        "Memory of a model, all copies together: what their loads took, or are to take",
        lambda row, _stats: row.resident_bytes,
    ),
    (
        "tidegate_model_waiting",
        "Requests that wait until the model is loaded",
        lambda row, _stats: row.waiting,
    ),
)
# name, help, the histogram, and what to multiply its seconds with
_HISTOGRAMS: tuple[tuple[str, str, Callable[[ModelStats], Histogram], int], ...] = (
    (
        "nv_inference_first_response_histogram_ms",
        "Time from admission to the first answer, milliseconds",
        lambda s: s.first_response or s.latency,
        1000,
    ),
    ("tidegate_request_seconds", "Time from admission to answer", lambda s: s.latency, 1),
    ("tidegate_queue_seconds", "Time in the queue", lambda s: s.queue_time, 1),
    ("tidegate_compute_seconds", "Time of a batch in the engine", lambda s: s.compute_time, 1),
)


def exposition(metrics: Metrics) -> bytes:
    """Return everything as Prometheus text.

    Histograms are there for the models that have been used: a repository may have thousands more.
    """
    lines = "".join(f"{line}\n" for line in _lines(metrics))
    return lines.encode() + generate_latest(_PROCESS)


def _lines(metrics: Metrics) -> Iterator[str]:
    models = {
        key: (_labels(key, stats.tags), stats) for key, stats in sorted(metrics.models.items())
    }
    for name, text, read in _COUNTERS:
        yield from _head(name, "counter", text)
        for labels, stats in models.values():
            yield f"{name}{{{labels}}} {read(stats)}"
    name = "nv_inference_request_failure"
    yield from _head(name, "counter", "Requests that failed")
    for labels, stats in models.values():
        for reason in FailureReason:
            yield f'{name}{{{labels},reason="{reason}"}} {stats.failures[reason]}'
    name = "tidegate_model_unloads_by_cause_total"
    yield from _head(name, "counter", "Copies that left memory, by why")
    for labels, stats in models.values():
        for cause, count in stats.unload_causes.items():
            yield f'{name}{{{labels},cause="{cause}"}} {count}'
    name = "tidegate_model_prewarms_total"
    yield from _head(name, "counter", "Loads ahead of requests that were expected; did these come")
    for labels, stats in models.values():
        for outcome, count in stats.prewarms.items():
            yield f'{name}{{{labels},outcome="{outcome}"}} {count}'
    rows = metrics.rows()
    yield from _engines(metrics.engines(), rows)
    name = "tidegate_replica_bytes"
    yield from _head(name, "gauge", "Memory of one copy of a model, or what is set aside for it")
    for row in rows:
        for replica in row.replicas:
            labels = f'{models[row.key][0]},engine="{_escaped(replica.engine)}"'
            yield f"{name}{{{labels}}} {replica.bytes}"
    name = "tidegate_requests_overloaded_total"
    yield from _head(name, "counter", "Requests refused at the door, by the model that was full")
    for model in {"": 0, **metrics.overloaded}:
        yield f'{name}{{model="{_escaped(model)}"}} {metrics.overloaded[model]}'
    name = "tidegate_shadow_requests_total"
    yield from _head(name, "counter", "Copies of requests for another version, whose answers go")
    for (key, outcome), count in metrics.shadows.items():
        yield f'{name}{{{_labels(key, {})},outcome="{outcome}"}} {count}'
    shown = [(row, *models[row.key]) for row in rows]
    for name, text, look in _GAUGES:
        yield from _head(name, "gauge", text)
        for row, labels, stats in shown:
            yield f"{name}{{{labels}}} {look(row, stats)}"
    used = [(labels, stats) for labels, stats in models.values() if stats.success or stats.batches]
    for name, text, pick, scale in _HISTOGRAMS:
        yield from _head(name, "histogram", text)
        for labels, stats in used:
            buckets, total = pick(stats).exposed()
            scaled = [(bound * scale, count) for bound, count in buckets]
            yield from _histogram(name, labels, scaled, total * scale)
    name = "tidegate_cold_start_seconds"
    yield from _head(name, "histogram", "Loads that requests have waited for, by phase")
    for phase, histogram in metrics.cold_starts.items():
        yield from _histogram(name, f'phase="{phase}"', *histogram.exposed())
    name = "tidegate_batch_rows"
    yield from _head(name, "histogram", "Batch elements in an executed batch")
    for labels, stats in used:
        yield from _histogram(name, labels, _batch_buckets(stats), stats.inferences)


def _engines(engines: Sequence[EngineRow], rows: Sequence[ModelRow]) -> Iterator[str]:
    """Yield what each engine holds."""
    held: Counter[str] = Counter()
    copies: Counter[str] = Counter()
    for row in rows:
        for replica in row.replicas:
            held[replica.engine] += replica.bytes
            copies[replica.engine] += replica.state is ModelState.READY
    gauges: tuple[tuple[str, str, Callable[[EngineRow], int]], ...] = (
        ("tidegate_engine_up", "1 while the engine answers", lambda engine: int(engine.up)),
        (
            "tidegate_engine_bytes",
            "Memory of the models in the engine, loads under way included",
            lambda engine: held[engine.name],
        ),
        (
            "tidegate_engine_budget_bytes",
            "Memory that models may take in the engine; 0 is no bound",
            lambda engine: engine.budget_bytes,
        ),
        (
            "tidegate_engine_models",
            "Model versions that are ready in the engine",
            lambda engine: copies[engine.name],
        ),
    )
    for name, text, look in gauges:
        yield from _head(name, "gauge", text)
        for engine in engines:
            yield f'{name}{{engine="{_escaped(engine.name)}"}} {look(engine)}'


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def _histogram(
    name: str, labels: str, buckets: Iterable[tuple[float, int]], total: float
) -> Iterator[str]:
    """Yield the lines of a histogram; `buckets` are cumulative, and the last one has no bound."""
    count = 0
    for bound, count in buckets:
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        yield f'{name}_bucket{{{labels},le="{text}"}} {count}'
    yield f"{name}_count{{{labels}}} {count}"
    yield f"{name}_sum{{{labels}}} {total}"


def _batch_buckets(stats: ModelStats) -> Iterator[tuple[float, int]]:
    counts = [0] * (len(BATCH_BOUNDS) + 1)
    for rows, batch in stats.batches.items():
        counts[bisect_left(BATCH_BOUNDS, rows)] += batch.count
    return zip((*BATCH_BOUNDS, float("inf")), accumulate(counts), strict=True)


def _labels(key: ModelKey, tags: Mapping[str, str]) -> str:
    """Return a model's labels; those of its `metric_tags` have a `_` before their names."""
    own = "".join(f',_{_name(tag)}="{_escaped(value)}"' for tag, value in tags.items())
    return f'model="{_escaped(key.name)}",version="{key.version}"{own}'


def _name(tag: str) -> str:
    return re.sub(r"\W", "_", tag, flags=re.ASCII)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
