"""The figures of a serverless gateway, each against its bar.

    python -m benchmarks.serverless [--rows cold,zipf] [--rounds 3] [--quick]

Each row is measured as its module says; what differs from round to round is judged by the median,
what must never happen by the worst round. Exits 1 where a bar is missed, or where the gateway gave
no valid run. What needs a tritonserver is reported as not measured where there is none.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import (
    rows,
    serverless_cold,
    serverless_hot,
    serverless_kill,
    serverless_overload,
    serverless_zipf,
)
from benchmarks.rows import Found, Measure, Rows


def _simulated(module: str) -> Measure:
    """Return the row of a module that needs neither a gateway nor a folder."""

    def measure(_scratch: Path, _rounds: int, _quick: bool) -> Found:
        found: Found = importlib.import_module(f"benchmarks.{module}").measure()
        return found

    return measure


ROWS: Final[Rows] = {
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
    return rows.main(
        "serverless", "The figures of a serverless gateway, each against its bar.", ROWS, argv
    )


if __name__ == "__main__":
    sys.exit(main())
