"""A model's name -> the entry that serves it, ready."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway import signature
from gateway.core import InferRequest, InferResponse, ModelState
from gateway.entry import Entry
from gateway.errors import DeadlineExceeded, ModelLost, ModelNotFound, TidegateError
from gateway.registry import Registry

log = logging.getLogger(__name__)

READY = ModelState.READY


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
            # none may overtake another of its sequence that is about to hear that it is ready
            if entry.state is not READY or (entry.waiting and entry.in_order):
                entry = await self._until_ready(entry, request)
            try:
                # no await between here and the lease: the state cannot change meanwhile
                with entry.lease as scheduler:
                    response = await scheduler.infer(request)
            except ModelLost:
                entry = await self._reloaded(entry, request)
                with entry.lease as scheduler:
                    response = await scheduler.infer(request)
        except (TidegateError, asyncio.CancelledError) as error:
            _count(entry, request, started, error)
            raise
        _count(entry, request, started)
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
        started = last = time.perf_counter()
        answered, asked_again = 0, False
        try:
            signature.check(request, entry.spec)
            if entry.state is not READY:
                entry = await self._until_ready(entry, request)
            while True:
                try:
                    with entry.lease as scheduler:
                        async with aclosing(scheduler.stream(request)) as answers:
                            async for answer in answers:
                                now = time.perf_counter()
                                entry.stats.responded(answered, now - last)
                                answered, last = answered + 1, now
                                yield answer
                    break
                except ModelLost:
                    if answered or asked_again:
                        raise
                    asked_again = True
                    entry = await self._reloaded(entry, request)
        except (TidegateError, asyncio.CancelledError, GeneratorExit) as error:
            _count(entry, request, started, error)
            raise
        _count(entry, request, started)

    async def _reloaded(self, entry: Entry, request: InferRequest) -> Entry:
        """Return the entry once a model that its engine has lost is loaded anew."""
        # the control loop has been told; until it has looked, the state is as before
        if entry.state is READY and not entry.replicas.serving:
            await entry.next_move()
        return await self._until_ready(entry, request)

    async def _until_ready(self, entry: Entry, request: InferRequest) -> Entry:
        """Return the entry that serves the request; nothing may be awaited before its lease.

        That is another where the version has left the repository meanwhile and none was asked for.
        """
        while True:
            try:
                await self._ready(entry, request)
            except ModelNotFound:
                successor = self._registry.find(request.model, request.version)
                if successor is entry:
                    raise
                signature.check(request, successor.spec)
                entry = successor
            if entry.state is READY:
                return entry

    async def _ready(self, entry: Entry, request: InferRequest) -> None:
        """Return once the entry is ready."""
        spec = entry.spec
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout_at(request.deadline):
                await self._registry.ready(entry)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the request's deadline has passed while model '{entry.key.name}' {_stage(entry)}"
            ) from None
        finally:
            if request.trace is not None:
                request.trace.span("cold_start", started, loop.time(), model=str(entry.key))
        if entry.spec is not spec:  # the wait ended in a newer reading of the model
            signature.check(request, entry.spec)


def _stage(entry: Entry) -> str:
    """Return what became of a model that somebody has waited for in vain."""
    if entry.state is not ModelState.UNAVAILABLE:
        return "was loading"
    return f"waited to be loaded ({entry.reason})" if entry.reason else "waited to be loaded"


def _count(
    entry: Entry, request: InferRequest, started: float, error: BaseException | None = None
) -> None:
    took_s = time.perf_counter() - started
    if error is None:
        entry.stats.answered(took_s)
    else:
        entry.stats.failed(error, took_s)
    if log.isEnabledFor(logging.DEBUG):
        outcome = "answered" if error is None else f"failed ({type(error).__name__}: {error})"
        log.debug("%s%s: %s in %.3f ms", request.label, entry.key, outcome, took_s * 1e3)
