"""What a run in the engine is counted as, and what its requests' traces hear of it."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core import InferRequest, ModelSpec
from gateway.metrics import ModelStats


def count_run(
    stats: ModelStats,
    spec: ModelSpec,
    requests: Sequence[InferRequest],
    waits_s: Sequence[float],
    rows: int,
    started: float,
    joined: float,
    finished: float,
    split: float,
) -> None:
    """Count one run of `rows` elements, those of `requests`, which had waited `waits_s`.

    The times, on the loop's clock: the batch was begun, joined, answered by the engine, and split.
    """
    took_s = finished - joined
    stats.executed(rows, waits_s, took_s, joined - started, split - finished)
    if objective_s := spec.batching.slo_s:
        stats.slo_missed += sum(waited + finished - started > objective_s for waited in waits_s)
    for index, request in enumerate(requests):
        if request.trace is not None:
            model = str(spec.key)
            request.trace.span("queue", started - waits_s[index], started, model=model)
            request.trace.span(
                "engine", started, split, model=model, rows=rows, requests=len(requests)
            )
