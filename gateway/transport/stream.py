"""One ModelStreamInfer call: many requests in, their answers out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from tritonclient.grpc import service_pb2 as pb

from gateway.errors import TidegateError

# Requests of one stream that are being answered; the next is read once there is room. As many as
# fill several batches, and few enough that a client who does not read its answers costs little.
WINDOW = 256

Read = Callable[[], Awaitable[pb.ModelInferRequest | None]]
"""Gives the next request, None at the end of the client's."""
Write = Callable[[bytes], Awaitable[None]]
"""Sends a serialized ModelStreamInferResponse; returns once the client may be sent another."""


Answer = Callable[[pb.ModelInferRequest], AsyncGenerator[bytes, None]]
"""Yields the serialized answers to one request. What it raises ends the stream."""
Decoupled = Callable[[pb.ModelInferRequest], bool]
"""Whether a request's model answers as often as it likes, in its own time."""


async def serve(read: Read, write: Write, answer: Answer, decoupled: Decoupled) -> None:
    """Answer a stream's requests until the client has no more.

    Answers leave in the order of their requests, those of decoupled models as they come.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            await _Stream(write, answer, tasks).run(read, decoupled)
    except* TidegateError as group:
        raise group.exceptions[0] from None


class _Stream:
    def __init__(self, write: Write, answer: Answer, tasks: asyncio.TaskGroup) -> None:
        self._write = write
        self._answer = answer
        self._tasks = tasks
        self._room = asyncio.Semaphore(WINDOW)
        self._writing = asyncio.Lock()
        # set once the newest request with a place in line has been answered
        self._last = asyncio.Event()
        self._last.set()

    async def run(self, read: Read, decoupled: Decoupled) -> None:
        await self._room.acquire()
        while (message := await read()) is not None:
            if decoupled(message):
                self._tasks.create_task(self._serve(message))
            else:
                before, self._last = self._last, asyncio.Event()
                self._tasks.create_task(self._serve_in_turn(message, before, self._last))
            await self._room.acquire()

    async def _serve_in_turn(
        self, message: pb.ModelInferRequest, before: asyncio.Event, done: asyncio.Event
    ) -> None:
        try:
            await self._serve(message, before)
        finally:
            done.set()

    async def _serve(
        self, message: pb.ModelInferRequest, before: asyncio.Event | None = None
    ) -> None:
        """Answer one request, after `before` where its answer has a place in line."""
        try:
            async with aclosing(self._answer(message)) as answers:
                async for answer in answers:
                    if before is not None:
                        await before.wait()
                    async with self._writing:
                        await self._write(answer)
        finally:
            self._room.release()
