"""Rows of closed-loop load: the same requests to each server in turn, round after round.

A, B, C, A, B, C, ...: whatever slows the machine slows all of them, and a ratio is taken within a
round. A run counts only if every answer was right, as far as can be seen: the statuses that h2load
sees, the server's own count of successes where it has one, and the answers to a second client.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from benchmarks import h2load, provenance
from benchmarks.bars import Bar, Outcome
from benchmarks.checks import checking
from benchmarks.frameworks import FRAMEWORKS
from benchmarks.h2load import Figures, H2loadError, Load, Target
from benchmarks.models import HEAVIER, TENSOR, TINY, Model
from benchmarks.peers import START, Scene
from benchmarks.processes import PeerError, Server
from loadtest.metrics import MetricsUnreadable

WARM_UP_S = 1.0
# The second client stops before h2load does, which cuts its last calls off: a server that lets
# that spoil a whole batch would otherwise spoil a call that was to be answered.
CHECK_ENDS_BEFORE_S = 0.3

OURS = ("tidegate", "tidegate-triton")


class InvalidRun(Exception):
    """The run proves nothing: an answer was missing or wrong."""


@dataclass(frozen=True, slots=True)
class Row:
    """One model under one load, on these servers."""

    name: str
    model: Model
    load: Load
    peers: tuple[str, ...]
    bars: tuple[Bar, ...]
    figure: Literal["requests_per_s", "p50_ms"] = "requests_per_s"


ROWS = (
    Row(
        "tiny",
        TINY,
        Load(8, 8),
        ("tidegate", "echo", "echo-tuned", *FRAMEWORKS),
        (
            Bar("tidegate / echo, requests/s", "tidegate", ("echo",), 0.80),
            Bar("tidegate / fastest framework, requests/s", "tidegate", FRAMEWORKS, 2.0),
        ),
    ),
    Row(
        "heavier",
        HEAVIER,
        Load(8, 8),
        ("tidegate", "triton", "tidegate-triton", *FRAMEWORKS),
        (
            Bar("tidegate / triton, requests/s", "tidegate", ("triton",), 1.0),
            Bar(
                "through tidegate to triton / tidegate, requests/s",
                "tidegate-triton",
                ("tidegate",),
                0.7,
            ),
            Bar("tidegate / fastest framework, requests/s", "tidegate", FRAMEWORKS, 4.0),
        ),
    ),
    Row(
        "single",
        TINY,
        Load(1, 1),
        ("tidegate", "echo", "echo-tuned"),
        (Bar("tidegate / echo, p50 of one client", "tidegate", ("echo",), 1.6, at_least=False),),
        "p50_ms",
    ),
    Row(
        "tensor",
        TENSOR,
        Load(4, 1),
        ("tidegate", "echo", "echo-tuned"),
        (Bar("tidegate / echo, MB/s of 4 MB in, 4 MB out", "tidegate", ("echo",), 0.6),),
    ),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One server under a row's load for a few seconds."""

    peer: str
    round: int
    server_cpu_share: float
    checked_answers: int
    server_counted: float | None
    figures: Figures


@dataclass(slots=True)
class RowResult:
    """Everything measured in a row, and why some of its peers were not."""

    row: str
    outcomes: list[Outcome] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)

    def medians(self) -> dict[str, dict[str, float]]:
        """Return each measured peer's medians over the rounds."""
        return {
            peer: {
                name: median(getattr(done.figures, name) for done in self.rounds_of(peer))
                for name in ("requests_per_s", "p50_ms", "p99_ms")
            }
            for peer in dict.fromkeys(done.peer for done in self.rounds)
        }

    def rounds_of(self, peer: str) -> list[Round]:
        """Return a peer's rounds in order."""
        return [done for done in self.rounds if done.peer == peer]

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "row": self.row,
            "medians": self.medians(),
            "not_measured": self.absent,
            "commands": self.commands,
            "rounds": [asdict(done) for done in self.rounds],
        }


