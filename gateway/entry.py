"""One row of the registry: a model version, who uses it, and its lease."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.batching.scheduler import Scheduler
from gateway.core import LEGAL_MOVES, ModelKey, ModelRow, ModelSpec, ModelState
from gateway.metrics import Metrics

IN_MEMORY = frozenset({ModelState.LOADING, ModelState.READY, ModelState.UNLOADING})


class Entry:
    """One model version's row. `scheduler` is there exactly while the state is READY."""

    def __init__(self, spec: ModelSpec, metrics: Metrics) -> None:
        self.spec = spec  # what requests are held against: as the engine has it, once loaded
        self.reading = spec  # what the repository says
        self.stats = metrics.model(spec.key)
        self.stats.tags = spec.metric_tags
        self.state = ModelState.UNKNOWN
        self.reason = ""
        self.scheduler: Scheduler | None = None
        self.waiting = 0
        self.in_flight = 0
        self.last_used = 0.0
        self.resident_bytes = 0
        self.failures = 0
        self.retry_at = 0.0
        self.load_requested = False
        self.unload_requested = False
        self.retired = False
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

    def row(self) -> ModelRow:
        """Return what `decide` needs to know, frozen."""
        return ModelRow(
            key=self.key,
            state=self.state,
            waiting=self.waiting,
            queued=self.scheduler.queued if self.scheduler else 0,
            running=self.scheduler.running if self.scheduler else 0,
            in_flight=self.in_flight,
            last_used=self.last_used,
            resident_bytes=self.resident_bytes,
            retry_at=self.retry_at,
            load_requested=self.load_requested,
            unload_requested=self.unload_requested,
            retired=self.retired,
            keep_s=self.spec.sequence.max_idle_s if self.spec.sequence else 0.0,
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
            and asyncio.get_running_loop().time() < self.retry_at
        )

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Count one in who waits until the version is ready; until then it is not put to sleep."""
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
        entry.in_flight += 1
        return entry.scheduler

    def __exit__(self, *_exc: object) -> None:
        entry = self._entry
        entry.in_flight -= 1
        entry.last_used = self._loop.time()
        if entry.in_flight == 0:
            entry._drained.set()
