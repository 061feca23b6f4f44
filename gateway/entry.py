"""One row of the registry: a model version, who uses it, and its lease."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gateway.batching.scheduler import Scheduler
from gateway.core import LEGAL_MOVES, ModelKey, ModelSpec, ModelState
from gateway.habit import Habit
from gateway.metrics import Metrics
from gateway.replicas import Replicas
from gateway.rows import HALF_LIFE_S, LEAST_NAP_S, ModelRow

IN_MEMORY = frozenset({ModelState.LOADING, ModelState.READY, ModelState.UNLOADING})
_COLD = frozenset({ModelState.UNKNOWN, ModelState.UNAVAILABLE})


class Entry:
    """One model version's row. `scheduler` is there exactly while the state is READY.

    The state is that of the version as a whole: READY while a copy of it is. `poke` has the
    control loop look at the table.
    """

    def __init__(
        self,
        spec: ModelSpec,
        metrics: Metrics,
        poke: Callable[[Entry], None],
        habit: Habit | None = None,
    ) -> None:
        self.spec = spec  # what requests are held against: as the engine has it, once loaded
        self.reading = spec  # what the repository says
        self.stats = metrics.model(spec.key)
        self.stats.tags = spec.metric_tags
        self.state = ModelState.UNKNOWN
        self.reason = ""
        self.scheduler: Scheduler | None = None
        self._poke = poke
        self._poked_at = -math.inf
        self.replicas = Replicas(lambda: poke(self))
        self.waiting = 0
        self.waiting_since = 0.0
        self.in_flight = 0
        self.habit = habit  # None: its next use is not predicted
        self.prewarmed = False  # loaded because requests were expected, and none has come yet
        self.last_used = 0.0
        self.frequency = 0.0
        self.frequency_at = 0.0
        self.loaded_at = 0.0
        self.pinned: int | None = None  # copies that somebody wants, in place of `min_replicas`
        self.measured_bytes = 0  # what a copy of `reading` took when it was last loaded
        self.failures = 0
        self.retry_at = 0.0
        self.put_off = False  # the last load failed for its engine's sake, not the model's
        self.copy_retry_at = 0.0
        self.held_by: set[str] = set()  # engines that had it ready before the gateway came
        self.load_requested = False
        self.unload_requested = False
        self.retired = False
        self.succeeds = False  # a version that serves until this one is ready
        self.loaded: ModelSpec | None = None  # the reading that was made ready last
        # what an override has replaced, until that is loaded
        self.fallback: ModelSpec | None = None
        self._refused: tuple[ModelSpec, str] | None = None
        self._replacement: ModelSpec | None = None
        # Held by a request while it uses the ready model: it is not unloaded meanwhile.
        self.lease = Lease(self)
        self.line = asyncio.Lock()
        self._moved = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def key(self) -> ModelKey:
        """The model's name and version."""
        return self.spec.key

    @property
    def resident_bytes(self) -> int:
        """What all copies hold."""
        return sum(replica.bytes for replica in self.replicas)

    @property
    def min_replicas(self) -> int:
        """How many copies are wanted whether or not anybody asks."""
        told = self.pinned if self.pinned is not None else self.spec.placement.min_replicas or 0
        return max(told, int(self.succeeds))

    @property
    def dormant(self) -> bool:
        """Whether there is nothing to decide about it: not in memory, and not wanted there."""
        return (
            self.state in _COLD
            and not self.waiting
            and not self.load_requested
            and not self.retired
            and not self.min_replicas
            and not len(self.replicas)
            and not self._is_expected
        )

    @property
    def _is_expected(self) -> bool:
        if self.habit is None or self.habit.expected is None:
            return False
        return asyncio.get_running_loop().time() < self.habit.expected[1]

    def use_begins(self, now: float) -> None:
        """Note that somebody wants it, for its habits. Nothing where these are not asked for."""
        if self.habit is not None:
            self.habit.use_begins(now)
            if self.prewarmed:
                self.stats.prewarms["used"] += 1
                self.prewarmed = False

    def row(self) -> ModelRow:
        """Return what `decide` needs to know, frozen."""
        spec = self.spec
        return ModelRow(
            key=spec.key,
            state=self.state,
            waiting=self.waiting,
            queued=self.scheduler.queued if self.scheduler else 0,
            running=self.scheduler.running if self.scheduler else 0,
            in_flight=self.in_flight,
            last_used=self.last_used,
            replicas=self.replicas.rows(),
            kind=None if spec.steps and not spec.forwarded else spec.kind,
            placement=spec.placement,
            min_replicas=self.min_replicas,
            size_bytes=self.measured_bytes or spec.placement.memory_bytes or spec.file_bytes,
            load_s=self.stats.last_load_s,
            loaded_at=self.loaded_at,
            waiting_since=self.waiting_since,
            frequency=self.frequency,
            frequency_at=self.frequency_at,
            held_by=frozenset(self.held_by),
            instances=spec.instances,
            batch_size=spec.max_batch_size,
            retry_at=self.retry_at,
            copy_retry_at=self.copy_retry_at,
            load_requested=self.load_requested,
            unload_requested=self.unload_requested,
            retired=self.retired,
            expected=self.habit.expected if self.habit is not None else None,
            sequential=spec.sequence is not None,
            keep_s=spec.sequence.max_idle_s if spec.sequence else 0.0,
        )

    @property
    def in_order(self) -> bool:
        """Whether who waits goes on in turn: requests of sequences must not overtake each other."""
        # what sequences an ensemble's members have is not known here
        return bool(self.spec.sequence or self.spec.steps)

    def backing_off(self) -> bool:
        """Whether a load failed so recently that demand must not repeat it yet."""
        return (
            self.state is ModelState.UNAVAILABLE
            and not self.put_off
            and asyncio.get_running_loop().time() < self.retry_at
        )

    def use_ends(self, now: float) -> None:
        """Note that nobody uses it any more, for its habits: it may be time for a nap."""
        if self.habit is not None:
            self.habit.use_ends(now)
            # the decision that follows looks again by itself, and so at later uses, too
            if self.habit.expected is not None and now >= self._poked_at + LEAST_NAP_S:
                self._poked_at = now
                self._poke(self)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Count one in who waits until the version is ready; until then it is not put to sleep."""
        if not self.waiting:
            self.waiting_since = asyncio.get_running_loop().time()
            self.use_begins(self.waiting_since)
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self.last_used = asyncio.get_running_loop().time()

    @property
    def newest(self) -> ModelSpec:
        """The version as last read; `reading` is what is, or was last, in memory."""
        return self._replacement or self.reading

    @property
    def stale(self) -> bool:
        """Whether a newer reading waits to take the place of `reading`."""
        return self._replacement is not None

    def reread(self, spec: ModelSpec) -> None:
        """Take the version as it now is on disk; one in memory is unloaded first."""
        self.retired = False
        if self.state in (ModelState.UNKNOWN, ModelState.UNAVAILABLE):
            if spec != self.reading:  # who waits for an equal one waits for this
                self._take(spec)
            self.failures, self.retry_at = 0, 0.0
        elif spec != self.newest:
            self._replacement = spec
            self.unload_requested = True

    def renew(self) -> None:
        """Have an ensemble made ready anew: one of its members is another now."""
        self.failures, self.retry_at = 0, 0.0
        if self.state in (ModelState.LOADING, ModelState.READY):
            self.unload_requested = True

    def replace(self) -> None:
        """Let a newer reading take the place of the one that has just left memory."""
        if self._replacement is not None:
            self._take(self._replacement)
            self._replacement = None

    def fall_back(self, reason: str) -> bool:
        """Return whether the override that could not be loaded makes way for what was before."""
        if self.fallback is None or self.stale:
            return False
        self._refused = (self.reading, reason)
        self._replacement = self.fallback
        return True

    def refused_for(self, reading: ModelSpec) -> str:
        """Return why a reading made way for the one before it; "" where it did not."""
        return self._refused[1] if self._refused and self._refused[0] is reading else ""

    def _take(self, spec: ModelSpec) -> None:
        overrides = spec.override is not None and spec is not self.fallback
        self.fallback = self.reading if overrides else None
        self.spec = self.reading = spec
        self.measured_bytes = 0
        self.stats.tags = spec.metric_tags

    def move(self, state: ModelState, reason: str = "") -> None:
        """Change the state and wake whoever waits for that. For the reconciler only."""
        if state not in LEGAL_MOVES[self.state]:
            raise AssertionError(f"{self.key}: {self.state} -> {state}: this is a bug")
        self.state = state
        self.reason = reason
        self.wake()

    def wake(self) -> None:
        """Have whoever waits for this entry look again."""
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def next_move(self) -> None:
        """Return after the next change of state, or of whether the version is still there."""
        await self._moved.wait()

    async def drained(self) -> None:
        """Return when no request holds a lease."""
        while self.in_flight:
            self._drained.clear()
            await self._drained.wait()


class Lease:
    """The use of a ready model, held by scope, by many requests at once. Gives its scheduler."""

    __slots__ = ("_entry", "_loop")

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        # asked for once: on Python 3.11 every question costs a system call
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> Scheduler:
        entry = self._entry
        if entry.scheduler is None:
            raise AssertionError(f"{entry.key}: lease on a {entry.state} model: this is a bug")
        if entry.habit is not None:
            entry.use_begins(self._loop.time())
        entry.in_flight += 1
        return entry.scheduler

    def __exit__(self, *_exc: object) -> None:
        entry = self._entry
        entry.in_flight -= 1
        entry.last_used = now = self._loop.time()
        # what is asked for often, of late above all, is worth keeping (`policy`)
        faded = 0.5 ** ((now - entry.frequency_at) / HALF_LIFE_S)
        entry.frequency, entry.frequency_at = entry.frequency * faded + 1.0, now
        if entry.in_flight == 0:
            entry._drained.set()
            entry.use_ends(now)
