"""The formats side by side, for the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from export.manifest import Candidate
from export.pareto import front, worst_error

NOT_MEASURED = "not measured"
_COLUMNS = ("per s", "batch", "p99 ms", "MB", "RAM MB", "cold ms", "|error|", "cosine")


def table(candidates: Sequence[Candidate], objective: str) -> Table:
    """A row a format: throughput, batch and p99 at the knee, sizes, cold start, errors.

    The chosen one is bold; * marks those that no other beats in everything.
    """
    best = front(candidates)
    has_metric = any(each.metric for each in candidates)
    result = Table(
        title=f"formats, chosen for {objective}",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    result.add_column("format", no_wrap=True, min_width=19)
    # Eighty columns hold one of the two, and the task's own score says more.
    for column in (*_COLUMNS[:-1], "metric" if has_metric else _COLUMNS[-1]):
        result.add_column(column, justify="right", no_wrap=True)
    for each in candidates:
        if each.status in ("failed", "skipped"):
            continue
        mark = "*" if each.format in best else " "
        style = "bold" if each.status == "chosen" else ""
        cells = cells_of(each)
        if has_metric:
            cells[-1] = f"{each.metric.value:.4g}" if each.metric else "-"
        result.add_row(Text(f"{each.format} {mark}"), *cells, style=style)
    return result


def cells_of(candidate: Candidate) -> list[str]:
    """The figures of one row, in the table's order; "-" for what was not measured."""
    size = f"{candidate.size_bytes / 1e6:.3g}" if candidate.size_bytes is not None else "-"
    error = worst_error(candidate)
    parity = candidate.parity
    cosine = min((o.cosine for o in parity.outputs.values()), default=1.0) if parity else None
    errors = [
        f"{error:.1e}" if error is not None else "-",
        f"{cosine:.4f}" if cosine is not None else "-",
    ]
    if (profile := candidate.profile) is None:
        return ["-", "-", "-", size, "-", "-", *errors]
    knee = profile.knee()
    return [
        f"{knee.throughput:,.0f}",
        str(knee.batch),
        f"{knee.p99_ms:.3g}",
        size,
        f"{profile.resident_bytes / 1e6:.3g}",
        f"{profile.cold_start_s * 1000:.3g}",
        *errors,
    ]
