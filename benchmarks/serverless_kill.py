"""Rows `kill` and `only`: a tritonserver of the gateway's own is killed under 64 clients.

`kill`: one of two that both have the model; nobody may notice, and both must be back. `only`: the
only one. Half of the clients then wait for as long as it takes, the other half have half a second:
each request must be answered or refused at its deadline, and none twice. The echo answers with the
numbers and the id that it was asked with, different ones in each request.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.bars import Outcome
from benchmarks.processes import PeerError, wait_until
from benchmarks.serverless_client import OK, Calls, crowd, in_process
from benchmarks.serverless_gateway import Gateway, gateway, reason_absent, watching
from benchmarks.serverless_models import ECHO, make_echo

CLIENTS = 64
PATIENT_S, IMPATIENT_S = 30.0, 0.5
SECONDS = 20.0
KILL_AT_S = 5.0  # after the clients have been started, which takes them a second
LOOK_EVERY_S = 0.1
READY_WITHIN_S = 60.0
# A call whose deadline has passed may be told so a little later; the machine is a busy one then.
GRACE_S = 0.25

ERRORS_CLAIM = "kill -9 of one of two tritonservers: errors seen by 64 clients"
BACK_CLAIM, BACK_LIMIT_S = "kill -9 of one of two tritonservers: seconds until both are back", 15.0
LOST_CLAIM = "kill -9 of the only one: requests neither answered nor refused at their deadline"
TWICE_CLAIM = "kill -9 of the only one: answers beyond one for each request"
HELD_CLAIM = "kill -9 of the only one: requests held and answered after its restart"

Found = tuple[list[Outcome], dict[str, Any]]


def measure_kill(scratch: Path, rounds: int, seconds: float = SECONDS) -> Found:
    """Return the outcomes and the figures of each round."""
    errors = Outcome("kill", ERRORS_CLAIM, 0.0, False, None)
    back = Outcome("kill", BACK_CLAIM, BACK_LIMIT_S, False, None)
    if absent := reason_absent():
        return [replace(each, note=absent) for each in (errors, back)], {}
    repository = scratch / "repository"
    make_echo(repository, min_replicas="2")
    done: list[dict[str, Any]] = []
    try:
        for _ in range(rounds):
            done.append(_kill_one(repository, scratch, seconds))
            print(f"kill     {done[-1]}", flush=True)
    except (PeerError, OSError) as error:
        return [replace(each, note=str(error), broken=True) for each in (errors, back)], {}
    return [
        replace(errors, measured=float(max(each["errors"] for each in done))),
        replace(back, measured=max(each["back_s"] for each in done)),
    ], {"rounds": done}


def measure_only(scratch: Path, rounds: int, seconds: float = SECONDS) -> Found:
    """Return the outcomes and the figures of each round."""
    lost = Outcome("only", LOST_CLAIM, 0.0, False, None)
    twice = Outcome("only", TWICE_CLAIM, 0.0, False, None)
    held = Outcome("only", HELD_CLAIM, 1.0, True, None)
    if absent := reason_absent():
        return [replace(each, note=absent) for each in (lost, twice, held)], {}
    repository = scratch / "repository"
    make_echo(repository)
    done: list[dict[str, Any]] = []
    try:
        for _ in range(rounds):
            done.append(_kill_only(repository, scratch, seconds))
            print(f"only     {done[-1]}", flush=True)
    except (PeerError, OSError) as error:
        return [replace(each, note=str(error), broken=True) for each in (lost, twice, held)], {}
    return [
        replace(lost, measured=float(max(each["lost"] for each in done))),
        replace(twice, measured=float(max(each["answered_twice"] for each in done))),
        replace(held, measured=float(median(each["held_and_answered"] for each in done))),
    ], {"rounds": done}


def _kill_one(repository: Path, scratch: Path, seconds: float) -> dict[str, Any]:
    with gateway(repository, scratch, "--spawn-triton", "2") as served:
        _await_copies(served, 2)
        seen: list[tuple[float, int, int]] = []

        def look(now_s: float) -> None:
            seen.append((now_s, _copies(served), len(served.tritonservers())))

        asking = in_process(crowd, served.address, CLIENTS, PATIENT_S, seconds)
        with watching(look, LOOK_EVERY_S), asking as asked:
            killed_s = _kill_first(served)
            calls = asked.result()
    whole = [now_s for now_s, copies, servers in seen if copies == servers == 2]
    broken = [now_s for now_s, copies, servers in seen if now_s > killed_s and copies < 2]
    if not broken or whole[-1] < broken[-1]:
        raise PeerError("the second tritonserver was not seen to go and come back")
    back_s = min(now_s for now_s in whole if now_s > broken[-1]) - killed_s
    at_s = killed_s - calls.start_s
    return {
        "requests": len(calls),
        "errors": calls.errors(),
        "statuses": calls.statuses(),
        "back_s": round(back_s, 2),
        **_rates(calls, at_s, back_s, seconds),
    }


def _kill_only(repository: Path, scratch: Path, seconds: float) -> dict[str, Any]:
    with gateway(repository, scratch, "--spawn-triton", "1") as served:
        served.post(f"/tidegate/models/{ECHO}/prewarm")
        half = CLIENTS // 2
        before = served.figure("nv_inference_request_success", model=ECHO)
        patient = in_process(crowd, served.address, half, PATIENT_S, seconds)
        impatient = in_process(crowd, served.address, half, IMPATIENT_S, seconds)
        with patient as waiting, impatient as leaving:
            killed_s = _kill_first(served)
            stayed, left = waiting.result(), leaving.result()
        counted = served.figure("nv_inference_request_success", model=ECHO) - before
    lost = 0
    for calls, deadline_s in ((stayed, PATIENT_S), (left, IMPATIENT_S)):
        took_s = calls.done_s - calls.sent_s
        refused = (calls.status == "DEADLINE_EXCEEDED") & (took_s <= deadline_s + GRACE_S)
        lost += int(np.sum(~calls.right & ~refused))
    answered = int(np.sum(stayed.status == OK) + np.sum(left.status == OK))
    at_s = killed_s - stayed.start_s
    first_s = restarted_s(stayed, at_s)
    held = stayed.right & (stayed.sent_s < first_s) & (stayed.done_s >= first_s)
    return {
        "requests": len(stayed) + len(left),
        "statuses_patient": stayed.statuses(),
        "statuses_impatient": left.statuses(),
        "lost": lost,
        # an answer that came when its client had just left counts at the gateway alone
        "answered": answered,
        "answered_by_gateway": int(counted),
        "answered_twice": max(0, int(counted) - len(stayed) - len(left)),
        "wrong": stayed.wrong() + left.wrong(),
        "restart_s": round(first_s - at_s, 2),
        "held_and_answered": int(np.sum(held)),
    }


def restarted_s(calls: Calls, killed_s: float) -> float:
    """Return when the longest stretch without an answer ended, of those after the kill."""
    done_s = np.sort(calls.done_s[calls.right & (calls.done_s > killed_s)])
    if len(done_s) < 2:
        raise PeerError("nothing was answered after the kill")
    gaps = np.diff(done_s, prepend=killed_s)
    return float(done_s[int(np.argmax(gaps))])


def _rates(calls: Calls, at_s: float, back_s: float, seconds: float) -> dict[str, float]:
    """Return rates and latencies before the kill, while one is gone, and afterwards."""
    stretches = {
        "before": (1.0, at_s),
        "with_one": (at_s, at_s + back_s),
        "after": (at_s + back_s, seconds),
    }
    found = {}
    for name, (begin_s, end_s) in stretches.items():
        during = calls.during(begin_s, end_s)
        found[f"{name}_per_s"] = round(len(during) / max(end_s - begin_s, 1e-9), 1)
        found[f"{name}_p99_ms"] = during.latency_ms(0.99)
    found["longest_ms"] = calls.latency_ms(1.0)
    return found


def _kill_first(served: Gateway) -> float:
    """Kill a tritonserver once the clients are at it; return when."""
    time.sleep(KILL_AT_S)
    victim, *_ = served.tritonservers()
    os.kill(victim, signal.SIGKILL)
    return time.perf_counter()


def _await_copies(served: Gateway, wanted: int) -> None:
    if not wait_until(lambda: _copies(served) == wanted, served.process, READY_WITHIN_S):
        raise PeerError(f"the echo is not ready in {wanted} tritonservers")


def _copies(served: Gateway) -> int:
    """Return how many engines that are up have a model ready."""
    engines = served.get("/tidegate/engines")["engines"]
    return sum(each["up"] and each["models"] > 0 for each in engines)
