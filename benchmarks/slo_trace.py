"""Plain rules, rules that refuse what is late, and the SLO mode, on one bursty trace.

The gateway's own batcher runs on simulated time, over an engine that takes as long as a measured
model: `--curve` seconds and `--row` seconds for each row, with the noise of a real one. The trace
is made from a seed: Poisson arrivals at 0.7 of the capacity, with bursts of 2.5 times it. A third
of the requests must be answered within a fifth of the objective (by their own deadlines).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.provenance import describe
from gateway.batching.batcher import Batcher
from gateway.core import (
    NO_PARAMETERS,
    BatchPolicy,
    InferRequest,
    ModelKey,
    ModelSpec,
    Parameters,
    Tensor,
    TensorSpec,
)
from gateway.errors import DeadlineExceeded
from gateway.metrics import ModelStats
from tests.simulated_loop import simulate

MAX_BATCH = 64
NO_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request comes, and within which time its client wants the answer (seconds)."""

    at: float
    within_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One policy on the trace. `in_time` is the share of all requests answered as wanted."""

    policy: str
    in_time: float
    urgent_in_time: float
    refused: float
    p50_ms: float
    p99_ms: float
    mean_batch: float


class TimedEngine:
    """Echoes, and takes `base_s` and `row_s` for each row, give or take a tenth."""

    def __init__(self, base_s: float, row_s: float) -> None:
        self._base_s, self._row_s = base_s, row_s
        self._random = random.Random(7)

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        rows = len(inputs[0].data)
        await asyncio.sleep((self._base_s + self._row_s * rows) * self._random.uniform(0.95, 1.15))
        return [Tensor("y", "FP32", inputs[0].data)]


def trace(capacity: float, objective_s: float, duration_s: float) -> list[Arrival]:
    """Return arrivals at 0.7 of `capacity` (requests/s), at 2.5 times it for 0.3 s in every 3."""
    source = random.Random(20261123)
    arrivals = []
    at = 0.0
    while at < duration_s:
        burst = at % 3.0 > 2.7
        at += source.expovariate(capacity * (2.5 if burst else 0.7))
        arrivals.append(Arrival(at, objective_s / 5 if source.random() < 1 / 3 else objective_s))
    return arrivals


async def play(
    name: str, arrivals: list[Arrival], engine: TimedEngine, objective_s: float
) -> Outcome:
    """Send the trace through one batcher; `name` is the policy."""
    slo_s = objective_s if name == "slo" else 0.0
    spec = ModelSpec(
        key=ModelKey("m", 1),
        path=Path("m"),
        model_file="",
        platform="",
        max_batch_size=MAX_BATCH,
        inputs=(TensorSpec("x", "FP32", (1,)),),
        outputs=(TensorSpec("y", "FP32", (1,)),),
        batching=BatchPolicy(MAX_BATCH, True, (MAX_BATCH,), slo_s=slo_s),
        instances=1,
        file_bytes=0,
        modified_ns=0,
        config=b"",
    )
    stats = ModelStats()
    took: list[tuple[float, float]] = []
    loop = asyncio.get_running_loop()
    row = np.zeros((1, 1), np.float32)

    async def client(arrival: Arrival) -> None:
        deadline = arrival.at + (NO_DEADLINE_S if name == "plain" else arrival.within_s)
        request = InferRequest("m", "", "", [Tensor("x", "FP32", row)], [], deadline)
        try:
            await batcher.infer(request)
        except DeadlineExceeded:
            return
        took.append((loop.time() - arrival.at, arrival.within_s))

    async with asyncio.TaskGroup() as batches:
        batcher = Batcher(spec, engine, batches, stats)
        async with asyncio.TaskGroup() as clients:
            for arrival in arrivals:
                await asyncio.sleep(arrival.at - loop.time())
                clients.create_task(client(arrival))
        await batcher.drained()
        batcher.close()
    urgent = [arrival for arrival in arrivals if arrival.within_s < objective_s]
    times = np.array([seconds for seconds, _ in took]) * 1e3
    in_time = [within for seconds, within in took if seconds <= within]
    return Outcome(
        policy=name,
        in_time=round(len(in_time) / len(arrivals), 4),
        urgent_in_time=round(sum(w < objective_s for w in in_time) / len(urgent), 4),
        refused=round(1 - len(took) / len(arrivals), 4),
        p50_ms=round(float(np.percentile(times, 50)), 2),
        p99_ms=round(float(np.percentile(times, 99)), 2),
        mean_batch=round(stats.inferences / stats.executions, 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--curve", type=float, default=0.0012, help="seconds of an empty batch")
    parser.add_argument("--row", type=float, default=0.00011, help="seconds more for each row")
    parser.add_argument("--objective-ms", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the trace")
    parser.add_argument("--out", type=Path, help="write the result there as JSON")
    options = parser.parse_args()
    objective_s = options.objective_ms / 1e3
    capacity = MAX_BATCH / (options.curve + options.row * MAX_BATCH)
    arrivals = trace(capacity, objective_s, options.seconds)
    print(f"capacity {capacity:.0f} requests/s, {len(arrivals)} requests in {options.seconds:g} s")
    outcomes = [
        simulate(play(name, arrivals, TimedEngine(options.curve, options.row), objective_s))
        for name in ("plain", "refusing", "slo")
    ]
    for outcome in outcomes:
        print(outcome)
    if options.out:
        result = {
            "what": __doc__,
            "curve_s": options.curve,
            "row_s": options.row,
            "objective_ms": options.objective_ms,
            "requests": len(arrivals),
            "capacity_per_s": round(capacity),
            "policies": [asdict(outcome) for outcome in outcomes],
            **describe(),
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
