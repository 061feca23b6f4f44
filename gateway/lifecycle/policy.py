"""Which models to load and unload, and where: a function of the table and `now`. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from enum import IntEnum

from gateway.core import ModelKey, ModelState
from gateway.lifecycle.eviction import Lodger, grown_at, worth
from gateway.lifecycle.places import Order, Places
from gateway.lifecycle.space import Space, spaces
from gateway.placement import Cause, EngineKind
from gateway.rows import LEAST_NAP_S, ModelRow, ReplicaRow, Snapshot

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 120.0
# A model that has waited for space so long takes it from others that are in use, or new.
STARVING_S = 2.0
# Who is expected is loaded so many of its load times before, and sleeps before that only where it
# can for longer than so many of them (and than `LEAST_NAP_S`).
LOADS_AHEAD = 2.0
NAP_LOADS = 10.0
# Where models have to make way, so many engines are compared: those whose poorest is worth least.
CHOICES = 4
COLD = (ModelState.UNAVAILABLE, ModelState.UNKNOWN)
NOWHERE = ""  # where an ensemble is "loaded": the gateway runs it itself


@dataclass(frozen=True, slots=True)
class Load:
    """Make a copy of this version ready in this engine."""

    key: ModelKey
    engine: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Let a copy's requests finish, then free it. `reason` is what the index will say."""

    key: ModelKey
    engine: str
    reason: str
    cause: Cause


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell whoever wants this version that it cannot be loaded now, and why."""

    key: ModelKey
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget this version: it has left the repository and holds nothing."""

    key: ModelKey


Action = Load | Unload | Refuse | Drop


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for a model whose configuration says nothing; see `Placement`."""

    idle_timeout_s: float = 300.0
    max_replicas: int = 0  # 0: as many as there are engines
    target_concurrency: float = 0.0  # 0: by the model's batch size and instances


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and when to decide again if nobody pokes (absolute seconds, or inf)."""

    actions: tuple[Action, ...]
    wake_at: float


class _Urgency(IntEnum):
    """Whose need for space comes first."""

    WAITED_FOR = 0
    PINNED = 1
    EXPECTED = 2
    FOR_LOAD = 3


@dataclass(frozen=True, slots=True)
class _Need:
    """One more copy that is wanted. Who waits longest comes first."""

    urgency: _Urgency
    since: float
    row: ModelRow

    @property
    def order(self) -> tuple[int, float, ModelKey]:
        return self.urgency, self.since, self.row.key


def decide(snapshot: Snapshot, now: float, defaults: Defaults) -> Decision:
    """Return the actions that the table calls for at `now`.

    A cold version loads when requests wait for it (once its back-off has passed), when it was asked
    for by name, or when copies of it are wanted always (`min_replicas`). It goes where most space
    is free; where none is, copies that are worth less make way, and what they leave is kept for it.
    A ready version sleeps when asked to, when it has left the repository, or after its idle time
    without use. What an engine that does not answer had is taken to be lost.

    Elapsed time alone counts: how often this is called does not.
    """
    table = _Table(snapshot, now, defaults)
    for row in snapshot.models:
        if row.state is ModelState.READY:
            table.ready(row)
        elif row.state in COLD and (
            row.waiting or row.load_requested or row.min_replicas or row.retired or row.expected
        ):
            table.cold(row)
        # a load or unload under way reports its own end
    for space in table.spaces.values():
        table.shrink(space)
    for need in sorted(table.needs, key=lambda need: need.order):
        table.place(need)
    return Decision(tuple(table.actions), table.wake_at)


