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
# Fewer where this many bytes of answers would wait to be read: 1 MB each, 256 of them took 560 MB.
HELD_BYTES = 32 * 1024 * 1024
_GUESSED_BYTES = 1024 * 1024  # the size of the first answer, while it is not there

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
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            await _Stream(write, answer, tasks).run(read, decoupled)
    except* TidegateError as group:
        failure = group.exceptions[0]
    if failure is not None:
        raise failure


class _Stream:
    def __init__(self, write: Write, answer: Answer, tasks: asyncio.TaskGroup) -> None:
        self._write = write
        self._answer = answer
        self._tasks = tasks
        self._under_way = 0
        self._one_less = asyncio.Event()
        # the largest answer of late: each smaller one takes an eighth off it
        self._answer_bytes = _GUESSED_BYTES
        self._writing = asyncio.Lock()
        self._ended = False
        # set once the newest request with a place in line has been answered
        self._last = asyncio.Event()
        self._last.set()

    async def run(self, read: Read, decoupled: Decoupled) -> None:
        while (message := await self._next(read)) is not None:
            self._under_way += 1
            if decoupled(message):
                self._tasks.create_task(self._serve(message))
            else:
                before, self._last = self._last, asyncio.Event()
                self._tasks.create_task(self._serve_in_turn(message, before, self._last))
            await self._room()

    async def _next(self, read: Read) -> pb.ModelInferRequest | None:
        try:
            return await read()
        except TidegateError:
            await self._end(self._last)
            raise

    async def _room(self) -> None:
        """Return once another request may be read."""
        while self._under_way >= max(1, min(WINDOW, HELD_BYTES // self._answer_bytes)):
            self._one_less.clear()
            await self._one_less.wait()

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
                    self._answer_bytes = max(len(answer), self._answer_bytes * 7 // 8, 1)
                    if before is not None:
                        await before.wait()
                    async with self._writing:
                        if not self._ended:
                            await self._write(answer)
        except TidegateError:
            await self._end(before)
            raise
        finally:
            self._under_way -= 1
            self._one_less.set()

    async def _end(self, before: asyncio.Event | None) -> None:
        """Return once an error may end the stream: its turn has come, and nothing is written.

        It cancels whatever is under way, and with half a write gRPC could send no status.
        """
        if before is not None:
            await before.wait()
        async with self._writing:
            self._ended = True
