"""The control loop: look at the table, decide, act. The only writer of model states."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from gateway.batching.scheduler import Schedule
from gateway.core import ModelSpec, ModelState
from gateway.engine.base import Loaded
from gateway.entry import Entry
from gateway.errors import EngineUnavailable, TidegateError
from gateway.fleet import NOWHERE, Fleet
from gateway.lifecycle.autoscaler import Autoscaler
from gateway.lifecycle.ensembles import activate
from gateway.lifecycle.policy import (
    FIRST_RETRY_S,
    Action,
    Defaults,
    Drop,
    Load,
    Refuse,
    Unload,
    decide,
    retry_after_s,
)
from gateway.metrics import Histogram, Phase
from gateway.placement import Cause, EngineKind
from gateway.registry import Registry
from gateway.replicas import Replica
from gateway.rows import Snapshot

log = logging.getLogger(__name__)

PUT_OFF_S = 0.1  # after an engine did not answer: its watcher knows more by then
COPY_RETRY_S = 60.0  # after a further copy could not be loaded


Fetch = Callable[[ModelSpec], Awaitable[None]]


async def _is_here(_spec: ModelSpec) -> None:
    """Fetch nothing."""


class Reconciler:
    """Moves model versions between cold and ready, as `decide` says."""

    def __init__(
        self,
        registry: Registry,
        fleet: Fleet,
        defaults: Defaults,
        schedule: Schedule,
        cold_starts: Mapping[Phase, Histogram],
        fetch: Fetch = _is_here,
    ) -> None:
        self._registry = registry
        self._fleet = fleet
        self._defaults = defaults
        self._autoscaler = Autoscaler(defaults)
        self._schedule = schedule
        self._cold_starts = cold_starts
        self._fetch = fetch

    async def run(self) -> None:
        """Decide whenever somebody pokes or a decision falls due, until cancelled.

        Loads, unloads and batches are this task's children. When it is cancelled they end with it,
        and every model is unloaded before it returns.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._decide_and_act(tasks)
        finally:
            await self._unload_all()

    async def _decide_and_act(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now, engines = loop.time(), self._fleet.rows()
            models, look_at = self._autoscaler.look(self._registry.awake(), engines, now)
            snapshot = Snapshot(models, engines)
            decision = decide(snapshot, now, self._defaults)
            for action in decision.actions:
                self._start(action, tasks)
            self._let_go(snapshot)
            wake_at = min(decision.wake_at, look_at)
            due = wake_at if wake_at < math.inf else None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._registry.demand()

    def _let_go(self, snapshot: Snapshot) -> None:
        """Say of engines that are to leave that they hold nothing any more."""
        if leaving := [node for node in self._fleet if node.leaving]:
            held = {replica.engine for row in snapshot.models for replica in row.replicas}
            for node in leaving:
                if node.name not in held:
                    node.emptied.set()

    async def _unload_all(self) -> None:
        for entry in list(self._registry.entries()):
            if entry.state is ModelState.READY:
                entry.move(ModelState.UNLOADING)
            for replica in list(entry.replicas):
                await replica.node.engine.unload(entry.key)
                entry.replicas.remove(replica)
            if entry.state is ModelState.UNLOADING:
                entry.scheduler = None
                entry.move(ModelState.UNAVAILABLE, "the gateway has shut down")

    def _start(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        """Move the state at once, so that the next decision sees it; do the work in a task."""
        entry = self._registry.entry(action.key)
        match action:
            case Drop():
                self._registry.drop(entry.key)
            case Refuse(reason=reason):
                entry.move(ModelState.LOADING)
                self._load_failed(entry, reason, FIRST_RETRY_S)
            case Load(engine=name):
                entry.put_off = False
                wanted = entry.waiting or entry.load_requested or entry.min_replicas
                if entry.state is not ModelState.READY:
                    entry.prewarmed = not wanted
                replica = Replica(self._fleet[name] if name else NOWHERE)
                replica.bytes = entry.row().size_bytes if name else 0
                entry.replicas.add(replica)
                if entry.state is ModelState.READY:
                    work = self._load_another(entry, replica)
                else:
                    entry.move(ModelState.LOADING)
                    work = self._load(entry, replica, tasks)
                tasks.create_task(work, name=f"load {entry.key}")
            case Unload(engine=name, reason=reason, cause=cause):
                replica = entry.replicas[name]
                if any(r.state is ModelState.READY for r in entry.replicas if r is not replica):
                    replica.state = ModelState.UNLOADING
                    work = self._unload_one(entry, replica, reason, cause)
                else:
                    entry.move(ModelState.UNLOADING)
                    work = self._unload(entry, replica, reason, cause)
                tasks.create_task(work, name=f"unload {entry.key}")

    async def _load(self, entry: Entry, replica: Replica, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        # an ensemble's members have cold starts of their own
        cold = bool(entry.waiting) and replica.node is not NOWHERE
        waited_s = started - entry.waiting_since
        fetched = started
        try:
            if replica.node.reads_files and not entry.reading.steps:
                await self._fetch(entry.reading)
            fetched = loop.time()
            loaded = await self._open(entry.reading, replica, awaited=bool(entry.waiting))
        except asyncio.CancelledError:
            await self._forget(entry, replica)
            entry.move(ModelState.UNAVAILABLE, "the load was cancelled")
            raise
        except EngineUnavailable as error:
            # not the model's fault: another engine may load it, or this one once it is back
            replica.node.suspect(str(error))
            entry.replicas.remove(replica)
            if replica.node.seen and not entry.load_requested:
                self._put_off(entry, str(error))
            else:
                self._load_failed(entry, str(error), FIRST_RETRY_S)
        except TidegateError as error:
            entry.replicas.remove(replica)
            self._load_failed(entry, str(error))
        except Exception as error:
            log.exception("load of %s failed: this is a bug", entry.key)
            entry.replicas.remove(replica)
            self._load_failed(entry, f"{type(error).__name__}: {error}")
        else:
            took = loop.time() - fetched
            entry.failures, entry.retry_at = 0, 0.0
            self._loaded(entry, replica, loaded, took)
            if cold:
                self._cold_starts[Phase.WAIT].observe(waited_s)
                self._cold_starts[Phase.FETCH].observe(fetched - started)
                self._cold_starts[Phase.LOAD].observe(took)
                replica.first_run = self._cold_starts[Phase.FIRST_RUN]
            entry.spec = loaded.spec
            entry.scheduler = self._schedule(entry.spec, entry.stats, entry.replicas, tasks)
            entry.last_used = entry.loaded_at = loop.time()
            entry.loaded, entry.fallback = entry.reading, None
            # asked for meanwhile, a newer reading still has to be loaded
            entry.load_requested = entry.load_requested and entry.stale
            entry.move(ModelState.READY)
            self._registry.settle(entry.key.name)
        self._registry.poke(entry)

    async def _load_another(self, entry: Entry, replica: Replica) -> None:
        """Load one more copy of a version that is ready; where that fails it does without."""
        loop = asyncio.get_running_loop()
        try:
            if replica.node.reads_files:
                await self._fetch(entry.reading)
            fetched = loop.time()
            loaded = await replica.node.engine.load(entry.reading)
        except asyncio.CancelledError:
            await self._forget(entry, replica)
            raise
        except TidegateError as error:
            if isinstance(error, EngineUnavailable):
                replica.node.suspect(str(error))
            entry.replicas.remove(replica)
            entry.copy_retry_at = loop.time() + COPY_RETRY_S
            log.error("cannot load another copy of %s: %s", entry.key, error)
        else:
            if entry.scheduler is None or entry.reading is not entry.loaded:
                await self._forget(entry, replica)  # the version has left memory meanwhile
            else:
                self._loaded(entry, replica, loaded, loop.time() - fetched)
                entry.scheduler.resize(entry.replicas.serving)
        self._registry.poke(entry)

    def _loaded(self, entry: Entry, replica: Replica, loaded: Loaded, took_s: float) -> None:
        replica.state = ModelState.READY
        replica.node.seen = True
        entry.held_by.discard(replica.node.name)
        told = entry.reading.placement.memory_bytes or 0
        replica.bytes = entry.measured_bytes = max(told, loaded.resident_bytes)
        entry.stats.loads += 1
        entry.stats.load_s += took_s
        entry.stats.last_load_s = took_s
        log.info("loaded %s%s in %.0f ms", entry.key, _where(replica), took_s * 1e3)

    async def _forget(self, entry: Entry, replica: Replica) -> None:
        await replica.node.engine.unload(entry.key)
        entry.replicas.remove(replica)

    async def _open(self, spec: ModelSpec, replica: Replica, *, awaited: bool) -> Loaded:
        """Load a version; an ensemble is ready once its members are, and takes nothing itself."""
        if spec.steps:
            spec = await activate(self._registry, spec)
        return await replica.node.engine.load(spec, awaited=awaited)

    def _put_off(self, entry: Entry, reason: str) -> None:
        """Have who waits go on waiting: the load is tried again before long."""
        entry.retry_at = asyncio.get_running_loop().time() + PUT_OFF_S
        entry.put_off = True
        entry.prewarmed = False
        entry.move(ModelState.UNAVAILABLE, reason)
        log.warning("cannot load %s now: %s", entry.key, reason)

    def _load_failed(self, entry: Entry, reason: str, wait_s: float = 0.0) -> None:
        if entry.fall_back(reason):
            log.error("cannot load %s: %s (it stays as it was)", entry.key, reason)
        if entry.stale:  # the files have been mended while this load ran: the next one counts
            entry.unload_requested = False
            entry.replace()
            entry.move(ModelState.UNAVAILABLE, reason)
            return
        if not wait_s:
            entry.failures += 1
            wait_s = retry_after_s(entry.failures)
        entry.retry_at = asyncio.get_running_loop().time() + wait_s
        entry.load_requested = entry.unload_requested = entry.prewarmed = False
        entry.stats.load_failures += 1
        entry.move(ModelState.UNAVAILABLE, reason)
        log.error("cannot load %s: %s (next try not before %.0f s)", entry.key, reason, wait_s)

    async def _unload(self, entry: Entry, replica: Replica, reason: str, cause: Cause) -> None:
        """Let a version leave memory with its last copy."""
        await entry.drained()
        if entry.scheduler is None:
            raise AssertionError(f"{entry.key}: unload without a scheduler: this is a bug")
        # a batch whose every caller has left still runs
        await entry.scheduler.drained()
        entry.scheduler.close()
        entry.scheduler = None
        replica.state = ModelState.UNLOADING  # not before: it has to serve those who were in
        await self._forget(entry, replica)
        entry.unload_requested = False
        entry.replace()
        entry.stats.unloads += 1
        entry.stats.unload_causes[cause] += 1
        if entry.prewarmed:
            entry.stats.prewarms["unused"] += 1
            entry.prewarmed = False
        entry.move(ModelState.UNAVAILABLE, reason)
        self._registry.settle(entry.key.name)
        log.info("unloaded %s%s: %s", entry.key, _where(replica), reason)
        self._registry.poke(entry)

    async def _unload_one(self, entry: Entry, replica: Replica, reason: str, cause: Cause) -> None:
        """Unload one of several copies, once what runs in it has ended."""
        if entry.scheduler is not None:
            entry.scheduler.resize(entry.replicas.serving)
        await replica.drained()
        await self._forget(entry, replica)
        entry.stats.unload_causes[cause] += 1
        log.info("unloaded %s%s: %s", entry.key, _where(replica), reason)
        self._registry.poke(entry)


def _where(replica: Replica) -> str:
    return f" in {replica.node.name}" if replica.node.kind is EngineKind.TRITON else ""
