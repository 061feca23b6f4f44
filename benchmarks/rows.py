"""Rows of figures, each against its bar: measured, printed, stored. What `make bench-...` share."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import provenance
from benchmarks.bars import Outcome

Found = tuple[list[Outcome], dict[str, Any]]
# What a row is measured with: a folder of its own, how many rounds, whether it is a smoke run.
Measure = Callable[[Path, int, bool], Found]
Rows = Mapping[str, Measure]


def main(name: str, description: str, rows: Rows, argv: Sequence[str] | None = None) -> int:
    """Measure, print, store as results/<name>-<date>.json; return the exit code.

    It is 1 where a bar is missed, or where there was no valid run.
    """
    options = _options(name, description, rows, argv)
    result: dict[str, Any] = {**provenance.describe(), "rounds_each": options.rounds}
    outcomes: list[Outcome] = []
    figures: dict[str, Any] = {}
    for row in options.rows:
        started_s = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"tidegate-{row}-") as folder:
            found, figures[row] = rows[row](Path(folder), options.rounds, options.quick)
        outcomes += found
        figures[row]["took_s"] = round(time.perf_counter() - started_s, 1)
        for each in found:
            print(f"{row:8} {each.claim}: {_figure(each.measured)}: {each.verdict}", flush=True)
    result["bars"] = [asdict(outcome) | {"verdict": outcome.verdict} for outcome in outcomes]
    result |= figures
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    _print(outcomes)
    print(f"result: {options.output}")
    return 1 if any(outcome.verdict == "missed" for outcome in outcomes) else 0


def _options(
    name: str, description: str, rows: Rows, argv: Sequence[str] | None
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument(
        "--rows", type=lambda text: _names(text, rows), default=tuple(rows), help=",".join(rows)
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each row (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: 1 short round")
    parser.add_argument(
        "--output",
        type=Path,
        help="default: benchmarks/results/<name>-<date>.json; a smoke run's is not kept there",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds = 1
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.output is None:
        results = provenance.ROOT / "benchmarks" / "results"
        keep = Path(tempfile.gettempdir()) if options.quick else results
        options.output = keep / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    return options


def _names(text: str, rows: Rows) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    if unknown := set(names) - set(rows):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(rows)}"
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
