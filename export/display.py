"""The progress of an export on the screen: a line a step, then the table of formats."""

import contextlib

from rich.console import Console
from rich.status import Status
from rich.text import Text

from export.errors import ExportError
from export.manifest import StepFacts

_MARKS = {"ok": ("✓", "green"), "failed": ("✗", "red"), "skipped": ("-", "dim")}


class Screen:
    """Prints to two consoles: progress and results to one, errors to the other."""

    def __init__(self, out: Console, errors: Console) -> None:
        self.out = out
        self._errors = errors
        self._status: Status | None = None

    def running(self, name: str) -> None:
        """Show that a step is running; one that did not say how it ended is over."""
        self.still()
        self._status = self.out.status(f"{name} ...")
        self._status.start()

    def ended(self, step: StepFacts) -> None:
        """Show the step's line: mark, name, seconds, what it did or why not."""
        self.still()
        mark, colour = _MARKS[step.status]
        if step.status == "skipped":
            line = Text.assemble((mark, colour), f" {step.name}: skipped, {step.why}")
        else:
            took = "  kept" if step.reused else f"{step.seconds:4.1f} s"
            first = step.why.partition("\n")[0]
            why = f"failed: {first}" if step.status == "failed" else step.why
            line = Text.assemble((mark, colour), f" {step.name:<25} {took}  ", why)
        self.out.print(line, soft_wrap=True)

    def failed(self, error: ExportError) -> None:
        """Say which step failed, why, and what to try."""
        self.still()
        place = f" ({error.step})" if error.step else ""
        self._errors.print(Text(f"tidegate export: {error}{place}", "red"), soft_wrap=True)
        if error.advice:
            self._errors.print(Text(f"try: {error.advice}"), soft_wrap=True)

    def still(self) -> None:
        """Take the running step's line away."""
        if self._status is not None:
            with contextlib.suppress(Exception):
                self._status.stop()
            self._status = None
