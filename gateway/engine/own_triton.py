"""A Triton server of the gateway's own, as an engine: it runs while it has models."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from gateway.core import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelSpec,
    Parameters,
    Tensor,
)
from gateway.engine.base import Loaded
from gateway.engine.budget import Meter
from gateway.engine.triton import TritonEngine
from gateway.errors import EngineUnavailable, TidegateError

log = logging.getLogger(__name__)

STOP_AFTER_S = 30.0  # Knative's grace before the last pod goes (protocol.md, "Scaling")


class Server(Protocol):
    """A process that can be started again and again."""

    async def start(self) -> None:
        """Return once it serves. Raises a `TidegateError` with the reason where it does not."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...

    async def stop(self, within_s: float = ...) -> None:
        """End it, and kill it where that takes longer; return once it is gone."""
        ...

    def memory_bytes(self) -> int:
        """Return how much of the memory that its models take is in use."""
        ...


class OwnTriton:
    """Starts its server with the first load, and ends it `stop_after_s` after the last model left.

    `engine` reaches the server at an address that outlives its restarts. Whoever owns this awaits
    `over` again and again: that is what stops an idle server and says when one has died.
    """

    def __init__(
        self, server: Server, engine: TritonEngine, stop_after_s: float = STOP_AFTER_S
    ) -> None:
        self._server = server
        self._meter = Meter(server.memory_bytes)
        self._engine = engine
        self._stop_after_s = stop_after_s
        self._serving = False
        self._keys: set[ModelKey] = set()
        self._loads = 0
        self._idle_since = math.inf
        self._failure = ""
        self._moving = asyncio.Lock()  # one start or stop at a time
        self._changed = asyncio.Event()

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        """Have the server load a model; it is started first where it does not run.

        Raises `EngineUnavailable` where it cannot be started.
        """
        self._loads += 1
        try:
            async with self._moving:
                if not self._serving:
                    await self._start()
            # first, so that the `unload` that follows a cancelled load finds it
            self._keys.add(spec.key)
            try:
                with self._meter.load(spec.file_bytes) as taken:
                    spec, _ = await self._engine.load(spec)
                return Loaded(spec, taken.bytes)
            except Exception:
                self._keys.discard(spec.key)
                raise
        finally:
            self._loads -= 1
            self._note_idle()

    async def unload(self, key: ModelKey) -> None:
        """Give a version back. A server that has ended has forgotten it by itself."""
        if self._serving:
            await self._engine.unload(key)
        self._keys.discard(key)
        self._note_idle()

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        """Send one batch; see `TritonEngine.infer`."""
        self._meter.disturb()
        return await self._engine.infer(key, inputs, outputs, parameters)

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        """Send a request as it came; see `TritonEngine.forward`."""
        self._meter.disturb()
        return await self._engine.forward(key, request)

    def stream(self, key: ModelKey, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield a request's answers; see `TritonEngine.stream`."""
        return self._engine.stream(key, request)

    async def close(self) -> None:
        """End the server and close the connection."""
        async with self._moving:
            self._serving = False
            await self._server.stop()
        await self._engine.close()

    async def answers(self) -> bool:
        """Return whether the server answers; true of one that does not run."""
        return not self._serving or await self._engine.answers()

    async def give_up(self) -> None:
        """Kill a server that does not answer; `over` says so, and its batches end at once."""
        async with self._moving:
            if self._serving:
                await self._engine.abandon()
                self._fail("the Triton server did not answer and has been killed")
                await self._server.stop(within_s=0.0)

    async def over(self) -> str:
        """Return why the server is gone, once it has ended by itself or could not be started.

        Until then an idle one is stopped whenever it is due. For one caller at a time.
        """
        loop = asyncio.get_running_loop()
        while not self._failure:
            self._changed.clear()
            waits: list[asyncio.Task[object]] = [asyncio.create_task(self._changed.wait())]
            if self._serving:
                waits.append(asyncio.create_task(self._ended()))
            due = self._idle_since + self._stop_after_s
            try:
                await asyncio.wait(
                    waits,
                    timeout=max(0.0, due - loop.time()) if due < math.inf else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.wait(waits)
            if loop.time() >= self._idle_since + self._stop_after_s:
                await self._stop()
        reason, self._failure = self._failure, ""
        return reason

    async def _start(self) -> None:
        try:
            await self._server.start()
            await self._engine.connected()
        except TidegateError as error:
            self._fail(str(error))
            raise EngineUnavailable(str(error)) from None
        self._serving = True
        self._changed.set()

    async def _ended(self) -> None:
        code = await self._server.wait()
        if self._serving:
            self._fail(f"the Triton server has ended with {code}")

    def _fail(self, reason: str) -> None:
        self._serving = False
        self._keys.clear()
        self._engine.forget()
        self._idle_since = math.inf
        self._failure = reason
        self._changed.set()

    def _note_idle(self) -> None:
        idle = self._serving and not self._keys and not self._loads
        self._idle_since = asyncio.get_running_loop().time() if idle else math.inf
        self._changed.set()

    async def _stop(self) -> None:
        async with self._moving:
            if self._keys or self._loads or not self._serving:
                return
            log.info("stopping a Triton server that has no models")
            self._serving = False
            self._idle_since = math.inf
            await self._server.stop()
            self._engine.forget()