class _Table:
    """One decision in the making."""

    def __init__(self, snapshot: Snapshot, now: float, defaults: Defaults) -> None:
        self.now = now
        self.defaults = defaults
        self.spaces = spaces(snapshot)
        self.actions: list[Action] = []
        self.needs: list[_Need] = []
        self.wake_at = math.inf
        self._places: dict[EngineKind | None, Places] = {}

    def cold(self, row: ModelRow) -> None:
        """Look at a version that is not in memory, and is wanted there or has to go."""
        if row.retired and not row.waiting:
            self.actions.append(Drop(row.key))
            return
        asked = row.load_requested or row.waiting
        if not row.load_requested and self.now < row.retry_at:
            self._look_again(row.retry_at)
        elif row.expected and not asked and not row.min_replicas:
            self._expect(row, *row.expected)
        elif row.kind is None:
            self.actions.append(Load(row.key, NOWHERE))
        else:
            urgency = _Urgency.WAITED_FOR if asked else _Urgency.PINNED
            self.needs.append(_Need(urgency, row.waiting_since if row.waiting else 0.0, row))

    def _expect(self, row: ModelRow, begin: float, end: float) -> None:
        """Have a version ready when its next request is due, where there is room."""
        begin -= LOADS_AHEAD * row.load_s
        if self.now < begin:
            self._look_again(begin)
        elif self.now < end and row.kind is not None:
            self.needs.append(_Need(_Urgency.EXPECTED, begin, row))

    def ready(self, row: ModelRow) -> None:
        """Look at a version that serves."""
        copies = []
        for replica in row.replicas:
            if replica.state is not ModelState.READY:
                continue
            space = self.spaces.get(replica.engine)
            if replica.lost or (space is not None and not space.engine.up):
                self._unload(row, replica, "its engine has it no more", Cause.LOST)
            elif space is not None and space.engine.leaving:
                self._unload(row, replica, "its engine leaves", Cause.MOVED)
            else:
                copies.append(replica)
        if row.retired:
            self._unload_all(row, copies, "left the repository", Cause.RETIRED)
        elif row.unload_requested:
            self._unload_all(row, copies, "unloaded", Cause.ASKED)
        elif not row.min_replicas and self._idle(row):
            self._unload_all(row, copies, "idle", Cause.IDLE)
        elif copies and row.kind is not None:
            self._copies(row, copies)

    def shrink(self, space: Space) -> None:
        """Have an engine that turned out to hold more than its budget hold less."""
        over = -(space.free + space.freeing)
        if over > 0:
            for lodger in space.victims(over, self.now, starving=True) or ():
                self._unload(*lodger, "its engine holds too much", Cause.OVERSIZED)

    def place(self, need: _Need) -> None:
        """Load a copy that is wanted, or make room for it."""
        row, size = need.row, need.row.size_bytes
        held = {replica.engine for replica in row.replicas}

        def takes(space: Space) -> bool:
            return space.takes(row) and space.engine.name not in held

        places = self._places_for(row)
        space = self._with_room(row, places, takes)
        if space is not None and space.may_load:
            space.take(row)
            self.actions.append(Load(row.key, space.engine.name))
            return
        if space is None:  # perhaps it is being made already
            space = _first(places.freeing, takes, lambda space: size <= space.free + space.freeing)
        if space is not None:
            space.queue(size)
        elif need.urgency is not _Urgency.FOR_LOAD:  # which is worth less than what is there
            self._make_room(need, places, takes)

    def _places_for(self, row: ModelRow) -> Places:
        if row.kind not in self._places:
            kin = [space for space in self.spaces.values() if space.engine.kind is row.kind]
            self._places[row.kind] = Places(kin, self.now)
        return self._places[row.kind]

    def _with_room(self, row: ModelRow, places: Places, takes: _Takes) -> Space | None:
        """Return an engine with room now: one that has the model already, else the emptiest."""
        for name in sorted(row.held_by):
            space = self.spaces.get(name)
            if space is not None and space.usable and takes(space) and row.size_bytes <= space.free:
                return space
        return _first(places.free, takes, lambda space: row.size_bytes <= space.free)

    def _make_room(self, need: _Need, places: Places, takes: _Takes) -> None:
        size = need.row.size_bytes
        starving = need.urgency is _Urgency.WAITED_FOR and self.now >= need.since + STARVING_S
        choices: list[tuple[int, int, Space, list[Lodger]]] = []
        anywhere = True
        own = worth(need.row, size, self.now) if need.urgency is _Urgency.EXPECTED else math.inf
        hopeless = size >= places.barren[starving] or (
            size >= places.modest_bytes and own <= places.modest
        )
        if not hopeless:
            with closing(places.poor[starving].walk()) as poorest:
                for space in poorest:
                    anywhere = anywhere and takes(space)
                    # where no load may be queued the end of one brings the next decision
                    if not takes(space) or not space.may_queue or size > space.roomy:
                        continue
                    leave = space.victims(size - space.free - space.freeing, self.now, starving)
                    if leave is not None and all(
                        worth(row, copy.bytes, self.now) < own for row, copy in leave
                    ):
                        choices.append((len(leave), len(choices), space, leave))
                        if len(choices) == CHOICES:
                            break
        if choices:
            *_, space, leave = min(choices, key=lambda choice: choice[:2])
            for lodger in leave:
                self._unload(*lodger, f"evicted for {need.row.key}", Cause.EVICTED)
            space.queue(size)
            return
        if need.urgency is _Urgency.EXPECTED and need.row.expected is not None:
            if anywhere and size <= places.modest_bytes and own >= places.modest:
                places.modest, places.modest_bytes = own, size
            # the nearer its next use is the more it is worth
            _, end = need.row.expected
            self._look_again(self.now + max(1.0, (end - self.now) / 4))
            return
        if anywhere:
            places.barren[starving] = min(size, places.barren[starving])
        best = _first(places.freeing, lambda space: takes(space) and size <= space.roomy)
        if best is not None:
            self._look_again_for(need, best)
            best.claim(size)
        elif need.urgency is _Urgency.WAITED_FOR:
            self._hold_or_refuse(need.row, takes)

    def _look_again_for(self, need: _Need, space: Space) -> None:
        """Come back when somebody may make way who may not now."""
        if need.urgency is _Urgency.WAITED_FOR and self.now < need.since + STARVING_S:
            self._look_again(need.since + STARVING_S)
        for lodger in space.lodgers:
            if (grown := grown_at(lodger.row)) > self.now:
                self._look_again(grown)

    def _hold_or_refuse(self, row: ModelRow, takes: _Takes) -> None:
        """Refuse a version that fits nowhere; wait for an engine that may come back."""
        if row.replicas:
            return  # a copy whose version has left memory meanwhile is on its way out
        fit = [space for space in self.spaces.values() if takes(space)]
        usable = [space for space in fit if space.usable]
        if usable:
            widest = max(space.roomy for space in usable)
            reason = (
                f"it takes {row.size_bytes} bytes, and no engine's memory budget has more than "
                f"{widest:.0f} beside pinned models"
            )
            self.actions.append(Refuse(row.key, reason))
        elif row.load_requested or not any(space.engine.seen for space in fit):
            reasons = [space.engine.reason for space in fit if space.engine.reason]
            reason = reasons[0] if reasons else f"there is no {row.kind} engine to load it"
            self.actions.append(Refuse(row.key, reason))

    def _copies(self, row: ModelRow, copies: list[ReplicaRow]) -> None:
        """Have as many copies as are wanted, and one in each engine that had it ready before."""
        loading = 0
        if len(row.replicas) > len(copies):
            loading = sum(replica.state is ModelState.LOADING for replica in row.replicas)
        most = row.placement.max_replicas or self.defaults.max_replicas or len(self.spaces)
        wanted = max(row.min_replicas, min(row.desired, most))
        if len(copies) + loading < wanted and self.now < row.copy_retry_at:
            self._look_again(row.copy_retry_at)
        elif len(copies) + loading < wanted:
            pinned = len(copies) + loading < row.min_replicas
            urgency = _Urgency.PINNED if pinned else _Urgency.FOR_LOAD
            self.needs.append(_Need(urgency, row.loaded_at, row))
        elif row.desired and len(copies) > wanted and not loading:
            for replica in sorted(copies, key=lambda copy: (copy.running, copy.engine))[
                : len(copies) - max(1, wanted)
            ]:
                self._unload(row, replica, "fewer copies will do", Cause.SURPLUS)

    def _idle(self, row: ModelRow) -> bool:
        idle_s = row.placement.idle_timeout_s
        wait_s = max(self.defaults.idle_timeout_s if idle_s is None else idle_s, row.keep_s)
        if row.expected:
            wait_s = max(row.keep_s, self._wait_expected_s(row, *row.expected, wait_s))
        if row.in_flight or row.waiting or row.running:
            self._look_again(self.now + wait_s)  # what is in flight now ends no sooner than now
            return False
        if self.now >= row.last_used + wait_s:
            return True
        self._look_again(row.last_used + wait_s)
        return False

    def _wait_expected_s(self, row: ModelRow, begin: float, end: float, idle_s: float) -> float:
        """Return for how long after its last use a version stays whose next use is expected.

        To the end of that time, and its idle time; or hardly at all, where it can sleep before.
        """
        nap_s = max(LEAST_NAP_S, NAP_LOADS * row.load_s)
        begin -= LOADS_AHEAD * row.load_s
        if self.now < begin and begin - self.now > nap_s:
            return nap_s
        return max(end - row.last_used, idle_s)

    def _unload_all(
        self, row: ModelRow, copies: list[ReplicaRow], reason: str, cause: Cause
    ) -> None:
        for replica in copies:
            self._unload(row, replica, reason, cause)

    def _unload(self, row: ModelRow, replica: ReplicaRow, reason: str, cause: Cause) -> None:
        self.actions.append(Unload(row.key, replica.engine, reason, cause))
        if (space := self.spaces.get(replica.engine)) is not None:
            space.leaves(row, replica)
            for places in self._places.values():
                places.freeing.less(space)

    def _look_again(self, when: float) -> None:
        if when < self.wake_at:
            self.wake_at = when


_Takes = Callable[[Space], bool]


def _first(order: Order, takes: _Takes, has_room: _Takes | None = None) -> Space | None:
    """Return the first engine that takes a model; `has_room` fails for all after one."""
    with closing(order.walk()) as engines:
        for space in engines:
            if has_room is not None and not has_room(space):
                return None
            if takes(space):
                return space
    return None


def retry_after_s(failures: int) -> float:
    """Return how long to leave a model alone after so many failed loads in a row, in seconds."""
    return min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures - 1, 30))
