"""The figures of a serverless gateway, each against its bar.

    python -m benchmarks.serverless [--rows cold,zipf] [--rounds 3] [--quick]

Each row is measured as its module says; what differs from round to round is judged by the median,
what must never happen by the worst round. Exits 1 where a bar is missed, or where the gateway gave
no valid run. What needs a tritonserver is reported as not measured where there is none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import (
    provenance,
    serverless_cold,
    serverless_hot,
    serverless_kill,
    serverless_overload,
    serverless_zipf,
)
from benchmarks.bars import Outcome

Found = tuple[list[Outcome], dict[str, Any]]
# What a row is measured with: a folder of its own, how many rounds, whether it is a smoke run.
Measure = Callable[[Path, int, bool], Found]


def _simulated(module: str) -> Measure:
    """Return the row of a module that needs neither a gateway nor a folder."""

    def measure(_scratch: Path, _rounds: int, _quick: bool) -> Found:
        found: Found = importlib.import_module(f"benchmarks.{module}").measure()
        return found

    return measure


ROWS: dict[str, Measure] = {
    "cold": lambda scratch, rounds, _: serverless_cold.measure_cold(scratch, rounds),
    "start": lambda scratch, rounds, _: serverless_cold.measure_start(scratch, rounds),
    "zipf": lambda scratch, rounds, quick: serverless_zipf.measure(
        scratch, rounds, 6.0 if quick else serverless_zipf.SECONDS
    ),
    "hot": lambda scratch, rounds, quick: serverless_hot.measure(
        scratch, rounds, 3.0 if quick else serverless_hot.SECONDS
    ),
    "kill": lambda scratch, rounds, _: serverless_kill.measure_kill(scratch, rounds),
    "only": lambda scratch, rounds, _: serverless_kill.measure_only(scratch, rounds),
    "overload": lambda scratch, rounds, quick: serverless_overload.measure(
        scratch, rounds, 5.0 if quick else serverless_overload.SECONDS
    ),
    "day": _simulated("serverless_day"),
    "decision": _simulated("serverless_decision"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, store; return the exit code."""
    options = _options(argv)
    result: dict[str, Any] = {**provenance.describe(), "rounds_each": options.rounds}
    outcomes: list[Outcome] = []
    rows: dict[str, Any] = {}
    for name in options.rows:
        started_s = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"tidegate-{name}-") as folder:
            found, rows[name] = ROWS[name](Path(folder), options.rounds, options.quick)
        outcomes += found
        rows[name]["took_s"] = round(time.perf_counter() - started_s, 1)
        for each in found:
            print(f"{name:8} {each.claim}: {_figure(each.measured)}: {each.verdict}", flush=True)
    result["bars"] = [asdict(outcome) | {"verdict": outcome.verdict} for outcome in outcomes]
    result |= rows
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    _print(outcomes)
    print(f"result: {options.output}")
    return 1 if any(outcome.verdict == "missed" for outcome in outcomes) else 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serverless",
        description="The figures of a serverless gateway, each against its bar.",
    )
    parser.add_argument("--rows", type=_names, default=tuple(ROWS), help=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3, help="of each row (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 short round")
    parser.add_argument(
        "--output",
        type=Path,
        help="default: benchmarks/results/serverless-<date>.json; a smoke run's is not kept there",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.output is None:
        results = provenance.ROOT / "benchmarks" / "results"
        keep = Path(tempfile.gettempdir()) if options.quick else results
        options.output = keep / f"serverless-{datetime.now(UTC):%Y-%m-%d}.json"
    return options


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    if unknown := set(names) - set(ROWS):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(ROWS)}"
        )
    return names


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print(outcomes: Sequence[Outcome]) -> None:
    table = Table(title="bars", title_justify="left")
    for name in ("row", "bar", "limit", "measured", "verdict"):
        table.add_column(name, justify="right" if name in ("limit", "measured") else "left")
    colours = {"passed": None, "missed": "red", "not measured": "yellow"}
    for each in outcomes:
        sign = ">=" if each.at_least else "<="
        note = f" ({each.note})" if each.note else ""
        table.add_row(
            *(each.row, each.claim, f"{sign} {each.limit:g}", _figure(each.measured)),
            f"{each.verdict}{note}",
            style=colours[each.verdict],
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
