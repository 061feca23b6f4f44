"""Requests/s and latency of ModelInfer through the gateway, beside a bare gRPC echo.

    python benchmarks/serving.py [--quick]

Both servers run on this machine at once and get the same bytes from the same load generator, in
turn (gateway, echo, gateway, ...), so that whatever slows the machine slows both. The figure that
counts is the ratio, the median over the rounds. The echo answers with the gateway's own answer,
made beforehand: the ratio is what admission, batching and the model cost on top of Python's gRPC.
Exits 1 if a ratio is below its bar, or if any answer was missing or wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2_grpc

if not __package__:  # run as a file: put the repository where benchmarks/ alone would be
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import digits, h2load, provenance
from benchmarks.h2load import Figures, H2loadError, Load
from benchmarks.peers import Peer, PeerError, echo, gateway
from loadtest.endpoint import open_channel
from loadtest.metrics import MetricsUnreadable, read_counts

# 16 = 4 connections of 4 streams, 64 = 8 of 8: few hosts, each with several calls in flight.
LOADS = (Load(1, 1), Load(4, 4), Load(8, 8))
# The least that requests/s may be, as a share of the echo's, by concurrency.
BARS = {64: 0.55}

WARM_UP_S = 1.0


class InvalidRun(Exception):
    """The run proves nothing: an answer was missing or wrong."""


@dataclass(frozen=True, slots=True)
class Round:
    """One peer under one load for a few seconds."""

    peer: str
    concurrency: int
    round: int
    server_cpu_share: float
    checked_answers: int
    figures: Figures


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds of one concurrency. `ratio` is gateway over echo, round by round."""

    concurrency: int
    gateway_requests_per_s: float
    echo_requests_per_s: float
    ratio: float
    ratios: list[float]
    gateway_p50_ms: float
    gateway_p99_ms: float
    echo_p50_ms: float
    echo_p99_ms: float
    bar: float | None

    @property
    def missed(self) -> bool:
        return self.bar is not None and self.ratio < self.bar


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    try:
        h2load.find()
        result, summaries = _measure(options)
    except (H2loadError, PeerError, InvalidRun, MetricsUnreadable, FileNotFoundError) as error:
        print(f"benchmarks/serving.py: {error}", file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    _print(summaries)
    print(f"result: {options.output}")
    missed = [summary for summary in summaries if summary.missed]
    for summary in missed:
        print(
            f"MISSED: at concurrency {summary.concurrency} the gateway reaches "
            f"{summary.ratio:.3f} of the echo's requests/s; the bar is {summary.bar}",
            file=sys.stderr,
        )
    return 1 if missed else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Requests/s and latency through the gateway, beside a bare gRPC echo."
    )
    parser.add_argument("--repository", type=Path, default=provenance.ROOT / "model_repository")
    parser.add_argument("--rounds", type=int, default=7, help="of each peer and load (default: 7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (default: 2)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 round of 1 s")
    parser.add_argument(
        "--output",
        type=Path,
        help="default: benchmarks/results/serving-<date>.json; a smoke run's is not kept there",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    if options.output is None:
        name = f"serving-{datetime.now(UTC):%Y-%m-%d}.json"
        folder = (
            Path(tempfile.gettempdir()) if options.quick else provenance.ROOT / "benchmarks/results"
        )
        options.output = folder / name
    options.repository = options.repository.resolve()
    return options


def _measure(options: argparse.Namespace) -> tuple[dict[str, Any], list[Summary]]:
    cases = digits.load(options.repository)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tidegate-bench-")))
        body = scratch / "request.grpc"
        body.write_bytes(h2load.framed(cases.requests[0].SerializeToString()))
        served = stack.enter_context(gateway(options.repository, scratch / "gateway.log"))
        response = scratch / "response.pb"
        response.write_bytes(_answer_of(served, cases))
        bare = stack.enter_context(echo(response, scratch / "echo.log"))
        peers = (served, bare)
        place = provenance.describe()
        rounds = []
        for load in LOADS:
            for peer in peers:
                h2load.run(peer.address, body, load, WARM_UP_S)
            for number in range(options.rounds):
                for peer in peers:
                    done = _round(peer, load, body, number, options.seconds, cases)
                    _print_round(done)
                    rounds.append(done)
        commands = {
            peer.name: [
                part.replace(str(scratch), "SCRATCH") for part in provenance.relative(peer.command)
            ]
            for peer in peers
        }
        commands["h2load"] = h2load.command(
            "ADDRESS", Path("BODY"), LOADS[-1], options.seconds, Path("LOG")
        )
        sizes = {"request_bytes": body.stat().st_size, "response_bytes": response.stat().st_size}
    summaries = [_summary(load.concurrency, rounds) for load in LOADS]
    result = {
        **place,
        "model": digits.MODEL,
        "percentiles": "nearest rank over h2load's log of every call; medians over the rounds",
        "rounds_each": options.rounds,
        "seconds_each": options.seconds,
        "loads": [asdict(load) for load in LOADS],
        "messages": sizes,
        "commands": commands,
        "summary": [asdict(summary) | {"missed": summary.missed} for summary in summaries],
        "rounds": [asdict(done) for done in rounds],
    }
    return result, summaries


def _answer_of(served: Peer, cases: digits.Digits) -> bytes:
    """Return the gateway's serialised answer to the first digit, which also loads the model."""
    with open_channel(served.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            response = stub.ModelInfer(cases.requests[0], timeout=60.0)
        except grpc.RpcError as error:
            raise InvalidRun(f"the gateway does not answer: {error.details()}") from None
    if not cases.is_right(0, response):
        raise InvalidRun("the gateway's first answer is not the model's")
    answer: bytes = response.SerializeToString()
    return answer


def _round(
    peer: Peer, load: Load, body: Path, number: int, seconds: float, cases: digits.Digits
) -> Round:
    counted = bool(peer.metrics_url)
    before = read_counts(peer.metrics_url, digits.MODEL) if counted else None
    started_s, started_cpu_s = time.perf_counter(), peer.cpu_s()
    with digits.checking(peer.address, cases, compare=counted) as checked:
        figures = h2load.run(peer.address, body, load, seconds)
        share = (peer.cpu_s() - started_cpu_s) / (time.perf_counter() - started_s)
    if checked.failures or checked.wrong or not checked.calls:
        raise InvalidRun(
            f"of {peer.name}'s answers to the second client {checked.wrong} were wrong, "
            f"{checked.calls - checked.wrong} right, {len(checked.failures)} failed "
            f"({', '.join(sorted(set(checked.failures)))})"
        )
    if figures.failed:
        raise InvalidRun(f"{figures.failed} of h2load's calls to {peer.name} failed")
    if before is not None:
        counts = read_counts(peer.metrics_url, digits.MODEL).since(before)
        # gRPC failures look like successes to h2load; the server knows better.
        if counts.failures or counts.successes < figures.ok + checked.calls:
            raise InvalidRun(
                f"h2load saw {figures.ok} answers and the second client {checked.calls}, but "
                f"{peer.name} counted {counts.successes:.0f} answered and "
                f"{counts.failures:.0f} failed requests"
            )
    return Round(
        peer=peer.name,
        concurrency=load.concurrency,
        round=number,
        server_cpu_share=round(share, 3),
        checked_answers=checked.calls if counted else 0,
        figures=figures,
    )


def _summary(concurrency: int, rounds: Sequence[Round]) -> Summary:
    ours, bare = (
        [done.figures for done in rounds if (done.peer, done.concurrency) == (name, concurrency)]
        for name in ("tidegate", "echo")
    )
    ratios = [
        round(mine.requests_per_s / theirs.requests_per_s, 4)
        for mine, theirs in zip(ours, bare, strict=True)
    ]
    return Summary(
        concurrency=concurrency,
        gateway_requests_per_s=median(each.requests_per_s for each in ours),
        echo_requests_per_s=median(each.requests_per_s for each in bare),
        ratio=round(median(ratios), 4),
        ratios=ratios,
        gateway_p50_ms=median(each.p50_ms for each in ours),
        gateway_p99_ms=median(each.p99_ms for each in ours),
        echo_p50_ms=median(each.p50_ms for each in bare),
        echo_p99_ms=median(each.p99_ms for each in bare),
        bar=BARS.get(concurrency),
    )


def _print_round(done: Round) -> None:
    figures = done.figures
    print(
        f"{done.concurrency:>3} x {done.peer:<9} {figures.requests_per_s:>9,.0f} requests/s  "
        f"p50 {figures.p50_ms:.2f} ms  p99 {figures.p99_ms:.2f} ms  "
        f"CPU: server {done.server_cpu_share:.0%}, h2load {figures.client_cpu_share:.0%}",
        flush=True,
    )


def _print(summaries: Sequence[Summary]) -> None:
    table = Table(title="medians", title_justify="left")
    for name in ("concurrency", "gateway/s", "echo/s", "ratio", "bar", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for each in summaries:
        table.add_row(
            str(each.concurrency),
            f"{each.gateway_requests_per_s:,.0f}",
            f"{each.echo_requests_per_s:,.0f}",
            f"{each.ratio:.3f}",
            "-" if each.bar is None else f"{each.bar:.2f}",
            f"{each.gateway_p50_ms:.2f} / {each.echo_p50_ms:.2f}",
            f"{each.gateway_p99_ms:.1f} / {each.echo_p99_ms:.1f}",
            style="red" if each.missed else None,
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
