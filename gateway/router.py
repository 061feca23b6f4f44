"""A model's name -> the entry that serves it, ready."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway import signature
from gateway.core import InferRequest, InferResponse, ModelState
from gateway.errors import (
    DeadlineExceeded,
    ModelLost,
    ModelNotFound,
    ModelUnavailable,
    TidegateError,
)
from gateway.registry import Entry, Registry

log = logging.getLogger(__name__)

READY = ModelState.READY
DEADLINE_SLACK_S = 0.002


class Router:
    """Finds the entry, waits until it is ready, and hands the request to its batcher."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the model's answer.

        A request for a cold model raises demand and waits, no longer than its deadline; where the
        load fails it raises `ModelUnavailable` with the load's reason at once.
        """
        started = time.perf_counter()
        entry = self._registry.find(request.model, request.version)
        try:
            signature.check(request, entry.spec)
            if entry.state is not READY:
                await self._until_ready(entry, request)
            try:
                # no await between here and the lease: the state cannot change meanwhile
                with entry.lease as scheduler:
                    response = await scheduler.infer(request)
            except ModelLost:
                await self._reloaded(entry, request)
                with entry.lease as scheduler:
                    response = await scheduler.infer(request)
        except TidegateError:
            entry.stats.failure += 1
            raise
        except asyncio.CancelledError:
            # A deadline that passed is a failure; a client that left is nobody's. The loop's clock
            # has whole milliseconds, and gRPC's own timer may strike just before the batcher's.
            if asyncio.get_running_loop().time() >= request.deadline - DEADLINE_SLACK_S:
                entry.stats.failure += 1
            raise
        entry.stats.answered(time.perf_counter() - started)
        return response

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the answers of a decoupled model as they come; of any other its one answer.

        Raises like `infer`. A decoupled model that its server has forgotten is loaded anew unless
        answers have come already.
        """
        entry = self._registry.find(request.model, request.version)
        if not entry.spec.decoupled:
            yield await self.infer(request)
            return
        started = time.perf_counter()
        may_ask_again = True
        try:
            signature.check(request, entry.spec)
            if entry.state is not READY:
                await self._until_ready(entry, request)
            while True:
                try:
                    with entry.lease as scheduler:
                        async with aclosing(scheduler.stream(request)) as answers:
                            async for answer in answers:
                                may_ask_again = False
                                yield answer
                    break
                except ModelLost:
                    if not may_ask_again:
                        raise
                    may_ask_again = False
                    await self._reloaded(entry, request)
        except TidegateError:
            entry.stats.failure += 1
            raise
        entry.stats.answered(time.perf_counter() - started)

    async def _reloaded(self, entry: Entry, request: InferRequest) -> None:
        """Have a model that the engine's server has forgotten loaded anew."""
        # the lease has only just ended: READY is still the loss that the answer was about
        if entry.state is READY:
            log.warning(
                "%s is not in Triton any more (it has restarted, or unloaded it): loading",
                entry.key,
            )
            entry.unload_requested = True
            self._registry.poke()
            await entry.next_move()
        await self._until_ready(entry, request)

    async def _until_ready(self, entry: Entry, request: InferRequest) -> None:
        """Return once the entry serves the request; nothing may be awaited before its lease."""
        spec, failures = entry.spec, entry.stats.load_failures
        entry.waiting += 1
        self._registry.poke()
        try:
            async with asyncio.timeout_at(request.deadline):
                while entry.state is not READY:
                    _raise_if_hopeless(entry, failures)
                    await entry.next_move()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request's deadline has passed while model '{entry.key.name}' was loading"
            ) from None
        finally:
            entry.waiting -= 1
        if entry.spec is not spec:  # the wait ended in a newer reading of the model
            signature.check(request, entry.spec)


def _raise_if_hopeless(entry: Entry, failures: int) -> None:
    """Raise where a model's next move cannot be to READY; `failures` were known before the wait."""
    if entry.retired:
        raise ModelNotFound(f"Request for unknown model: '{entry.key.name}' is not found")
    if entry.stats.load_failures > failures or entry.backing_off():
        raise ModelUnavailable(
            f"model '{entry.key.name}' version {entry.key.version} is not available: {entry.reason}"
        )
