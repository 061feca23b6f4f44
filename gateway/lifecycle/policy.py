"""Which models to load and unload: a function of the table and `now`. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.core import ModelKey, ModelRow, ModelState

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 120.0


@dataclass(frozen=True, slots=True)
class Load:
    """Make this version ready."""

    key: ModelKey


@dataclass(frozen=True, slots=True)
class Unload:
    """Let its requests finish, then free this version. `reason` is what the index will say."""

    key: ModelKey
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget this version: it has left the repository and holds nothing."""

    key: ModelKey


Action = Load | Unload | Drop


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and when to decide again if nobody pokes (absolute seconds, or inf)."""

    actions: tuple[Action, ...]
    wake_at: float


def decide(rows: Sequence[ModelRow], now: float, idle_timeout_s: float) -> Decision:
    """Return the actions that the table calls for at `now`.

    A cold version loads when requests wait for it (once its back-off has passed) or when it was
    asked for by name. A ready one sleeps when asked to, when it has left the repository, or after
    `idle_timeout_s` without use. Elapsed time alone counts: how often this is called does not.
    """
    actions: list[Action] = []
    wake_at = math.inf
    for row in rows:
        if row.state in (ModelState.UNKNOWN, ModelState.UNAVAILABLE):
            action, due = _cold(row, now)
        elif row.state is ModelState.READY:
            action, due = _ready(row, now, idle_timeout_s)
        else:
            continue  # a load or unload under way reports its own end
        if action is not None:
            actions.append(action)
        wake_at = min(wake_at, due)
    return Decision(tuple(actions), wake_at)


def _cold(row: ModelRow, now: float) -> tuple[Action | None, float]:
    if row.retired and not row.waiting:
        return Drop(row.key), math.inf
    if row.load_requested:
        return Load(row.key), math.inf
    if row.waiting:
        return (Load(row.key), math.inf) if now >= row.retry_at else (None, row.retry_at)
    return None, math.inf


def _ready(row: ModelRow, now: float, idle_timeout_s: float) -> tuple[Action | None, float]:
    if row.retired:
        return Unload(row.key, "left the repository"), math.inf
    if row.unload_requested:
        return Unload(row.key, "unloaded"), math.inf
    wait_s = max(idle_timeout_s, row.keep_s)
    if row.in_flight or row.waiting or row.running:
        # whatever is in flight now ends no sooner than now
        return None, now + wait_s
    idle_at = row.last_used + wait_s
    return (Unload(row.key, "idle"), math.inf) if now >= idle_at else (None, idle_at)


def retry_after_s(failures: int) -> float:
    """Return how long to leave a model alone after so many failed loads in a row, in seconds."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 30))
