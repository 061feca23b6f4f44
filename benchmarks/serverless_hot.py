"""Row `hot`: the p99 of a model in use while others are loaded and unloaded beside it.

The hot model gets half of what it can answer, by Poisson arrivals. In every other stretch 2 of 20
other models of 20 MB are loaded each second, and as many unloaded, in turn: at most 4 are there at
a time. They have all been loaded before, so the session cache has them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.bars import Outcome, ratio
from benchmarks.processes import PeerError, wait_until
from benchmarks.serverless_client import (
    Calls,
    Question,
    Schedule,
    crowd,
    in_process,
    offer,
    question,
)
from benchmarks.serverless_gateway import Gateway, gateway
from benchmarks.serverless_models import HEAVY, HEAVY_SIDE, make_heavy, make_larger
from benchmarks.serverless_offline import poisson

LARGER = 20
LOADS_PER_S = 2.0
HELD = 4
SHARE = 0.5
SECONDS = 10.0
DEADLINE_S = 5.0
CLIENTS = 16
STORED_WITHIN_S = 120.0
SETTLE_S = 1.0

CLAIM = "hot: p99 with 2 loads and unloads a second / without"
ERRORS_CLAIM = "hot: requests not answered rightly"
LIMIT = 2.0


def measure(
    scratch: Path, rounds: int, seconds: float = SECONDS
) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and the figures of each round: a stretch without loads and one with."""
    repository = scratch / "repository"
    make_heavy(repository)
    names = make_larger(repository, LARGER)
    hot = question(repository, HEAVY, 1, HEAVY_SIDE**2)
    done: list[dict[str, Any]] = []
    try:
        with gateway(repository, scratch, "--allow-repository-control") as served:
            _store(served, names, scratch / "sessions")
            capacity = capacity_of(served, hot)
            for number in range(rounds):
                schedule = _schedule(hot, SHARE * capacity, seconds, number)
                calm = _offered(served, schedule)
                with _loads_beside(served, names) as loads:
                    busy = _offered(served, schedule)
                done.append(
                    {
                        "calm_p50_ms": calm.latency_ms(0.5),
                        "calm_p99_ms": calm.latency_ms(0.99),
                        "busy_p50_ms": busy.latency_ms(0.5),
                        "busy_p99_ms": busy.latency_ms(0.99),
                        "errors": calm.errors() + busy.errors(),
                        "requests": len(calm) + len(busy),
                        "client_late_p99_ms": max(calm.lag_ms(0.99), busy.lag_ms(0.99)),
                        "load_ms": loads,
                    }
                )
                print(f"hot      {capacity:.0f}/s {done[-1]}", flush=True)
    except (PeerError, OSError) as error:
        return [
            Outcome("hot", CLAIM, LIMIT, False, None, str(error), broken=True),
            Outcome("hot", ERRORS_CLAIM, 0.0, False, None, str(error), broken=True),
        ], {"rounds": done}
    share = ratio([each["busy_p99_ms"] for each in done], [each["calm_p99_ms"] for each in done])
    errors = float(max(each["errors"] for each in done))
    return [
        Outcome("hot", CLAIM, LIMIT, False, share),
        Outcome("hot", ERRORS_CLAIM, 0.0, False, errors),
    ], {
        "capacity": round(capacity, 1),
        "load_ms": round(median(itertools.chain(*(each["load_ms"] for each in done))), 1),
        "rounds": done,
    }


def capacity_of(served: Gateway, asked: Question, for_s: float = 4.0) -> float:
    """Return how many right answers a second a crowd gets, after a second to warm up."""
    with in_process(crowd, served.address, CLIENTS, DEADLINE_S, for_s + 1.0, asked) as asking:
        calls = asking.result()
    return float(np.sum(calls.right & (calls.done_s >= 1.0) & (calls.done_s < 1.0 + for_s))) / for_s


def _schedule(asked: Question, rate: float, seconds: float, seed: int) -> Schedule:
    count = int(rate * seconds)
    return Schedule((asked,), np.zeros(count, np.int64), poisson(rate, count, seed), DEADLINE_S)


def _offered(served: Gateway, schedule: Schedule) -> Calls:
    with in_process(offer, served.address, schedule) as offered:
        return offered.result()


def _store(served: Gateway, names: list[str], cache: Path) -> None:
    """Have a copy of each of the larger models in the session cache, and none in memory."""
    for name in names:
        served.post(f"/v2/repository/models/{name}/load")

    def stored() -> bool:
        # all are equal, and so is their copy
        return len(list(cache.glob("*/entry.json"))) > 0

    if not wait_until(stored, served.process, STORED_WITHIN_S):
        raise PeerError("the session cache has not stored the models")
    time.sleep(SETTLE_S + 2.5)  # each goes over to its copy after its own while
    for name in names:
        served.post(f"/v2/repository/models/{name}/unload")


@contextmanager
def _loads_beside(served: Gateway, names: list[str]) -> Iterator[list[float]]:
    """Load and unload models in turn during the block; give the milliseconds that loads took."""
    took_ms: list[float] = []
    over = threading.Event()

    def work() -> None:
        held: list[str] = []
        due_s = time.perf_counter()
        for name in itertools.cycle(names):
            started_s = time.perf_counter()
            served.post(f"/v2/repository/models/{name}/load")
            took_ms.append(round((time.perf_counter() - started_s) * 1e3, 1))
            held.append(name)
            if len(held) > HELD:
                served.post(f"/v2/repository/models/{held.pop(0)}/unload")
            due_s += 1.0 / LOADS_PER_S
            if over.wait(max(0.0, due_s - time.perf_counter())):
                break
        for name in held:
            served.post(f"/v2/repository/models/{name}/unload")

    thread = threading.Thread(target=work, name="loads")
    thread.start()
    try:
        yield took_ms
    finally:
        over.set()
        thread.join()
