"""An open-loop gRPC client: requests leave when they are due, whatever became of those before.

A program of its own, so that its work is not the harness's. Poisson arrivals at `--rate`, or all
`--count` requests at once. Latency counts from the moment at which a request was due. Prints one
JSON object: counts by outcome, and how late the client itself was.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np
import uvloop

if not __package__:  # run as a file: put the repository where benchmarks/ alone would be
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.h2load import METHOD, nearest_rank
from benchmarks.models import MODELS, Cases, grpc_row, make_cases

CONNECTIONS = 8
LEAD_S = 0.1  # between the last preparation and the first request


@dataclass(slots=True)
class Report:
    """What became of the requests."""

    sent: int = 0
    seconds: float = 0.0  # over which requests were due
    in_time: int = 0  # answered rightly within the deadline, counted from when they were due
    late: int = 0
    wrong: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    send_lag_ms: dict[str, float] = field(default_factory=dict)
    latency_ms: dict[str, float] = field(default_factory=dict)
    answered_s: list[float] = field(default_factory=list)  # seconds since the first was due


@dataclass(slots=True)
class Call:
    """One request: when it was due, sent and done (perf_counter), and what came back."""

    case: int
    due_s: float
    sent_s: float = 0.0
    done_s: float = 0.0
    status: str = "OK"
    answer: bytes = b""


async def send_all(
    address: str, cases: Cases, due_s: Sequence[float], deadline_s: float
) -> list[Call]:
    """Send a request at each of the moments (seconds from now); return them with their ends."""
    channels = [
        grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ],
        )
        for _ in range(CONNECTIONS)
    ]
    # bytes in and out: answers are parsed when all is over
    methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
        channel.unary_unary(METHOD) for channel in channels
    ]
    requests = [cases.grpc_request(index) for index in range(len(cases))]
    for method in methods:
        await method(requests[0], timeout=60.0)
    gc.collect()
    gc.disable()

    async def call(one: Call, method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        one.sent_s = time.perf_counter()
        left_s = one.due_s + deadline_s - one.sent_s
        try:
            one.answer = await method(requests[one.case], timeout=max(left_s, 1e-3))
        except grpc.aio.AioRpcError as error:
            one.status = error.code().name
        one.done_s = time.perf_counter()

    start_s = time.perf_counter() + LEAD_S
    calls = [Call(index % len(cases), start_s + offset_s) for index, offset_s in enumerate(due_s)]
    async with asyncio.TaskGroup() as tasks:
        for index, one in enumerate(calls):
            wait_s = one.due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.create_task(call(one, methods[index % CONNECTIONS]))
    for channel in channels:
        await channel.close()
    return calls


def report(calls: Sequence[Call], cases: Cases, deadline_s: float, *, arrivals: bool) -> Report:
    """Return what became of the calls; `arrivals`: with the moment of each answer."""
    start_s, end_s = calls[0].due_s, calls[-1].due_s
    answered = [one for one in calls if one.status == "OK"]
    right = [one for one in answered if cases.is_right(one.case, grpc_row(one.answer))]
    took_s = sorted(one.done_s - one.due_s for one in right)
    lags_s = sorted(one.sent_s - one.due_s for one in calls)
    in_time = sum(took <= deadline_s for took in took_s)
    return Report(
        sent=len(calls),
        seconds=end_s - start_s,
        in_time=in_time,
        late=len(right) - in_time,
        wrong=len(answered) - len(right),
        statuses=dict(Counter(one.status for one in calls)),
        send_lag_ms=_percentiles_ms(lags_s),
        latency_ms=_percentiles_ms(took_s),
        answered_s=sorted(round(one.done_s - start_s, 4) for one in right) if arrivals else [],
    )


def _percentiles_ms(ordered_s: Sequence[float]) -> dict[str, float]:
    if not ordered_s:
        return {}
    marks = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    return {name: round(nearest_rank(ordered_s, mark) * 1e3, 3) for name, mark in marks}


def main() -> None:
    """Send, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", required=True, choices=[model.name for model in MODELS])
    parser.add_argument("--rate", type=float, help="requests/s on average; without it all at once")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--deadline-ms", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    (model,) = (model for model in MODELS if model.name == options.model)
    cases = make_cases(options.repository, model)
    rng = np.random.default_rng(options.seed)
    due_s = (
        np.cumsum(rng.exponential(1 / options.rate, options.count)).tolist()
        if options.rate
        else [0.0] * options.count
    )
    deadline_s = options.deadline_ms / 1e3
    calls = uvloop.run(send_all(options.address, cases, due_s, deadline_s))
    done = report(calls, cases, deadline_s, arrivals=not options.rate)
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    main()
