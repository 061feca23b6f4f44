"""Row `goodput`: what is left of the peak when half as much again arrives as can be served.

Capacity is what 64 closed-loop clients get. Then Poisson arrivals at 1.5 times that, each request
with a deadline of 50 ms. What counts are right answers within 50 ms of the moment at which the
request was due, a second, as a share of that capacity. A gateway that serves first come, first
served answers everything too late; one that refuses what cannot be in time stays near its peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

from benchmarks import h2load
from benchmarks.bars import Outcome, ratio
from benchmarks.h2load import H2loadError, Load
from benchmarks.peers import Scene, gateway
from benchmarks.processes import PeerError
from benchmarks.provenance import ROOT
from benchmarks.throughput import InvalidRun, target
from gateway.transport.grpc_tuning import EXPERIMENTS

CLAIM = "goodput within 50 ms at 1.5 x capacity / capacity"
LIMIT = 0.9
DEADLINE_MS = 50.0
OVERLOAD = 1.5
LOAD = Load(8, 8)
# A client whose p99 is later than this in most rounds has measured itself.
LAG_LIMIT_MS = 10.0


def measure(scene: Scene, rounds: int, seconds: float) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcome and the figures; capacity and overload in turn."""
    done: list[dict[str, Any]] = []
    try:
        with gateway(scene) as server:
            h2load.run(target(server, scene), LOAD, 1.0)
            for number in range(rounds):
                peak = h2load.run(target(server, scene), LOAD, seconds)
                rate = OVERLOAD * peak.requests_per_s
                report = open_loop(
                    *("--address", server.address, "--repository", str(scene.repository)),
                    *("--model", scene.model.name, "--rate", f"{rate:.1f}"),
                    *("--count", str(int(rate * seconds)), "--deadline-ms", f"{DEADLINE_MS:g}"),
                    *("--seed", str(number)),
                    limit_s=seconds + 60,
                )
                if report["wrong"]:
                    raise InvalidRun(f"{report['wrong']} answers were wrong")
                goodput = report["in_time"] / report["seconds"]
                done.append(
                    {
                        "capacity": peak.requests_per_s,
                        "capacity_p50_ms": peak.p50_ms,
                        "offered": round(rate, 1),
                        "goodput": round(goodput, 1),
                        **{key: value for key, value in report.items() if key != "answered_s"},
                    }
                )
                print(
                    f"goodput  capacity {peak.requests_per_s:,.0f}/s, offered {rate:,.0f}/s, "
                    f"in time {goodput:,.0f}/s; {report['statuses']}; "
                    f"client late by p99 {report['send_lag_ms']['p99']:.1f} ms",
                    flush=True,
                )
    except (PeerError, InvalidRun, H2loadError) as error:
        return [Outcome("goodput", CLAIM, LIMIT, True, None, str(error), broken=True)], {}
    lags = [each["send_lag_ms"]["p99"] for each in done]
    late_ms = median(lags)
    note = f"the client itself was {late_ms:.0f} ms late" if late_ms > LAG_LIMIT_MS else ""
    share = ratio([each["goodput"] for each in done], [each["capacity"] for each in done])
    outcome = Outcome("goodput", CLAIM, LIMIT, True, share, note)
    return [outcome], {"deadline_ms": DEADLINE_MS, "overload": OVERLOAD, "rounds": done}


def open_loop(*arguments: str, limit_s: float) -> dict[str, Any]:
    """Run the open-loop client; return its report. Raises `InvalidRun` where it failed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "open_loop.py"), *arguments]
    # the same I/O layer as the gateway's: it costs the client less
    environ = {"GRPC_EXPERIMENTS": EXPERIMENTS, **os.environ}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environ)
    except subprocess.TimeoutExpired:
        raise InvalidRun(f"the open-loop client did not end within {limit_s:g} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise InvalidRun(f"the open-loop client failed: {said[-1]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