def measure(
    row: Row,
    scene: Scene,
    chosen: Sequence[str],
    absent: Mapping[str, str],
    rounds: int,
    seconds: float,
) -> RowResult:
    """Return a row's result. A peer that cannot be measured is left out, with the reason."""
    result = RowResult(row.name)
    with ExitStack() as stack:
        servers = []
        for peer in (peer for peer in row.peers if peer in chosen):
            if reason := absent.get(peer):
                result.absent[peer] = reason
                continue
            try:
                server = stack.enter_context(START[peer](scene))
            except PeerError as error:
                result.absent[peer] = str(error)
            else:
                servers.append(server)
                scene.running[peer] = server
        for server in servers:
            result.commands[server.name] = without_paths(server.command, scene)
            sent = h2load.command(target(server, scene), row.load, seconds, Path("LOG"))
            result.commands[f"h2load {server.name}"] = without_paths(sent, scene)
            h2load.run(target(server, scene), row.load, WARM_UP_S)
        for number in range(rounds):
            for server in servers:
                if server.name in result.absent:
                    continue
                try:
                    done = _round(server, row.load, scene, number, seconds)
                except (InvalidRun, H2loadError, MetricsUnreadable) as error:
                    result.absent[server.name] = str(error)
                    print(f"{row.name:<8} {server.name:<16} INVALID: {error}", flush=True)
                else:
                    result.rounds.append(done)
                    _print_round(row, done)
    # a peer that failed in a later round has no result at all
    result.rounds = [done for done in result.rounds if done.peer not in result.absent]
    figures = {
        peer: [getattr(done.figures, row.figure) for done in result.rounds_of(peer)]
        for peer in dict.fromkeys(done.peer for done in result.rounds)
    }
    result.outcomes = [bar.judge(row.name, figures, result.absent) for bar in row.bars]
    return result


def target(server: Server, scene: Scene) -> Target:
    """Return what h2load sends to a server: the first case, in the server's protocol."""
    grpc = server.protocol == "grpc"
    body = scene.scratch / f"{scene.model.name}.{server.protocol.replace(' ', '-')}"
    if not body.exists():
        message = (
            h2load.framed(scene.cases.grpc_request(0))
            if grpc
            else scene.cases.json_request(0, nested=server.protocol == "nested json")
        )
        body.write_bytes(message)
    if grpc:
        return Target.infer(server.address, body)
    return Target(f"http://{server.address}{server.path}", body, grpc=False)


def without_paths(command: Sequence[str], scene: Scene) -> list[str]:
    """Return a command without this machine's paths."""
    return [
        part.replace(str(scene.scratch), "SCRATCH").replace(str(scene.repository), "REPOSITORY")
        for part in provenance.relative(tuple(command))
    ]


def _round(server: Server, load: Load, scene: Scene, number: int, seconds: float) -> Round:
    before = server.count(scene.model.name) if server.count else None
    started_s, started_cpu_s = time.perf_counter(), server.cpu_s()
    with checking(server, scene.cases, seconds - CHECK_ENDS_BEFORE_S) as checked:
        figures = h2load.run(target(server, scene), load, seconds)
        share = (server.cpu_s() - started_cpu_s) / (time.perf_counter() - started_s)
    if checked.failures or checked.wrong or not checked.calls:
        raise InvalidRun(
            f"of {server.name}'s answers to the second client {checked.wrong} were wrong, "
            f"{checked.calls - checked.wrong} right, {len(checked.failures)} failed "
            f"({', '.join(sorted(set(checked.failures))[:2])})"
        )
    if figures.failed:
        raise InvalidRun(f"{figures.failed} of h2load's requests to {server.name} failed")
    counted = None
    if server.count and before:
        after = server.count(scene.model.name)
        counted = after.successes - before.successes
        failed = after.failures - before.failures
        # gRPC failures look like successes to h2load; the server knows better. It counts the calls
        # that h2load cut off at its end as failed ones.
        if counted < figures.ok + checked.calls or failed > load.concurrency:
            raise InvalidRun(
                f"h2load saw {figures.ok} answers and the second client {checked.calls}, but "
                f"{server.name} counted {counted:.0f} answered and {failed:.0f} failed requests"
            )
    return Round(
        peer=server.name,
        round=number,
        server_cpu_share=round(share, 3),
        checked_answers=checked.calls if server.answers_truly else 0,
        server_counted=counted,
        figures=figures,
    )


def _print_round(row: Row, done: Round) -> None:
    figures = done.figures
    print(
        f"{row.name:<8} {done.peer:<16} {figures.requests_per_s:>9,.0f} requests/s  "
        f"p50 {figures.p50_ms:.2f} ms  p99 {figures.p99_ms:.2f} ms  "
        f"CPU: server {done.server_cpu_share:.0%}, h2load {figures.client_cpu_share:.0%}",
        flush=True,
    )
