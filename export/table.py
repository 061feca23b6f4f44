"""The formats side by side, for the terminal."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from export.manifest import Candidate
from export.pareto import front, measured, worst_cosine, worst_error

NOT_MEASURED: Final = "not measured"
_COLUMNS: Final = ("per s", "batch", "p99 ms", "file", "RAM", "cold ms", "|error|", "cosine")


def table(candidates: Sequence[Candidate], objective: str) -> Table:
    """A row a format: throughput, batch and p99 at the knee, sizes, cold start, errors.

    The chosen one is bold and ticked; * marks those that no other beats in everything. What
    failed or was skipped follows, dim, with its reason.
    """
    best = front(candidates)
    has_metric = any(each.metric for each in candidates)
    fallen = [each for each in candidates if each.status in ("failed", "skipped")]
    result = Table(
        title=f"formats (file and RAM in MB), chosen for {objective}",
        title_justify="left",
        caption=Text("\n".join(_reasons(fallen)), "dim") if fallen else None,
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    longest = max((len(each.format) for each in candidates if each not in fallen), default=0)
    result.add_column("  format", no_wrap=True, min_width=longest + 4)
    # Eighty columns hold one of the two, and the task's own score says more.
    for column in (*_COLUMNS[:-1], "metric" if has_metric else _COLUMNS[-1]):
        result.add_column(column, justify="right", no_wrap=True)
    for each in candidates:
        if each in fallen:
            continue
        tick = "✓" if each.status == "chosen" else " "
        mark = "*" if each.format in best else ""
        cells = cells_of(each)
        if has_metric:
            cells[-1] = f"{each.metric.value:.3g}" if each.metric else "-"
        style = "bold" if each.status == "chosen" else ""
        result.add_row(Text(f"{tick} {each.format} {mark}"), *cells, style=style)
    return result


def cells_of(candidate: Candidate) -> list[str]:
    """The figures of one row, in the table's order; "-" for what was not measured."""
    size = figure(candidate.size_bytes / 1e6) if candidate.size_bytes is not None else "-"
    error, cosine = worst_error(candidate), worst_cosine(candidate)
    errors = [
        error_figure(error) if error is not None else "-",
        f"{cosine:.4f}" if cosine is not None else "-",
    ]
    if (profile := measured(candidate.profile)) is None:
        return ["-", "-", "-", size, "-", "-", *errors]
    knee = profile.knee()
    return [
        figure(knee.throughput),
        str(knee.batch),
        figure(knee.p99_ms),
        size,
        figure(profile.resident_bytes / 1e6),
        figure(profile.cold_start_s * 1000),
        *errors,
    ]


def figure(value: float) -> str:
    """Three significant digits, and all those before the point: 0.0213, 4.13, 12,345."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def error_figure(value: float) -> str:
    """Two significant digits, which is all that an error has: 1.4e-06, 0.41, 152."""
    return figure(value) if abs(value) >= 100 else f"{value:.2g}"


def _reasons(fallen: Sequence[Candidate]) -> Iterable[str]:
    """A line for all formats with one fate and one reason (its first line)."""
    fates: dict[tuple[str, str], list[str]] = {}
    for each in fallen:
        fates.setdefault((each.status, each.why.partition("\n")[0]), []).append(each.format)
    for (status, why), formats in fates.items():
        yield f"{', '.join(formats)}: {status}{', ' if why else ''}{why}"
