"""Row `crowd`: 10,000 requests waiting at once, and 1,000 connections that do nothing.

Memory has to be bounded and is stated. Of the waiting requests the last ones must be slowed by
their place in the queue alone: answers have to leave as fast at the end as in the middle.
"""

from __future__ import annotations

import resource
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks import h2load
from benchmarks.bars import Outcome
from benchmarks.goodput import open_loop
from benchmarks.h2load import H2loadError, Load
from benchmarks.peers import Scene, gateway
from benchmarks.processes import PeerError, Server
from benchmarks.throughput import InvalidRun, target

WAITING = 10_000
# The first ones are answered while the last ones are still being sent.
SENT = 14_000
IDLE = 1_000
PENDING = "nv_inference_pending_request_count"

# KiB. A request's own message is 3.1 KiB; gRPC keeps a call, asyncio a task, the gateway arrays.
MOST_KIB_A_REQUEST = 48.0
MOST_KIB_A_CONNECTION = 32.0
LEAST_STEADINESS = 0.8
MOST_IDLE_SLOWDOWN = 1.25


def measure(scene: Scene, quick: Scene, seconds: float) -> tuple[list[Outcome], dict[str, Any]]:
    """Return the outcomes and the figures.

    `scene` has a slow model, to make a queue; `quick` one whose latency is the gateway's own.
    """
    flags = ("--max-inflight", str(2 * SENT), "--max-inflight-per-model", str(2 * SENT))
    try:
        with gateway(replace(scene, flags=flags)) as server:
            idle = _idle(server, quick, seconds)
            queue = _queue(server, scene)
    except (PeerError, InvalidRun, H2loadError, OSError) as error:
        claim = "10,000 waiting requests and 1,000 idle connections"
        return [Outcome("crowd", claim, 1.0, True, None, str(error), broken=True)], {}
    return [
        Outcome("crowd", "most requests waiting at once", WAITING, True, queue["most_waiting"]),
        Outcome("crowd", "share of them answered rightly", 1.0, True, queue["right_share"]),
        Outcome(
            *("crowd", "answers/s, last quarter / second quarter", LEAST_STEADINESS, True),
            queue["steadiness"],
        ),
        Outcome(
            *("crowd", "KiB of memory for a waiting request", MOST_KIB_A_REQUEST, False),
            queue["kib_a_request"],
        ),
        Outcome(
            *("crowd", "KiB of memory for an idle connection", MOST_KIB_A_CONNECTION, False),
            idle["kib_a_connection"],
        ),
        Outcome(
            *("crowd", "p50 of one client beside them / alone", MOST_IDLE_SLOWDOWN, False),
            idle["slowdown"],
        ),
    ], {"queue": queue, "idle": idle}


def _queue(server: Server, scene: Scene) -> dict[str, Any]:
    before = server.memory_bytes()
    server.forget_peak()
    with _watching(server) as seen:
        report = open_loop(
            *("--address", server.address, "--repository", str(scene.repository)),
            *("--model", scene.model.name, "--count", str(SENT), "--deadline-ms", "120000"),
            limit_s=150,
        )
    peak, after = server.peak_memory_bytes(), server.memory_bytes()
    answered = report["answered_s"]
    quarter = max(1, len(answered) // 4)
    # the first quarter is answered while the client is still sending
    second_s = answered[2 * quarter - 1] - answered[quarter - 1]
    last_s = answered[4 * quarter - 1] - answered[3 * quarter - 1]
    figures = {
        "sent": SENT,
        "most_waiting": seen["most"],
        "right_share": report["in_time"] / SENT,
        "statuses": report["statuses"],
        "steadiness": round(second_s / last_s, 3),
        "answers_per_s": round(len(answered) / answered[-1], 1),
        "memory_mib": {"before": _mib(before), "peak": _mib(peak), "after": _mib(after)},
        "kib_a_request": round((peak - before) / 1024 / max(seen["most"], 1), 1),
    }
    print(f"crowd    {figures}", flush=True)
    return figures


def _idle(server: Server, scene: Scene, seconds: float) -> dict[str, Any]:
    one = Load(1, 1)
    h2load.run(target(server, scene), one, 1.0)
    alone = h2load.run(target(server, scene), one, seconds).p50_ms
    before = server.memory_bytes()
    with _idle_connections(server.address):
        beside = h2load.run(target(server, scene), one, seconds).p50_ms
        during = server.memory_bytes()
    figures = {
        "connections": IDLE,
        "memory_mib": {"before": _mib(before), "with_them": _mib(during)},
        "kib_a_connection": round((during - before) / 1024 / IDLE, 1),
        "p50_ms": {"alone": alone, "beside_them": beside},
        "slowdown": round(beside / alone, 3),
    }
    print(f"crowd    {figures}", flush=True)
    return figures


@contextmanager
def _idle_connections(address: str) -> Iterator[None]:
    """Hold HTTP/2 connections open that have said hello and send nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * IDLE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * IDLE, hard), hard))
    host, _, port = address.rpartition(":")
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # an empty SETTINGS frame
    with ExitStack() as stack:
        for _ in range(IDLE):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(hello)
            if not connection.recv(64):
                raise InvalidRun("the gateway refused an idle connection")
        yield


@contextmanager
def _watching(server: Server) -> Iterator[dict[str, int]]:
    """Note the greatest number of waiting requests that the gateway publishes in the block."""
    seen = {"most": 0}
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            seen["most"] = max(seen["most"], _pending(server))

    thread = threading.Thread(target=watch, name="watcher")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _pending(server: Server) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(server.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return 0  # too busy to say
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == PENDING
        )
    )


def _mib(size: int) -> float:
    return round(size / 2**20, 1)
