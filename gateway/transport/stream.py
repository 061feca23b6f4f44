"""One ModelStreamInfer call: many requests in, their answers out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol

from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.errors import TidegateError

# Requests of one stream that are being answered; the next is read once there is room. As many as
# fill several batches, and few enough that a client who does not read its answers costs little.
WINDOW = 256

_FIELDS = pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name
_INFER_RESPONSE = _FIELDS["infer_response"].number << 3 | 2  # 2: length-delimited

Read = Callable[[], Awaitable[pb.ModelInferRequest | None]]
"""Gives the next request, None at the end of the client's."""
Write = Callable[[bytes], Awaitable[None]]
"""Sends a serialized ModelStreamInferResponse; returns once the client may be sent another."""


class Answers(Protocol):
    """Runs the requests of a stream."""

    def decoupled(self, message: pb.ModelInferRequest) -> bool:
        """Whether the model answers a request as often as it likes, in its own time."""
        ...

    def stream(self, message: pb.ModelInferRequest) -> AsyncGenerator[bytes, None]:
        """Yield the serialized answers to one request. Raises a `TidegateError`."""
        ...


async def serve(read: Read, write: Write, answers: Answers, errors_end_it: bool) -> None:
    """Answer a stream's requests until the client has no more.

    Answers leave in the order of their requests, those of decoupled models as they come. An error
    is an answer, too; with `errors_end_it` the first one is raised instead.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            await _Stream(write, answers, errors_end_it, tasks).run(read)
    except* TidegateError as group:
        raise group.exceptions[0] from None


class _Stream:
    def __init__(
        self, write: Write, answers: Answers, errors_end_it: bool, tasks: asyncio.TaskGroup
    ) -> None:
        self._write = write
        self._answers = answers
        self._errors_end_it = errors_end_it
        self._tasks = tasks
        self._room = asyncio.Semaphore(WINDOW)
        self._writing = asyncio.Lock()
        # the last answer that has to leave before the next one may
        self._last: asyncio.Event = asyncio.Event()
        self._last.set()

    async def run(self, read: Read) -> None:
        await self._room.acquire()
        while (message := await read()) is not None:
            if self._answers.decoupled(message):
                self._tasks.create_task(self._serve(message, None, None))
            else:
                before, self._last = self._last, asyncio.Event()
                self._tasks.create_task(self._serve(message, before, self._last))
            await self._room.acquire()

    async def _serve(
        self,
        message: pb.ModelInferRequest,
        before: asyncio.Event | None,
        done: asyncio.Event | None,
    ) -> None:
        """Answer one request, after `before` where its answer has a place in line."""
        try:
            try:
                async with aclosing(self._answers.stream(message)) as answers:
                    async for answer in answers:
                        if before is not None:
                            await before.wait()
                        await self._send(b"".join(wire.field(_INFER_RESPONSE, answer)))
            except TidegateError as error:
                if self._errors_end_it:
                    raise
                if before is not None:
                    await before.wait()
                failed = pb.ModelStreamInferResponse(error_message=str(error))
                failed.infer_response.id = message.id
                await self._send(failed.SerializeToString())
        finally:
            if done is not None:
                done.set()
            self._room.release()

    async def _send(self, data: bytes) -> None:
        async with self._writing:
            await self._write(data)
