"""Tidegate beside its peers: the same models and requests, interleaved, with bars that must hold.

    python -m benchmarks.compare [--rows tiny,heavier] [--peers tidegate,echo] [--rounds 7] ...

Each row is measured as the module it is in says; every ratio is the median over the rounds. Exits
1 where a bar is missed, or where the gateway itself gave no valid run. A peer that is not
installed, or that answers wrongly, is reported as not measured, and so are the bars that need it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    cold_start,
    crowd,
    frameworks,
    front_ends,
    goodput,
    h2load,
    provenance,
    throughput,
)
from benchmarks.bars import Outcome
from benchmarks.frameworks import FRAMEWORKS
from benchmarks.h2load import H2loadError
from benchmarks.models import DEEP, MODELS, TINY, Model, make_cases, make_repository
from benchmarks.peers import START, Scene
from benchmarks.throughput import OURS, RowResult

CLOSED_LOOP = {row.name: row for row in throughput.ROWS}
ROWS = (*CLOSED_LOOP, "front", "goodput", "crowd", "cold")

# Rows with answers to a schedule need some seconds for their percentiles.
LEAST_OPEN_LOOP_S = 4.0


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, store; return the exit code."""
    options = _options(argv)
    try:
        h2load.find()
    except H2loadError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 1
    result: dict[str, Any] = {**provenance.describe(), "rounds_each": options.rounds}
    result |= {"seconds_each": options.seconds, "peer_versions": _versions(options.peers)}
    outcomes: list[Outcome] = []
    closed: list[RowResult] = []
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        scratch = Path(folder)
        repository = scratch / "repository"
        make_repository(repository, MODELS)
        for name in options.rows:
            if row := CLOSED_LOOP.get(name):
                done = throughput.measure(
                    *(row, _scene(repository, row.model, scratch), options.peers),
                    *(_absent(options.peers), options.rounds, options.seconds),
                )
                closed.append(done)
                outcomes += [_broken_if_ours(outcome, done) for outcome in done.outcomes]
                continue
            found, details[name] = _special(name, repository, scratch, options)
            outcomes += found
    result["bars"] = [asdict(outcome) | {"verdict": outcome.verdict} for outcome in outcomes]
    result["throughput"] = [done.as_json() for done in closed]
    result |= details
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    _print(closed, outcomes)
    print(f"result: {options.output}")
    return 1 if any(outcome.verdict == "missed" for outcome in outcomes) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="Tidegate beside its peers."
    )
    parser.add_argument("--rows", type=_names(ROWS), default=ROWS, help=",".join(ROWS))
    parser.add_argument(
        "--peers", type=_names(tuple(START)), default=tuple(START), help=",".join(START)
    )
    parser.add_argument("--rounds", type=int, default=7, help="of each row and peer (default: 7)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round (default: 2)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 round of 1 s")
    parser.add_argument(
        "--output",
        type=Path,
        help="default: benchmarks/results/comparison-<date>.json; a smoke run's is not kept there",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    if options.output is None:
        results = provenance.ROOT / "benchmarks" / "results"
        keep = Path(tempfile.gettempdir()) if options.quick else results
        options.output = keep / f"comparison-{datetime.now(UTC):%Y-%m-%d}.json"
    return options


def _names(known: Sequence[str]) -> Any:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}"
            )
        return names

    return parse


def _scene(repository: Path, model: Model, scratch: Path) -> Scene:
    return Scene(repository, model, make_cases(repository, model), scratch)


def _special(
    name: str, repository: Path, scratch: Path, options: argparse.Namespace
) -> tuple[list[Outcome], dict[str, Any]]:
    seconds = max(options.seconds, LEAST_OPEN_LOOP_S)
    match name:
        case "front":
            return [], front_ends.measure(
                _scene(repository, TINY, scratch), options.rounds, seconds
            )
        case "goodput":
            scene = _scene(repository, DEEP, scratch)
            return goodput.measure(scene, options.rounds, seconds)
        case "crowd":
            deep, tiny = (_scene(repository, model, scratch) for model in (DEEP, TINY))
            return crowd.measure(deep, tiny, seconds)
        case "cold":
            return cold_start.measure(scratch, options.rounds)
    raise AssertionError(f"no row '{name}': this is a bug")


def _absent(peers: Sequence[str]) -> dict[str, str]:
    reasons = {name: frameworks.reason_absent(name) for name in FRAMEWORKS if name in peers}
    return {name: reason for name, reason in reasons.items() if reason}


def _broken_if_ours(outcome: Outcome, done: RowResult) -> Outcome:
    """A bar is missed where the gateway was there and failed to answer; no excuse in the note."""
    return replace(outcome, broken=any(peer in done.absent for peer in OURS))


def _versions(peers: Sequence[str]) -> dict[str, list[str]]:
    return {name: frameworks.main_pins(name) for name in FRAMEWORKS if name in peers}


def _print(closed: Sequence[RowResult], outcomes: Sequence[Outcome]) -> None:
    console = Console()
    for done in closed:
        table = Table(title=f"{done.row}: medians", title_justify="left")
        for name in ("server", "requests/s", "p50 ms", "p99 ms"):
            table.add_column(name, justify="left" if name == "server" else "right")
        for peer, figures in done.medians().items():
            table.add_row(
                peer,
                f"{figures['requests_per_s']:,.0f}",
                f"{figures['p50_ms']:.2f}",
                f"{figures['p99_ms']:.2f}",
            )
        for peer, reason in done.absent.items():
            table.add_row(peer, f"not measured ({reason})")
        console.print(table)
    table = Table(title="bars", title_justify="left")
    for name in ("row", "bar", "limit", "measured", "verdict"):
        table.add_column(name, justify="right" if name in ("limit", "measured") else "left")
    colours = {"passed": None, "missed": "red", "not measured": "yellow"}
    for each in outcomes:
        sign = ">=" if each.at_least else "<="
        note = f" ({each.note})" if each.note else ""
        table.add_row(
            *(each.row, each.claim, f"{sign} {each.limit:g}"),
            "-" if each.measured is None else f"{each.measured:.3f}",
            f"{each.verdict}{note}",
            style=colours[each.verdict],
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
