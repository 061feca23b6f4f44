"""Row `day`: 24 simulated hours of 120 models, memory for a quarter of them.

    python -m benchmarks.serverless_day

The registry, the policy and the control loop are the gateway's own, on simulated time; an engine
takes 2 s for a load. The trace follows what M. Shahrad et al. found in Azure Functions ("Serverless
in the Wild", USENIX ATC 2020): 45 % of the functions are invoked once an hour or less, 81 % once a
minute or less (figure 5), 29 % of the applications are driven by timers alone (section 3.3; here by
a fixed period each); of the others half come at random over a day that has a peak and a trough, and
half in sessions of ten or so with half a minute between requests. Models that are asked for more
than twice a minute are thinned to that: they never sleep either way.

Held against it, on the same order of requests: the offline optimum with as many places (L. Belady,
1966: the one whose next request is farthest makes way), for whom loads take no time; and, in the
result, the optimum with as many model-seconds, which keeps models over the shortest gaps. A cold
start is a load that a request has waited for. Loads ahead of requests are none, and stand beside
("prewarms"): Belady's optimum loads on demand only, so with predictive prewarm the two differ.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bars import Outcome
from benchmarks.serverless_models import SMALL_BYTES, make_many, small_name
from benchmarks.serverless_offline import belady_hits
from gateway.batching.scheduling import make_scheduler
from gateway.core import ModelKey, ModelSpec, ModelState
from gateway.engine.base import Loaded
from gateway.fleet import Fleet, Node, NoEngine
from gateway.lifecycle.policy import Defaults
from gateway.lifecycle.reconciler import Reconciler
from gateway.metrics import Metrics
from gateway.placement import EngineKind
from gateway.registry import Registry
from gateway.repository.reader import ModelListing, read_model
from gateway.response_cache import ResponseCache
from gateway.router import Router
from tests.simulated_loop import simulate

DAY_S = 86_400.0
MODELS = 120
PLACES = MODELS // 4
LOAD_S = 2.0
SEEDS = (20261123, 20261124, 20261125)

# of the models: so many are asked for at most so often a day, evenly in logarithms in between
SHARES = (0.0, 0.45, 0.81, 1.0)
DAILY = (1.0, 24.0, 1440.0, 2880.0)
TIMERS = 0.29
SESSION, WITHIN_S = 10, 30.0

MEMORY_CLAIM, MEMORY_LIMIT = "24 hours: model-seconds in memory / always on", 0.25
COLD_CLAIM, COLD_LIMIT = "24 hours: requests that met a cold model / Belady on demand", 1.3
WAYS = {False: "", True: ", predictive prewarm"}


class Timed(NoEngine):
    """Takes its time for a load, and notes for how long models are in memory."""

    def __init__(self) -> None:
        self.model_s = 0.0
        self.most = 0
        self._since: dict[ModelKey, float] = {}

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        self._since[spec.key] = asyncio.get_running_loop().time()
        self.most = max(self.most, len(self._since))
        await asyncio.sleep(LOAD_S)
        return Loaded(spec, 0)

    async def unload(self, key: ModelKey) -> None:
        if key in self._since:
            self.model_s += asyncio.get_running_loop().time() - self._since.pop(key)


def trace(seed: int = SEEDS[0]) -> list[tuple[float, int]]:
    """Return the requests of a day: when, and for which model; ascending."""
    draw = np.random.default_rng(seed)
    found: list[tuple[float, int]] = []
    for model in range(MODELS):
        daily = 10 ** np.interp(draw.random(), SHARES, np.log10(DAILY))
        kind = draw.random()
        if kind < TIMERS:
            times = np.arange(draw.uniform(0, DAY_S / daily), DAY_S, DAY_S / daily)
        elif kind < TIMERS + (1 - TIMERS) / 2:
            times = _at_random(draw, daily)
        else:
            times = _in_sessions(draw, daily)
        found += [(float(at), model) for at in times]
    return sorted(found)


def _at_random(draw: np.random.Generator, daily: float) -> NDArray[np.float64]:
    """Return times of a Poisson process that is three times as busy at its peak as at night."""
    times = draw.uniform(0, DAY_S, draw.poisson(1.5 * daily))
    busy = (1 + 0.5 * np.sin(2 * np.pi * (times / DAY_S - 0.25))) / 1.5
    return times[draw.random(len(times)) < busy]


def _in_sessions(draw: np.random.Generator, daily: float) -> NDArray[np.float64]:
    starts = draw.uniform(0, DAY_S, max(1, draw.poisson(daily / SESSION)))
    sizes = draw.geometric(1 / SESSION, len(starts))
    times = np.concatenate(
        [
            start + np.cumsum(draw.exponential(WITHIN_S, size))
            for start, size in zip(starts, sizes, strict=True)
        ]
    )
    return times[times < DAY_S]


async def live(
    specs: list[ModelSpec], requests: list[tuple[float, int]], predict: bool
) -> dict[str, Any]:
    """Live through the day; return what it took."""
    metrics = Metrics()
    registry = Registry(metrics, predict)
    for spec in specs:
        registry.update(ModelListing(spec.key.name, (spec,)))
    engine = Timed()
    node = Node("engine", EngineKind.EMBEDDED, engine, PLACES * SMALL_BYTES)
    schedule = partial(make_scheduler, Router(registry), 60.0, ResponseCache(0))
    reconciler = Reconciler(
        registry,
        Fleet([node], registry.poke),
        Defaults(),
        schedule,
        metrics.cold_starts,
    )
    loop = asyncio.get_running_loop()
    running = asyncio.create_task(reconciler.run())
    cold = 0

    async def wait(model: int) -> None:
        entry = registry.find(small_name(model))
        await registry.ready(entry)
        with entry.lease:
            pass

    async with asyncio.TaskGroup() as waiting:
        for at, model in requests:
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            entry = registry.find(small_name(model))
            if entry.state is ModelState.READY:
                with entry.lease:
                    pass
            else:
                cold += not entry.waiting
                waiting.create_task(wait(model))
    await asyncio.sleep(max(0.0, DAY_S - loop.time()))
    running.cancel()
    await asyncio.wait([running])
    prewarms: Counter[str] = Counter()
    for stats in metrics.models.values():
        prewarms += stats.prewarms
    return {
        "predictive_prewarm": predict,
        "cold_starts": cold,
        "model_seconds": round(engine.model_s),
        "share_of_always_on": round(engine.model_s / (MODELS * DAY_S), 4),
        "most_models": engine.most,
        "prewarms": dict(prewarms),
    }


def fewest_for(requests: list[tuple[float, int]], model_s: float) -> int:
    """Return the fewest cold starts with so many model-seconds: the shortest gaps are kept."""
    by_model: dict[int, list[float]] = {}
    for at, model in requests:
        by_model.setdefault(model, []).append(at)
    gaps = np.sort(np.concatenate([np.diff(times) for times in by_model.values()]))
    kept = int(np.searchsorted(np.cumsum(gaps), model_s, side="right"))
    return len(requests) - kept


def measure() -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes, medians of several days, and what they were taken from."""
    with tempfile.TemporaryDirectory() as folder:
        make_many(Path(folder), MODELS)
        specs = [read_model(Path(folder), small_name(each)).versions[0] for each in range(MODELS)]
    days = [day for seed in SEEDS for day in _days(specs, trace(seed), seed)]
    outcomes = []
    for predict, way in WAYS.items():
        mine = [day for day in days if day["predictive_prewarm"] is predict]
        share = max(day["share_of_always_on"] for day in mine)
        met = median(day["cold_over_belady"] for day in mine)
        outcomes.append(Outcome("day", MEMORY_CLAIM + way, MEMORY_LIMIT, False, share))
        outcomes.append(Outcome("day", COLD_CLAIM + way, COLD_LIMIT, False, met))
    return outcomes, {"models": MODELS, "places": PLACES, "days": days}


def _days(
    specs: list[ModelSpec], requests: list[tuple[float, int]], seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a day as it goes with the idle timeout alone, and with predictive prewarm."""
    optimum = len(requests) - belady_hits([model for _, model in requests], PLACES)
    for predict in WAYS:
        day = simulate(live(specs, requests, predict))
        fewest = fewest_for(requests, day["model_seconds"])
        yield {
            "seed": seed,
            "requests": len(requests),
            **day,
            "belady": optimum,
            "cold_over_belady": round(day["cold_starts"] / optimum, 3),
            "fewest_with_these_model_seconds": fewest,
            "cold_over_fewest": round(day["cold_starts"] / fewest, 3),
        }


if __name__ == "__main__":
    print(json.dumps(measure()[1], indent=2))
