"""A gateway as the serverless rows need it: timed from its start, nothing loaded, read by HTTP."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import PeerError, cpu_s, family, free_ports, running
from benchmarks.provenance import ROOT
from gateway.engine import tritonserver
from gateway.errors import StartError

READY_WITHIN_S = 60.0
# What another process does cannot be awaited, only looked at: this often while it starts.
LOOK_EVERY_S = 0.005
TRITON_ENV = ROOT / ".venv-triton"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running `tidegate serve`. `ready_s` is the time from the start of the process to ready."""

    address: str
    http_port: int
    process: subprocess.Popen[bytes]
    ready_s: float

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far, by its tritonservers as well."""
        return sum(cpu_s(pid) for pid in family(self.pid))

    def get(self, path: str) -> Any:
        """Return the JSON at a path. Raises `OSError` where there is none."""
        return json.loads(self._ask("GET", path))

    def post(self, path: str) -> None:
        """Ask for something. Raises `OSError` with the answer where it is refused."""
        self._ask("POST", path)

    def figure(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry these labels."""
        return sum(
            sample.value
            for metric in text_string_to_metric_families(self._ask("GET", "/metrics").decode())
            for sample in metric.samples
            # the parser appends _total to the names of counters, which Triton's do not have
            if sample.name in (name, f"{name}_total") and labels.items() <= sample.labels.items()
        )

    def tritonservers(self) -> list[int]:
        """Return the process ids of the tritonservers that the gateway has started."""
        found = []
        for pid in family(self.pid) - {self.pid}:
            try:
                name = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue  # it has ended
            if Path(name).name == "tritonserver":
                found.append(pid)
        return sorted(found)

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=60)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from None
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise OSError(f"{method} {path}: {answer.status} {body[:200].decode(errors='replace')}")
        return body


@contextmanager
def gateway(repository: Path, scratch: Path, *flags: str) -> Iterator[Gateway]:
    """Run `tidegate serve` until the block ends; it is ready when the block begins.

    Its sessions are cached below `scratch`. Raises `PeerError`.
    """
    port, http_port = free_ports(2)
    command = (
        *(sys.executable, "-m", "gateway.cli", "serve", "--repository", str(repository)),
        *("--port", str(port), "--http-port", str(http_port)),
        *("--cache-dir", str(scratch / "sessions"), "--triton-env", str(TRITON_ENV), *flags),
    )
    log = scratch / "gateway.log"
    started_s = time.perf_counter()
    with running("tidegate", command, log) as process:
        while not _is_ready(http_port):
            if process.poll() is not None or time.perf_counter() > started_s + READY_WITHIN_S:
                lines = log.read_text().strip().splitlines() or ["nothing"]
                raise PeerError(f"the gateway did not start; it said last: {lines[-1][:200]}")
            time.sleep(LOOK_EVERY_S)
        ready_s = time.perf_counter() - started_s
        yield Gateway(f"127.0.0.1:{port}", http_port, process, ready_s)


@contextmanager
def watching(look: Callable[[float], None], every_s: float) -> Iterator[None]:
    """Call `look` with the time (perf_counter) again and again, in a thread, during the block.

    A look that meets no answer is left out.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            try:
                look(time.perf_counter())
            except OSError:
                continue

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def reason_absent() -> str:
    """Return why there is no tritonserver here; "" where there is one."""
    try:
        tritonserver.find(TRITON_ENV)
    except StartError as error:
        return str(error)
    return ""


def _is_ready(http_port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", http_port, timeout=10)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
