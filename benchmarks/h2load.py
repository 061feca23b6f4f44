"""h2load, nghttp2's load generator: one gRPC call, or one JSON request, over and over.

It costs the client far less than any client in Python would, so that it can share a small machine
with the server it measures. It cannot read `grpc-status`: every answered call counts as a 200,
failed or not, so a run has to be held against the server's own count. An HTTP status it sees.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

METHOD = "/inference.GRPCInferenceService/ModelInfer"

_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m|h)?, ([\d.]+) req/s")
_REQUESTS = re.compile(
    r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, "
    r"(\d+) failed, (\d+) errored, (\d+) timeout"
)
_STATUS_2XX = re.compile(r"status codes: (\d+) 2xx")


class H2loadError(Exception):
    """h2load is absent, failed, or wrote what cannot be read; the text says which."""


@dataclass(frozen=True, slots=True)
class Load:
    """Concurrency as h2load makes it: connections, and calls in flight on each."""

    connections: int
    streams: int

    @property
    def concurrency(self) -> int:
        return self.connections * self.streams


@dataclass(frozen=True, slots=True)
class Target:
    """Where the requests go, and the file with the body of each (framed, if it is gRPC)."""

    url: str
    body: Path
    grpc: bool = True
    headers: tuple[str, ...] = ("content-type: application/json",)  # where it is not gRPC

    @classmethod
    def infer(cls, address: str, body: Path) -> Target:
        """Return the ModelInfer of the server at an address."""
        return cls(f"http://{address}{METHOD}", body)


@dataclass(frozen=True, slots=True)
class Counts:
    """What h2load's summary says of the requests."""

    ok: int
    failed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """One run: rates, latencies of the single calls, and what h2load itself used of a core."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    ok: int
    failed: int
    client_cpu_share: float


def find() -> str:
    """Return h2load's path. Raises `H2loadError` where it is not installed."""
    path = shutil.which("h2load")
    if path is None:
        raise H2loadError("h2load is not installed; Debian and Ubuntu: apt install nghttp2-client")
    return path


def framed(message: bytes) -> bytes:
    """Return a gRPC message as it goes on the wire: uncompressed, with its length before it."""
    return b"\0" + struct.pack(">I", len(message)) + message


def command(target: Target, load: Load, duration_s: float, log: Path | None) -> list[str]:
    """Return h2load's command line for requests to a target."""
    logging = ["--log-file", str(log)] if log else []
    if target.grpc:
        shape = ["-c", str(load.connections), "-m", str(load.streams)]
        named: tuple[str, ...] = ("content-type: application/grpc", "te: trailers")
    else:
        # HTTP/1.1 answers one request at a time on a connection
        shape = ["--h1", "-c", str(load.concurrency)]
        named = target.headers
    headers = [part for header in named for part in ("-H", header)]
    return [
        *("h2load", "-t", "1", *shape, "-D", f"{duration_s:g}"),
        *headers,
        *("-d", str(target.body), *logging),
        target.url,
    ]


def parse_summary(text: str) -> Counts:
    """Return the counts of h2load's standard output. Raises `H2loadError`."""
    requests = _REQUESTS.search(text)
    status = _STATUS_2XX.search(text)
    if not (requests and status and _FINISHED.search(text)):
        raise H2loadError(f"h2load wrote no summary: {text.strip()[-200:] or '(nothing)'}")
    _, _, _, _, failed, errored, timeout = map(int, requests.groups())
    # A failed request is counted as errored or timed out as well.
    return Counts(ok=int(status[1]), failed=max(failed, errored + timeout))


def parse_log(lines: Sequence[str]) -> tuple[float, list[float]]:
    """Return seconds from the first start to the last end, and the sorted latencies in seconds.

    A line is "start in us since the epoch, HTTP status, duration in us". Only status 200 counts.
    Raises `H2loadError` without a single answered call.
    """
    spans = []
    for line in lines:
        start_us, status, took_us = line.split("\t")[:3]
        if status == "200":
            spans.append((int(start_us), int(took_us)))
    if not spans:
        raise H2loadError("h2load logged no answered call")
    first_us = min(start for start, _ in spans)
    last_us = max(start + took for start, took in spans)
    return (last_us - first_us) / 1e6, sorted(took / 1e6 for _, took in spans)


def nearest_rank(ordered: Sequence[float], fraction: float) -> float:
    """Return the ceil(fraction x n)-th smallest of ordered values."""
    rank = max(1, math.ceil(round(fraction * len(ordered), 9)))
    return ordered[rank - 1]


def run(target: Target, load: Load, duration_s: float) -> Figures:
    """Return the figures of `duration_s` seconds of requests, from h2load's log of every one.

    No warm-up is hidden in it: every call that h2load counts, the server has counted too.
    Raises `H2loadError`.
    """
    find()
    with tempfile.TemporaryDirectory(prefix="tidegate-h2load-") as scratch:
        log = Path(scratch, "calls.log")
        started_s = time.perf_counter()
        before = os.times()
        try:
            done = subprocess.run(
                command(target, load, duration_s, log),
                capture_output=True,
                text=True,
                timeout=duration_s + 30,
            )
        except subprocess.TimeoutExpired:
            raise H2loadError(f"h2load did not end {duration_s + 30:g} s after its start") from None
        after = os.times()
        wall_s = time.perf_counter() - started_s
        if done.returncode != 0:
            raise H2loadError(f"h2load failed ({done.returncode}): {done.stderr.strip()[-200:]}")
        counts = parse_summary(done.stdout)
        elapsed_s, latencies = parse_log(log.read_text().splitlines() if log.exists() else [])
    # The only child that ended in between is h2load.
    cpu_s = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return Figures(
        requests_per_s=round(len(latencies) / elapsed_s, 1),
        p50_ms=round(nearest_rank(latencies, 0.50) * 1e3, 4),
        p99_ms=round(nearest_rank(latencies, 0.99) * 1e3, 4),
        ok=counts.ok,
        failed=counts.failed,
        client_cpu_share=round(cpu_s / wall_s, 3),
    )
