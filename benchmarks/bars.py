"""What has to hold, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Verdict = Literal["passed", "missed", "not measured"]

# Rates, or latencies, of a peer by round.
Rounds = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A bar after the measurement. `measured` is None where there is nothing to hold against it."""

    row: str
    claim: str
    limit: float
    at_least: bool
    measured: float | None
    note: str = ""
    broken: bool = False  # the gateway itself gave no valid run

    @property
    def verdict(self) -> Verdict:
        """An unmeasured bar never passes; one that the gateway failed to run is missed."""
        if self.broken:
            return "missed"
        if self.measured is not None and not self._holds(self.measured):
            return "missed"
        return "not measured" if self.note or self.measured is None else "passed"

    def _holds(self, measured: float) -> bool:
        return measured >= self.limit if self.at_least else measured <= self.limit


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio of two peers' figures, taken round by round, and the limit of its median.

    With several peers below the line the hardest of them counts.
    """

    claim: str
    over: str
    under: tuple[str, ...]
    limit: float
    at_least: bool = True

    def judge(self, row: str, rounds: Rounds, absent: Mapping[str, str]) -> Outcome:
        """Return the outcome; `absent` says why a peer has no rounds.

        Where one of several is absent, the others can still show that the bar is missed.
        """
        missing = [peer for peer in (self.over, *self.under) if peer not in rounds]
        note = "; ".join(f"{peer}: {absent.get(peer, 'not chosen')}" for peer in missing)
        ratios = [
            ratio(rounds[self.over], rounds[peer])
            for peer in self.under
            if self.over in rounds and peer in rounds
        ]
        hardest = (min if self.at_least else max)(ratios, default=None)
        return Outcome(row, self.claim, self.limit, self.at_least, hardest, note)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median over the rounds of one peer's figure as a share of another's."""
    return round(median(a / b for a, b in zip(over, under, strict=True)), 4)
