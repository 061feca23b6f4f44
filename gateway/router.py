"""A model's name -> the entry that serves it, ready."""

from __future__ import annotations

import asyncio
import time

from gateway import signature
from gateway.core import InferRequest, InferResponse, ModelState
from gateway.errors import ModelNotFound, ModelUnavailable, TidegateError
from gateway.registry import Entry, Registry

READY = ModelState.READY
DEADLINE_SLACK_S = 0.002


class Router:
    """Finds the entry, waits until it is ready, and hands the request to its batcher."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the model's answer.

        A request for a cold model raises demand and waits; where the load fails it raises
        `ModelUnavailable` with the load's reason at once.
        """
        started = time.perf_counter()
        entry = self._registry.find(request.model, request.version)
        try:
            spec = entry.spec
            signature.check(request, spec)
            if entry.state is not READY:
                await self._until_ready(entry)
                if entry.spec is not spec:  # the wait ended in a newer reading of the model
                    signature.check(request, entry.spec)
            # no await between here and the lease: the state cannot change meanwhile
            with entry.lease() as batcher:
                response = await batcher.infer(request)
        except TidegateError:
            entry.stats.failure += 1
            raise
        except asyncio.CancelledError:
            # A deadline that passed is a failure; a client that left is nobody's. The loop's clock
            # has whole milliseconds, and a client's deadline may strike just before the timer.
            if asyncio.get_running_loop().time() >= request.deadline - DEADLINE_SLACK_S:
                entry.stats.failure += 1
            raise
        entry.stats.answered(time.perf_counter() - started)
        return response

    async def _until_ready(self, entry: Entry) -> None:
        failures = entry.stats.load_failures
        entry.waiting += 1
        self._registry.poke()
        try:
            while entry.state is not READY:
                if entry.retired:
                    raise ModelNotFound(
                        f"Request for unknown model: '{entry.key.name}' is not found"
                    )
                if entry.stats.load_failures > failures or entry.backing_off():
                    raise ModelUnavailable(
                        f"model '{entry.key.name}' version {entry.key.version} is not available: "
                        f"{entry.reason}"
                    )
                await entry.next_move()
        finally:
            entry.waiting -= 1
