"""What a run amounts to: one value, printed as a table and written as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtest.metrics import ServerCounts

# Above this share of one core a single Python process cannot be trusted to keep asking.
SATURATED_CPU_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Report:
    """A finished run. `latency_ms` covers the rightly answered requests only."""

    started_at: str
    settings: dict[str, Any]
    requests: int
    failures: int
    elapsed_s: float
    latency_ms: dict[str, float]
    errors: list[dict[str, Any]]
    client_cpu_share: float
    first_request_ms: float
    server: ServerCounts | None
    server_note: str
    versions: dict[str, str]
    machine: dict[str, str | int]

    @property
    def requests_per_s(self) -> float:
        """Rightly answered requests each second."""
        return (self.requests - self.failures) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def inferences_per_s(self) -> float:
        """Rightly answered rows each second."""
        return self.requests_per_s * float(self.settings["batch_size"])

    @property
    def mean_batch_rows(self) -> float | None:
        """Rows in a batch that the server executed, on average; None if it does not say."""
        return self.server.mean_batch_rows if self.server else None

    @property
    def client_saturated(self) -> bool:
        """Whether the client was so busy that the server may be faster than measured."""
        return self.client_cpu_share > SATURATED_CPU_SHARE

    def as_json(self) -> dict[str, Any]:
        """Return everything, derived figures included, as JSON values."""
        return {
            **asdict(self),
            "requests_per_s": round(self.requests_per_s, 3),
            "inferences_per_s": round(self.inferences_per_s, 3),
            "mean_batch_rows": self.mean_batch_rows,
            "client_saturated": self.client_saturated,
        }

    def write(self, path: Path) -> None:
        """Write the JSON."""
        path.write_text(json.dumps(self.as_json(), indent=2) + "\n")

    def print(self, console: Console) -> None:
        """Print the table, and under it whatever the reader must know to believe it."""
        settings = self.settings
        console.print(
            f"{settings['model']} at {settings['host']}: "
            f"{settings['users']} users for {self.elapsed_s:.1f} s",
            markup=False,
            highlight=False,
        )
        table = Table(show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("throughput", f"{self.requests_per_s:,.1f} requests/s")
        if settings["batch_size"] > 1:
            table.add_row("", f"{self.inferences_per_s:,.1f} rows/s")
        for name in ("p50", "p95", "p99"):
            value = self.latency_ms.get(name)
            table.add_row(name, "-" if value is None else f"{value:,.2f} ms")
        table.add_row("requests", f"{self.requests:,}")
        table.add_row("errors", f"{self.failures:,}", style="red" if self.failures else None)
        mean = self.mean_batch_rows
        table.add_row("mean batch size", "-" if mean is None else f"{mean:.2f}")
        table.add_row("first request", f"{self.first_request_ms:,.1f} ms")
        table.add_row("client CPU", f"{self.client_cpu_share:.0%} of a core")
        console.print(table)
        for error in self.errors:
            line = f"{error['count']:,} x {error['status']}: {error['text']}"
            console.print(line, style="red", markup=False, highlight=False)
        if self.client_saturated:
            console.print(
                "The client itself was the bottleneck: the figures are a lower bound "
                "for the server.",
                style="bold red",
            )
        if self.server_note:
            console.print(f"mean batch size: {self.server_note}", style="dim", markup=False)
