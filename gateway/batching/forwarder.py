"""Passes requests on one by one, to an engine that schedules them itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from gateway.batching import tensors
from gateway.batching.accounts import count_run
from gateway.core import InferRequest, InferResponse, ModelSpec
from gateway.engine.base import ModelEngine
from gateway.errors import DeadlineExceeded, NotSupported
from gateway.metrics import ModelStats


class Forwarder:
    """Serves a version whose scheduling is its engine's own: sequences, decoupled models.

    Requests of one sequence go one after the other, each once the one before has been answered:
    the engine must not see them in another order.
    """

    def __init__(self, spec: ModelSpec, engine: ModelEngine, stats: ModelStats) -> None:
        self._spec = spec
        self._engine = engine
        self._stats = stats
        self._sequences: dict[int | str, _Turns] = {}
        self._running = 0
        self._waiting = 0
        self._one_less = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._running and not self._waiting

    @property
    def running(self) -> int:
        """Requests that the engine has."""
        return self._running

    @property
    def queued(self) -> int:
        """Requests that wait for those before them in their sequences."""
        return self._waiting

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the engine's answer. Raises `NotSupported` for a decoupled model."""
        if self._spec.decoupled:
            raise NotSupported(
                "ModelInfer RPC doesn't support models with decoupled transaction policy"
            )
        queued_at = self._loop.time()
        async with self._turn(request):
            started = self._loop.time()
            async with _until(request.deadline):
                answer = await self._engine.forward(self._spec.key, request)
            self._count(request, queued_at, started)
        return answer

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the answers of a decoupled model as they come, until the deadline."""
        queued_at = self._loop.time()
        async with self._turn(request):
            started = self._loop.time()
            async with aclosing(self._engine.stream(self._spec.key, request)) as answers:
                while True:
                    # around each step: around them all it would strike whoever consumes this
                    async with _until(request.deadline):
                        answer = await anext(answers, None)
                    if answer is None:
                        break
                    yield answer
            self._count(request, queued_at, started)

    def _count(self, request: InferRequest, queued_at: float, started: float) -> None:
        rows = tensors.rows_of(request, self._spec)
        finished = self._loop.time()
        waits_s = [started - queued_at]
        count_run(
            self._stats, self._spec, [request], waits_s, rows, started, started, finished, finished
        )

    def resize(self, copies: int) -> None:
        """Do nothing: the engines themselves say how much they run at once."""

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        while not self.idle:
            self._one_less.clear()
            await self._one_less.wait()

    def close(self) -> None:
        """Raise AssertionError where requests are left."""
        assert self.idle, f"forwarder of {self._spec.key} closed with requests left: this is a bug"

    @asynccontextmanager
    async def _turn(self, request: InferRequest) -> AsyncIterator[None]:
        """Hold a request's place in its sequence; one without a sequence waits for nobody."""
        mark = request.sequence
        turns = self._sequences.setdefault(mark.id, _Turns()) if mark else _Turns()
        turns.holders += 1
        self._waiting += 1
        try:
            try:
                async with _until(request.deadline):
                    await turns.lock.acquire()
            finally:
                self._waiting -= 1
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1
                turns.lock.release()
        finally:
            turns.holders -= 1
            if mark and not turns.holders:
                del self._sequences[mark.id]
            self._one_less.set()


class _Turns:
    """Whose turn it is in one sequence: the lock serves first who came first."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.holders = 0


@asynccontextmanager
async def _until(deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the request's deadline has passed") from None
