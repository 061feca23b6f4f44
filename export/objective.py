"""What an export is to be good at: "throughput", "latency", "memory", with or without a bound."""

import re
from dataclasses import dataclass
from typing import Literal, Self

GOALS = ("latency", "throughput", "memory")


@dataclass(frozen=True)
class Objective:
    """The goal, and the p99 latency in milliseconds that a batch may not exceed (None: no bound).

    latency: the least median at batch size 1. throughput: the most inferences per second. memory:
    the fewest bytes of a loaded copy.
    """

    goal: Literal["latency", "throughput", "memory"]
    p99_ms: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "throughput" or "throughput under p99 10 ms"; raises `ValueError`."""
        found = re.fullmatch(
            r"(latency|throughput|memory)(?:\s+under\s+p99\s+(\d+(?:\.\d+)?)\s*(ms|s))?",
            text.strip(),
        )
        if found is None:
            raise ValueError(
                f"an objective is {', '.join(GOALS)}, or one of them with a bound such as "
                f"'throughput under p99 10 ms', not {text!r}"
            )
        goal, bound, unit = found.groups()
        p99_ms = None if bound is None else float(bound) * (1000 if unit == "s" else 1)
        if p99_ms == 0:
            raise ValueError("nothing answers within 0 ms")
        return cls(goal, p99_ms)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.goal if self.p99_ms is None else f"{self.goal} under p99 {self.p99_ms:g} ms"
