"""Watches how busy the models are that there may be more copies of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from gateway.core import ModelKey, ModelState
from gateway.lifecycle.policy import Defaults
from gateway.lifecycle.window import Scaler
from gateway.placement import EngineKind
from gateway.rows import EngineRow, ModelRow

LOOK_EVERY_S = 1.0  # while such a model is in use; Knative looks every 2 s


class Autoscaler:
    """Says how many copies of each ready model are wanted for its load."""

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._scalers: dict[ModelKey, Scaler] = {}

    def look(
        self, rows: Sequence[ModelRow], engines: Sequence[EngineRow], now: float
    ) -> tuple[tuple[ModelRow, ...], float]:
        """Return the rows with `desired` filled in, and when to look again, whatever happens.

        With one engine of its kind there is nothing to want. What is asleep is forgotten.
        """
        usable: Counter[EngineKind] = Counter(engine.kind for engine in engines if engine.up)
        if max(usable.values(), default=0) < 2:
            self._scalers.clear()
            return tuple(rows), math.inf
        scalers: dict[ModelKey, Scaler] = {}
        looked: list[ModelRow] = []
        wake_at = math.inf
        for row in rows:
            several = row.kind is not None and usable[row.kind] > 1
            if row.state is not ModelState.READY or not several:
                looked.append(row)
                continue
            scaler = scalers[row.key] = self._scalers.get(row.key) or Scaler()
            scaler.observe(now, row.in_flight)
            ready = sum(replica.state is ModelState.READY for replica in row.replicas)
            desired = scaler.desired(now, ready, self._target(row))
            looked.append(replace(row, desired=desired))
            if row.in_flight or ready > max(1, row.min_replicas):
                wake_at = now + LOOK_EVERY_S
        self._scalers = scalers
        return tuple(looked), wake_at

    def _target(self, row: ModelRow) -> float:
        """Return how many requests in flight one copy is meant for.

        Where nobody says: twice what its instances run at once. With those a batch runs in each,
        and the next one is complete when it ends; what comes beyond waits longer.
        """
        told = row.placement.target_concurrency or self._defaults.target_concurrency
        return told or 2.0 * max(1, row.batch_size) * row.instances
