"""Row `zipf`: 1,000 models, memory for 20, Zipf(1.0) over them, Poisson arrivals, open loop.

A hit is a request that loads nothing: one that finds its model ready, or waits for a load that
another has caused. Beside it, on the same order of arrivals and with 20 slots: plain LRU, Belady's
optimum, and whoever knew beforehand which models are asked for most (`serverless_offline`). What is
in memory is read from outside while the load runs.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.bars import Outcome
from benchmarks.processes import PeerError
from benchmarks.serverless_client import (
    Calls,
    Question,
    Schedule,
    in_process,
    offer,
    percentile_ms,
    question,
)
from benchmarks.serverless_gateway import Gateway, gateway, resident_bytes, watching
from benchmarks.serverless_models import (
    SMALL_BYTES,
    SMALL_WIDTH,
    make_many,
    request,
    small_name,
)
from benchmarks.serverless_offline import belady_hits, lru_hits, poisson, popular_hits, zipf

MODELS, SLOTS = 1000, 20
BUDGET_BYTES = SLOTS * SMALL_BYTES
RATE, SECONDS = 150.0, 60.0
DEADLINE_S = 10.0
SAMPLE_EVERY_S = 0.5
# a warm request of these models takes 1 or 2 ms, a load 5
COLD_MS = 3.0

ERRORS_CLAIM = "zipf: requests not answered rightly"
LRU_CLAIM = "zipf: hit rate / plain LRU's"
BELADY_CLAIM = "zipf: hit rate / the offline optimum's (Belady)"
BUDGET_CLAIM = "zipf: most bytes of models in memory / budget"


def measure(
    scratch: Path, rounds: int, seconds: float = SECONDS
) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and the figures of each round; every round has a trace of its own."""
    repository = scratch / "repository"
    make_many(repository, MODELS)
    done: list[dict[str, Any]] = []
    try:
        for number in range(rounds):
            done.append(_round(repository, scratch, number, seconds))
            print(f"zipf     { {k: v for k, v in done[-1].items() if k != 'samples'} }", flush=True)
    except (PeerError, OSError) as error:
        broken = Outcome("zipf", ERRORS_CLAIM, 0.0, False, None, str(error), broken=True)
        limits = ((LRU_CLAIM, 1.0, True), (BELADY_CLAIM, 0.9, True), (BUDGET_CLAIM, 1.0, False))
        others = [
            replace(broken, claim=claim, limit=limit, at_least=at_least)
            for claim, limit, at_least in limits
        ]
        return [broken, *others], {"rounds": done}
    against_lru = median(each["hit_rate"] / each["lru"] for each in done)
    against_belady = median(each["hit_rate"] / each["belady"] for each in done)
    fullest = max(each["most_bytes"] for each in done) / BUDGET_BYTES
    return [
        Outcome("zipf", ERRORS_CLAIM, 0.0, False, float(max(each["errors"] for each in done))),
        Outcome("zipf", LRU_CLAIM, 1.0, True, round(against_lru, 4)),
        Outcome("zipf", BELADY_CLAIM, 0.9, True, round(against_belady, 4)),
        Outcome("zipf", BUDGET_CLAIM, 1.0, False, round(fullest, 4)),
    ], {"models": MODELS, "slots": SLOTS, "rate": RATE, "seconds": seconds, "rounds": done}


def _round(repository: Path, scratch: Path, seed: int, seconds: float) -> dict[str, Any]:
    count = int(RATE * seconds)
    trace = zipf(MODELS, count, seed)
    first = question(repository, small_name(0), 1, SMALL_WIDTH)  # they are all equal
    questions = tuple(
        Question(request(small_name(index), 1, SMALL_WIDTH), small_name(index), first.row)
        for index in range(MODELS)
    )
    schedule = Schedule(questions, trace, poisson(RATE, count, seed), DEADLINE_S)
    samples: list[tuple[float, int, int, int]] = []
    with gateway(repository, scratch, "--memory-bytes", str(BUDGET_BYTES)) as served:
        cpu_s = served.cpu_s()
        began_s = time.perf_counter()

        def look(now_s: float) -> None:
            samples.append((round(now_s - began_s, 2), *_in_memory(served)))

        with watching(look, SAMPLE_EVERY_S), in_process(offer, served.address, schedule) as offered:
            calls = offered.result()
        loads = served.figure("tidegate_model_loads_total")
        evictions = served.figure("tidegate_model_unloads_by_cause_total", cause="evicted")
        load_ms = served.figure("tidegate_model_load_seconds_total") / max(loads, 1) * 1e3
        cpu_share = (served.cpu_s() - cpu_s) / (time.perf_counter() - began_s)
    order = trace.tolist()
    return {
        "requests": count,
        "errors": calls.errors(),
        "statuses": calls.statuses(),
        "hit_rate": round(1.0 - loads / count, 4),
        "lru": round(lru_hits(order, SLOTS) / count, 4),
        "belady": round(belady_hits(order, SLOTS) / count, 4),
        "popular": round(popular_hits(order, SLOTS) / count, 4),
        "loads": int(loads),
        "evictions": int(evictions),
        "load_ms": round(load_ms, 2),
        **_latencies(calls),
        "client_late_p99_ms": calls.lag_ms(0.99),
        "gateway_cores": round(cpu_share, 2),
        "most_bytes": max(each[1] for each in samples),
        "most_ready": max(each[2] for each in samples),
        "most_resident_mib": max(each[3] for each in samples) >> 20,
        "samples": samples,
    }


def _latencies(calls: Calls) -> dict[str, float]:
    """Return percentiles, and those of the requests that met their model warm or waited for it."""
    took_s = (calls.done_s - calls.due_s)[calls.right]
    cold = took_s * 1e3 > COLD_MS
    return {
        "p50_ms": percentile_ms(took_s, 0.5),
        "p99_ms": percentile_ms(took_s, 0.99),
        f"share_below_{COLD_MS:g}_ms": round(float(1.0 - np.mean(cold)), 4),
        "those_p50_ms": percentile_ms(took_s[~cold], 0.5),
        "others_p50_ms": percentile_ms(took_s[cold], 0.5),
        "others_p99_ms": percentile_ms(took_s[cold], 0.99),
    }


def _in_memory(served: Gateway) -> tuple[int, int, int]:
    """Return the bytes set aside in the engine, the models ready, the process's resident bytes.

    Without `/metrics`, whose 40,000 lines for so many models take the gateway 50 ms.
    """
    (engine,) = served.get("/tidegate/engines")["engines"]
    ready = len(served.get("/tidegate/models?state=READY")["models"])
    return engine["bytes"], ready, resident_bytes(served.pid)
