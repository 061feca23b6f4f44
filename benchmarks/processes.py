"""Servers as child processes: started, watched from outside, and ended with the block."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.provenance import ROOT

STOP_WITHIN_S = 20.0

Protocol = Literal["grpc", "json", "nested json"]


class PeerError(Exception):
    """A server did not start; the text says what it said last."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests that a server says it has answered well, and those that failed."""

    successes: float
    failures: float


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where and how it answers, its process, and its own count of requests."""

    name: str
    address: str
    pid: int
    command: tuple[str, ...]
    protocol: Protocol = "grpc"
    path: str = ""  # of a JSON server
    count: Callable[[str], Counted] | None = None
    answers_truly: bool = True  # the echo does not
    metrics_url: str = ""
    http_address: str = ""  # of its REST endpoint

    def cpu_s(self) -> float:
        """Return the CPU seconds used so far by the server and the processes it started."""
        return sum(cpu_s(pid) for pid in family(self.pid))

    def memory_bytes(self) -> int:
        """Return the server's resident memory, without its children."""
        return _status_bytes(self.pid, "VmRSS")

    def peak_memory_bytes(self) -> int:
        """Return the most resident memory since the start, or since `forget_peak`."""
        return _status_bytes(self.pid, "VmHWM")

    def forget_peak(self) -> None:
        """Let the peak begin anew at the present size."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path = ROOT,
    environ: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, its output in `log`. Ended with all it started."""
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        started = family(process.pid)
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end(started - {process.pid})


def end(pids: set[int]) -> None:
    """Kill those of the processes that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Return whether `holds()` became true before the limit and before the process ended.

    What another process does cannot be awaited, only looked at.
    """
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s and process.poll() is None:
        if holds():
            return True
        time.sleep(0.1)
    return False


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def family(pid: int) -> set[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        member = todo.pop()
        if member not in found:
            found.add(member)
            todo.extend(children.get(member, ()))
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds used so far by a process; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise ValueError(f"/proc/{pid}/status has no {field}")
