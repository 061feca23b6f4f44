"""The control loop: look at the table, decide, act. The only writer of model states."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress

from gateway.batching.scheduler import Schedule
from gateway.core import ModelSpec, ModelState
from gateway.engine.base import Engine, Loaded
from gateway.entry import Entry
from gateway.errors import EngineUnavailable, TidegateError
from gateway.lifecycle.ensembles import activate
from gateway.lifecycle.policy import (
    FIRST_RETRY_S,
    Action,
    Drop,
    Load,
    Unload,
    decide,
    retry_after_s,
)
from gateway.registry import Registry

log = logging.getLogger(__name__)


class Reconciler:
    """Moves model versions between cold and ready, as `decide` says."""

    def __init__(
        self,
        registry: Registry,
        engine: Engine,
        idle_timeout_s: float,
        schedule: Schedule,
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._idle_timeout_s = idle_timeout_s
        self._schedule = schedule

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
            decision = decide(self._registry.rows(), loop.time(), self._idle_timeout_s)
            for action in decision.actions:
                self._start(action, tasks)
            due = decision.wake_at if decision.wake_at < math.inf else None
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._registry.demand()

    async def _unload_all(self) -> None:
        for entry in list(self._registry.entries()):
            if entry.state is ModelState.READY:
                entry.move(ModelState.UNLOADING)
            if entry.state is ModelState.UNLOADING:
                await self._engine.unload(entry.key)
                entry.scheduler = None
                entry.move(ModelState.UNAVAILABLE, "the gateway has shut down")

    def _start(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        """Move the state at once, so that the next decision sees it; do the work in a task."""
        entry = self._registry.entry(action.key)
        match action:
            case Drop():
                self._registry.drop(entry.key)
            case Load():
                entry.move(ModelState.LOADING)
                tasks.create_task(self._load(entry, tasks), name=f"load {entry.key}")
            case Unload(reason=reason):
                entry.move(ModelState.UNLOADING)
                tasks.create_task(self._unload(entry, reason), name=f"unload {entry.key}")

    async def _load(self, entry: Entry, tasks: asyncio.TaskGroup) -> None:
        started = time.perf_counter()
        try:
            loaded = await self._open(entry.reading)
        except asyncio.CancelledError:
            await self._engine.unload(entry.key)
            entry.move(ModelState.UNAVAILABLE, "the load was cancelled")
            raise
        except EngineUnavailable as error:
            # not the model's fault: the first request after the server is back is to find it
            self._load_failed(entry, str(error), FIRST_RETRY_S)
        except TidegateError as error:
            self._load_failed(entry, str(error))
        except Exception as error:
            log.exception("load of %s failed: this is a bug", entry.key)
            self._load_failed(entry, f"{type(error).__name__}: {error}")
        else:
            took = time.perf_counter() - started
            entry.failures, entry.retry_at = 0, 0.0
            entry.stats.loads += 1
            entry.stats.load_s += took
            entry.stats.last_load_s = took
            entry.spec, entry.resident_bytes = loaded
            entry.scheduler = self._schedule(entry.spec, entry.stats, tasks)
            entry.last_used = asyncio.get_running_loop().time()
            entry.loaded, entry.fallback = entry.reading, None
            # asked for meanwhile, a newer reading still has to be loaded
            entry.load_requested = entry.load_requested and entry.stale
            entry.move(ModelState.READY)
            log.info("loaded %s in %.0f ms", entry.key, took * 1e3)
        self._registry.poke()

    async def _open(self, spec: ModelSpec) -> Loaded:
        """Load a version; an ensemble is ready once its members are, and takes nothing itself."""
        if spec.steps:
            spec = await activate(self._registry, spec)
            if not spec.forwarded:
                return Loaded(spec, 0)
        return await self._engine.load(spec)

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
        entry.load_requested = entry.unload_requested = False
        entry.stats.load_failures += 1
        entry.move(ModelState.UNAVAILABLE, reason)
        log.error("cannot load %s: %s (next try not before %.0f s)", entry.key, reason, wait_s)

    async def _unload(self, entry: Entry, reason: str) -> None:
        await entry.drained()
        if entry.scheduler is None:
            raise AssertionError(f"{entry.key}: unload without a scheduler: this is a bug")
        # a batch whose every caller has left still runs
        await entry.scheduler.drained()
        entry.scheduler.close()
        entry.scheduler = None
        await self._engine.unload(entry.key)
        entry.resident_bytes = 0
        entry.unload_requested = False
        entry.replace()
        entry.stats.unloads += 1
        entry.move(ModelState.UNAVAILABLE, reason)
        log.info("unloaded %s: %s", entry.key, reason)
        self._registry.poke()
