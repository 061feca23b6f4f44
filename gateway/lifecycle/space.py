"""The memory of one engine in a decision: what is free, being freed, spoken for. Pure."""

from __future__ import annotations

import math

from gateway.core import ModelKey, ModelState
from gateway.lifecycle.eviction import Candidate, Lodger, candidates, victims
from gateway.rows import EngineRow, ModelRow, ReplicaRow, Snapshot


class Space:
    """Bytes of one engine. `free` is for loads now, `freeing` what copies on their way out leave.

    Bytes that a load under way has set aside are not free. Those that somebody has claimed, who
    waits until they are, are free for nobody else.
    """

    def __init__(self, engine: EngineRow) -> None:
        self.engine = engine
        self.budget = engine.budget_bytes or math.inf
        self.pinned = 0  # bytes that no demand can free
        self.free: float = self.budget
        self.freeing: float = 0.0
        self.lodgers: list[Lodger] = []
        self._loading = 0
        self._queued = 0
        self._going: set[ModelKey] = set()
        self._candidates: list[Candidate] | None = None

    def add(self, row: ModelRow, replica: ReplicaRow) -> None:
        """Count a copy in."""
        self.free -= replica.bytes
        if row.min_replicas and not row.retired:
            self.pinned += replica.bytes
        if ModelState.UNLOADING in (row.state, replica.state):
            self.freeing += replica.bytes
        elif replica.state is ModelState.LOADING:
            self._loading += 1
        else:
            self.lodgers.append(Lodger(row, replica))

    @property
    def usable(self) -> bool:
        """Whether anything may be loaded here."""
        return self.engine.up and not self.engine.leaving

    @property
    def roomy(self) -> float:
        """How much there may be free at most, beside what is pinned."""
        return self.budget - self.pinned

    def takes(self, row: ModelRow) -> bool:
        """Whether the engine is one that can run this version."""
        offers = self.engine.offers
        return self.engine.kind is row.kind and (offers is None or row.key.name in offers)

    @property
    def may_load(self) -> bool:
        """Whether one more load may begin."""
        return not self.engine.loads_at_once or self._loading < self.engine.loads_at_once

    @property
    def may_queue(self) -> bool:
        """Whether room is to be made for one more load.

        While as many as may run at once have theirs, and wait, the copies that would make way for
        another are worth more where they are.
        """
        bound = self.engine.loads_at_once
        return not bound or self._loading + self._queued < bound

    def take(self, row: ModelRow) -> None:
        """Set bytes aside for a load that begins now."""
        self.free -= row.size_bytes
        self._loading += 1
        if row.min_replicas:
            self.pinned += row.size_bytes

    def claim(self, size: int) -> None:
        """Keep bytes that are to become free for who waits for them."""
        self.free -= size

    def queue(self, size: int) -> None:
        """Keep the room that is there, or being made, for a load that begins as soon as it may."""
        self.claim(size)
        self._queued += 1

    def leaves(self, row: ModelRow, replica: ReplicaRow) -> None:
        """Take it that a copy is on its way out from now on."""
        self.freeing += replica.bytes
        self._going.add(row.key)
        if self._candidates is not None:  # who leaves is worth least: the others rank as before
            self._candidates = [each for each in self._candidates if each.key != row.key]

    def victims(self, need: float, now: float, starving: bool) -> list[Lodger] | None:
        """Return who makes way for `need` bytes; None where that cannot be."""
        return victims(self._ranked(now), need, starving)

    def least_worth(self, now: float, starving: bool) -> tuple[float, ...]:
        """Return what the copy is worth that makes way first; more than anything without one."""
        ranked = self._ranked(now)
        if not ranked or (ranked[0].rank and not starving):
            return (math.inf,)
        return ranked[0].rank, ranked[0].worth

    def _ranked(self, now: float) -> list[Candidate]:
        if self._candidates is None:
            staying = [lodger for lodger in self.lodgers if lodger.row.key not in self._going]
            self._candidates = candidates(staying, now)
        return self._candidates


def spaces(snapshot: Snapshot) -> dict[str, Space]:
    """Return the space of every engine, by its name."""
    found = {engine.name: Space(engine) for engine in snapshot.engines}
    for row in snapshot.models:
        for replica in row.replicas:
            if (space := found.get(replica.engine)) is not None:
                space.add(row, replica)
    return found
