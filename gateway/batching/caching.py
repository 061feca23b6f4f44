"""Answers requests that came before from the response cache, and leaves the rest to a scheduler."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from gateway.batching.scheduler import Scheduler
from gateway.core import InferRequest, InferResponse, ModelSpec, Tensor
from gateway.metrics import ModelStats
from gateway.response_cache import Outputs, ResponseCache, digest_of

# A digest of so much takes 0.25 ms; one of more is made in a thread, off the event loop.
DIGEST_ON_LOOP_BYTES = 512 * 1024
STRING_BYTES = 256  # to pack one element of BYTES takes as long as to digest so much


class CachingScheduler:
    """Stands before the scheduler of one loaded version; its answers go when the version goes.

    The scheduler is asked for whole answers: a later request may want other outputs of the same.
    Requests of sequences pass by: an ensemble's member may remember those before.
    """

    def __init__(
        self, inner: Scheduler, cache: ResponseCache, spec: ModelSpec, stats: ModelStats
    ) -> None:
        self._inner = inner
        self._cache = cache
        self._spec = spec
        self._stats = stats
        self._owner = cache.new_owner()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self._inner.idle

    @property
    def running(self) -> int:
        """Runs in the engine."""
        return self._inner.running

    @property
    def queued(self) -> int:
        """Requests that wait for an instance."""
        return self._inner.queued

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the answer that an equal request got, or else the scheduler's own."""
        if request.sequence is not None:
            return await self._inner.infer(request)
        started = time.perf_counter()
        digest = await self._digest(request)
        held = self._cache.get(self._owner, digest)
        looked_up = time.perf_counter()
        stats = self._stats
        if held is not None:
            stats.cache_hits += 1
            stats.cache_hit_s += looked_up - started
            if request.trace is not None:
                now = asyncio.get_running_loop().time()
                began = now - (looked_up - started)
                request.trace.span("cache_hit", began, now, model=str(self._spec.key))
            return self._answer(request, held)
        whole = replace(request, outputs=[]) if request.outputs else request
        response = await self._inner.infer(whole)
        answered = time.perf_counter()
        self._cache.put(self._owner, digest, response.outputs)
        stats.cache_misses += 1
        stats.cache_miss_s += looked_up - started + time.perf_counter() - answered
        return self._answer(request, tuple(response.outputs)) if request.outputs else response

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the one answer."""
        yield await self.infer(request)

    def resize(self, copies: int) -> None:
        """Tell the scheduler."""
        self._inner.resize(copies)

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        await self._inner.drained()

    def close(self) -> None:
        """Close the scheduler, and let the version's answers go."""
        self._inner.close()
        self._cache.forget(self._owner)

    async def _digest(self, request: InferRequest) -> bytes:
        if digest_takes_long(request.inputs):
            return await asyncio.to_thread(digest_of, request, self._spec.parametric)
        return digest_of(request, self._spec.parametric)

    def _answer(self, request: InferRequest, held: Outputs) -> InferResponse:
        outputs = list(held)
        if request.outputs:
            by_name = {tensor.name: tensor for tensor in held}
            outputs = [by_name[name] for name in request.outputs]
        return InferResponse(request.model, self._spec.key.version, request.id, outputs)


def digest_takes_long(inputs: Sequence[Tensor]) -> bool:
    """Return whether the event loop should not wait for the digest of these."""
    return sum(map(_effort, inputs)) > DIGEST_ON_LOOP_BYTES


def _effort(tensor: Tensor) -> int:
    """Return what a tensor's digest costs, as so many bytes of numbers."""
    if tensor.datatype != "BYTES":
        return tensor.data.nbytes
    effort = tensor.data.size * STRING_BYTES
    # of more elements than that even the lengths are not to be added up here
    return effort if effort > DIGEST_ON_LOOP_BYTES else effort + sum(map(len, tensor.data.flat))
