"""The servers that are compared: each a child process on a free port, ended with the block."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtest.endpoint import open_channel

ROOT = Path(__file__).resolve().parents[1]
READY_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0


class PeerError(Exception):
    """A server did not start; the text says what it said last."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server: where it answers, and its process."""

    name: str
    address: str
    pid: int
    command: tuple[str, ...]
    metrics_url: str = ""

    def cpu_s(self) -> float:
        """Return the CPU seconds that the server has used so far, all its threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def gateway(repository: Path, log: Path) -> Iterator[Peer]:
    """Run `tidegate serve` on a repository. Raises `PeerError`."""
    port, http_port = _free_ports(2)
    command = (
        *(sys.executable, "-m", "gateway.cli", "serve", "--repository", str(repository)),
        *("--port", str(port), "--http-port", str(http_port)),
    )
    metrics_url = f"http://127.0.0.1:{http_port}/metrics"
    with _running("tidegate", command, port, log, metrics_url) as peer:
        yield peer


@contextmanager
def echo(response: Path, log: Path) -> Iterator[Peer]:
    """Run the bare grpc.aio server that always gives the serialised answer. Raises `PeerError`."""
    (port,) = _free_ports(1)
    program = str(ROOT / "benchmarks" / "echo_server.py")
    command = (sys.executable, program, "--port", str(port), "--response", str(response))
    with _running("echo", command, port, log) as peer:
        yield peer


@contextmanager
def _running(
    name: str, command: Sequence[str], port: int, log: Path, metrics_url: str = ""
) -> Iterator[Peer]:
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        address = f"127.0.0.1:{port}"
        _wait_ready(name, process, address, log)
        yield Peer(name, address, process.pid, tuple(command), metrics_url)
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(name: str, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    attempt_s = 0.5
    with open_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(int(READY_WITHIN_S / attempt_s)):
            if process.poll() is not None:
                break
            try:
                # gRPC itself waits for the connection; the short limit is for a server that died.
                stub.ServerReady(
                    service_pb2.ServerReadyRequest(), timeout=attempt_s, wait_for_ready=True
                )
                return
            except grpc.RpcError:
                continue
    said = log.read_text().strip().splitlines() or ["nothing"]
    raise PeerError(f"{name} was not ready within {READY_WITHIN_S:g} s; it said last: {said[-1]}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
