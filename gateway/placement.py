"""How a model is kept: what its configuration says of it, and why a copy left memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class EngineKind(StrEnum):
    """What runs models: this process, or a Triton server."""

    EMBEDDED = "embedded"
    TRITON = "triton"


class Cause(StrEnum):
    """Why a copy leaves memory."""

    IDLE = "idle"  # not used for its idle time
    EVICTED = "evicted"  # another model needs the space
    OVERSIZED = "oversized"  # its engine turned out to hold more than its budget
    SURPLUS = "surplus"  # fewer copies will do
    MOVED = "moved"  # its engine leaves
    LOST = "lost"  # its engine has it no more, or does not answer
    ASKED = "asked"  # unloaded by name, or to be loaded anew
    RETIRED = "retired"  # it has left the repository


@dataclass(frozen=True, slots=True)
class Placement:
    """One model's settings, `tidegate.*` in its config.pbtxt. None leaves it to the gateway's.

    `min_replicas` copies are held ready, demand or not, and never put to sleep or evicted.
    `max_replicas` bounds the copies that load adds. `idle_timeout_s` is after how long without use
    it sleeps. `target_concurrency` is how many requests in flight one copy is meant for.
    `memory_bytes` is what one copy takes; None has it predicted and measured. `engine` is the kind
    of engine that must run it.
    """

    min_replicas: int | None = None
    max_replicas: int | None = None
    idle_timeout_s: float | None = None
    target_concurrency: float | None = None
    memory_bytes: int | None = None
    engine: EngineKind | None = None


NO_PLACEMENT = Placement()
