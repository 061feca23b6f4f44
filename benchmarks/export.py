"""The figures of the exporter, each against its bar.

    python -m benchmarks.export [--rows zoo,architectures] [--rounds 3] [--quick]

Rows are measured as their functions say. Exits 1 where a bar is missed. What needs a GPU is
reported as not measured where there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from benchmarks import export_architectures, export_overhead, export_speed, export_zoo, rows
from benchmarks.rows import Rows

ROWS: Final[Rows] = {
    "zoo": lambda scratch, _rounds, _quick: export_zoo.measure(scratch),
    "architectures": lambda scratch, _rounds, _quick: export_architectures.measure(scratch),
    "digits": lambda scratch, rounds, _quick: export_speed.measure_digits(scratch, rounds),
    "minilm": lambda scratch, rounds, _quick: export_speed.measure_minilm(scratch, rounds),
    "overhead": lambda scratch, rounds, _quick: export_overhead.measure(scratch, rounds),
    "knee": lambda scratch, rounds, _quick: export_speed.measure_knee(scratch, rounds),
    "gpu": lambda _scratch, _rounds, _quick: export_speed.measure_gpu(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, store; return the exit code."""
    return rows.main("export", "The figures of the exporter, each against its bar.", ROWS, argv)


if __name__ == "__main__":
    sys.exit(main())
