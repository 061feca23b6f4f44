"""Row `decision`: what one decision of the policy costs, by the number of models and engines.

    python -m benchmarks.serverless_decision

A fleet that is full: 100 models for each engine, of which 20 are in its memory, 1 of these in use;
1 in 100 of all models is asked for while it is cold, so that others have to make way. Times are of
`decide`, the pure function that the control loop calls, over a table of *all* models; the loop
itself hands over only those that are in memory or wanted there. Medians of many calls, in
milliseconds; the slowest beside.
"""

from __future__ import annotations

import gc
import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from benchmarks.bars import Outcome
from gateway.app import GC_THRESHOLD
from gateway.core import ModelKey, ModelState
from gateway.lifecycle.policy import Defaults, Load, Unload, decide
from gateway.placement import EngineKind
from gateway.rows import EngineRow, ModelRow, ReplicaRow, Snapshot

SIZES = (1_000, 3_000, 10_000)
MODELS_PER_ENGINE = 100
IN_MEMORY = 20  # of these
MODEL_BYTES = 100_000_000
ASKED_FOR = 100  # one of so many
NOW = 10_000.0
ROUNDS = 31
SEED = 20261123

CLAIM, LIMIT_MS = "10,000 models, 100 engines: milliseconds of a decision", 10.0
GROWTH_CLAIM = "growth of a decision from 1,000 to 10,000 models / that of n log n"
GROWTH_LIMIT = 1.0


def table(models: int) -> Snapshot:
    """Return a full fleet, some of whose cold models are asked for."""
    draw = random.Random(SEED)
    budget = IN_MEMORY * MODEL_BYTES
    count = models // MODELS_PER_ENGINE
    engines = tuple(
        EngineRow(f"triton-{number}:8001", EngineKind.TRITON, budget, loads_at_once=4)
        for number in range(count)
    )
    rows = []
    for number in range(models):
        row = ModelRow(
            ModelKey(f"m{number:05}", 1),
            *(ModelState.UNAVAILABLE, 0, 0, 0, 0, draw.uniform(0.0, 5_000.0)),
            kind=EngineKind.TRITON,
            size_bytes=MODEL_BYTES,
            load_s=draw.uniform(0.5, 5.0),
            frequency=draw.paretovariate(1.0),
            frequency_at=draw.uniform(5_000.0, NOW),
        )
        place, engine = number % MODELS_PER_ENGINE, engines[number // MODELS_PER_ENGINE]
        if place < IN_MEMORY:
            copy = ReplicaRow(engine.name, ModelState.READY, MODEL_BYTES, running=int(not place))
            row = replace(
                row,
                state=ModelState.READY,
                replicas=(copy,),
                running=copy.running,
                in_flight=copy.running,
                last_used=draw.uniform(NOW - 200.0, NOW),
                loaded_at=100.0,
            )
        elif number % ASKED_FOR == ASKED_FOR - 1:
            row = replace(row, waiting=3, waiting_since=NOW - draw.random())
        rows.append(row)
    draw.shuffle(rows)
    return Snapshot(tuple(rows), engines)


def taken_ms(action: Callable[[], object]) -> tuple[float, float]:
    """Return what an action takes, the median and the slowest of many."""
    took = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        took.append(time.perf_counter() - started)
    return round(median(took) * 1e3, 3), round(max(took) * 1e3, 3)


def decision_ms(models: int) -> tuple[float, float]:
    """Return what a decision costs that makes way for all who ask: the median, the slowest."""
    snapshot = table(models)
    defaults = Defaults(idle_timeout_s=300.0)
    made = decide(snapshot, NOW, defaults)
    unloads = sum(isinstance(action, Unload) for action in made.actions)
    assert unloads == models // ASKED_FOR, f"{unloads} make way"
    assert not any(isinstance(action, Load) for action in made.actions)
    return taken_ms(lambda: decide(snapshot, NOW, defaults))


@contextmanager
def collector_as_in_the_gateway() -> Iterator[None]:
    """Keep the garbage collector away from what is there already, as `gateway.app` does."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def measure() -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and what they were taken from."""
    with collector_as_in_the_gateway():
        taken = {models: decision_ms(models) for models in SIZES}
    took = {models: middle for models, (middle, _) in taken.items()}
    small, large = SIZES[0], SIZES[-1]
    growth = took[large] / took[small] / (large * math.log(large) / (small * math.log(small)))
    return [
        Outcome("decision", CLAIM, LIMIT_MS, False, took[large]),
        Outcome("decision", GROWTH_CLAIM, GROWTH_LIMIT, False, round(growth, 3)),
    ], {
        "decision_ms": {str(models): ms for models, ms in took.items()},
        "slowest_ms": {str(models): slowest for models, (_, slowest) in taken.items()},
    }


if __name__ == "__main__":
    print(json.dumps(measure()[1], indent=2))
