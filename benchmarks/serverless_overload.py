"""Row `overload`: 3 times the capacity offered for 30 s, each request with a deadline.

The peak is the most right answers within the deadline, a second, of stretches that offer from 0.8
to 1.1 times what a closed loop of 16 gets. Then one schedule: half of that for 5 s, 3 times for
30 s, half for 10 s. Goodput counts right answers within the deadline of the moment at which each
request was due. A refusal's time counts from when it was sent. Latency is normal again where for a
second nothing is refused and the median is no more than half as much again as in the first 5 s.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.bars import Outcome
from benchmarks.processes import PeerError
from benchmarks.serverless_client import (
    OK,
    REFUSED,
    Calls,
    Question,
    Schedule,
    in_process,
    offer,
    percentile_ms,
    question,
)
from benchmarks.serverless_gateway import Gateway, gateway
from benchmarks.serverless_hot import capacity_of
from benchmarks.serverless_models import HEAVY, HEAVY_SIDE, make_heavy
from benchmarks.serverless_offline import poisson

DEADLINE_S = 0.25
CALM_SHARE, OVERLOAD = 0.5, 3.0
PEAK_SHARES = (0.8, 0.9, 1.0, 1.1)
BEFORE_S, SECONDS, AFTER_S = 5.0, 30.0, 10.0
PEAK_S = 5.0
WARM_S = 1.0  # of each stretch, which do not count
WINDOW_S = 0.5
NORMAL = 1.5

GOODPUT_CLAIM = "overload: goodput at 3 x capacity / peak goodput"
REFUSED_CLAIM, REFUSED_LIMIT_MS = "overload: p99 of refusals, ms", 50.0
NORMAL_CLAIM, NORMAL_LIMIT_S = "overload: seconds until latency is normal again", 2.0
WRONG_CLAIM = "overload: requests neither answered rightly nor refused"


def measure(
    scratch: Path, rounds: int, seconds: float = SECONDS
) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and the figures of each round."""
    repository = scratch / "repository"
    make_heavy(repository)
    asked = question(repository, HEAVY, 1, HEAVY_SIDE**2)
    bars = [
        Outcome("overload", GOODPUT_CLAIM, 0.9, True, None),
        Outcome("overload", REFUSED_CLAIM, REFUSED_LIMIT_MS, False, None),
        Outcome("overload", NORMAL_CLAIM, NORMAL_LIMIT_S, False, None),
        Outcome("overload", WRONG_CLAIM, 0.0, False, None),
    ]
    done: list[dict[str, Any]] = []
    try:
        with gateway(repository, scratch) as served:
            for number in range(rounds):
                done.append(_round(served, asked, number, seconds))
                print(f"overload {done[-1]}", flush=True)
    except (PeerError, OSError) as error:
        return [replace(bar, note=str(error), broken=True) for bar in bars], {"rounds": done}
    figures = ("goodput_share", "refused_p99_ms", "normal_after_s")
    measured = [median(each[name] for each in done) for name in figures]
    measured.append(float(max(each["failed"] for each in done)))
    found = [replace(bar, measured=value) for bar, value in zip(bars, measured, strict=True)]
    return found, {"deadline_ms": DEADLINE_S * 1e3, "seconds": seconds, "rounds": done}


def _round(served: Gateway, asked: Question, seed: int, seconds: float) -> dict[str, Any]:
    capacity = capacity_of(served, asked)
    peaks = {}
    for share in PEAK_SHARES:
        calls = _offered(served, asked, [(share * capacity, WARM_S + PEAK_S)], seed)
        peaks[share] = round(goodput(calls, WARM_S, WARM_S + PEAK_S), 1)
    peak = max(peaks.values())
    over_s = BEFORE_S + seconds
    steps = [(CALM_SHARE, BEFORE_S), (OVERLOAD, seconds), (CALM_SHARE, AFTER_S)]
    calls = _offered(served, asked, [(share * capacity, for_s) for share, for_s in steps], seed)
    during = calls.during(BEFORE_S, over_s)
    rate = goodput(calls, BEFORE_S + WARM_S, over_s)
    refused = np.isin(during.status, REFUSED)
    at_once_s = (during.done_s - during.sent_s)[refused]
    return {
        "capacity": round(capacity, 1),
        "peaks": peaks,
        "offered": round(OVERLOAD * capacity, 1),
        "goodput": round(rate, 1),
        "goodput_share": round(rate / peak, 4),
        "statuses": during.statuses(),
        "refused_late_share": round(float(np.mean(at_once_s * 1e3 > REFUSED_LIMIT_MS)), 4),
        "refused_p50_ms": percentile_ms(at_once_s, 0.5),
        "refused_p99_ms": percentile_ms(at_once_s, 0.99),
        "answered_p99_ms": during.latency_ms(0.99),
        "before_p50_ms": calls.during(WARM_S, BEFORE_S).latency_ms(0.5),
        "before_p99_ms": calls.during(WARM_S, BEFORE_S).latency_ms(0.99),
        "after_p99_ms": calls.during(over_s + NORMAL_LIMIT_S, over_s + AFTER_S).latency_ms(0.99),
        "normal_after_s": normal_after_s(calls, over_s),
        "failed": int(np.sum(~calls.right & ~np.isin(calls.status, REFUSED))),
        "client_late_p50_ms": during.lag_ms(0.5),
        "client_late_p99_ms": during.lag_ms(0.99),
    }


def goodput(calls: Calls, begin_s: float, end_s: float) -> float:
    """Return the right answers a second to requests due in that time, within the deadline."""
    during = calls.during(begin_s, end_s)
    in_time = during.right & (during.done_s - during.due_s <= DEADLINE_S)
    return float(np.sum(in_time)) / (end_s - begin_s)


def normal_after_s(calls: Calls, over_s: float) -> float:
    """Return how long after the overload two windows in a row are as before it; inf for never."""
    usual_ms = calls.during(WARM_S, BEFORE_S).latency_ms(0.5)
    end_s = float(calls.due_s[-1])
    normal = []
    for begin_s in np.arange(over_s, end_s - WINDOW_S, WINDOW_S):
        window = calls.during(begin_s, begin_s + WINDOW_S)
        calm = bool(np.all(window.status == OK)) and window.latency_ms(0.5) <= NORMAL * usual_ms
        normal.append(calm)
        if normal[-2:] == [True, True]:
            return round(float(begin_s - WINDOW_S - over_s), 2)
    return float("inf")


def _offered(
    served: Gateway, asked: Question, steps: list[tuple[float, float]], seed: int
) -> Calls:
    """Offer so many requests a second for so long, one step after the other."""
    due_s: list[float] = []
    begin_s = 0.0
    for rate, for_s in steps:
        count = int(rate * for_s)
        # scaled, so that each step has exactly its requests and its time
        arrivals = poisson(1.0, count + 1, seed)
        due_s += (begin_s + arrivals[:count] / arrivals[-1] * for_s).tolist()
        begin_s += for_s
    schedule = Schedule((asked,), np.zeros(len(due_s), np.int64), np.array(due_s), DEADLINE_S)
    with in_process(offer, served.address, schedule) as offered:
        return offered.result()
