"""What a drain waits for: the calls in flight, gRPC's and HTTP's."""

from __future__ import annotations

import asyncio

from gateway.errors import ShuttingDown


class Calls:
    """The calls in flight, a request of a stream being one. Once `closed`, new ones are refused."""

    def __init__(self) -> None:
        self.count = 0
        self.closed = False
        self._left = asyncio.Event()

    def __enter__(self) -> None:
        if self.closed:
            raise ShuttingDown("the gateway is shutting down")
        self.count += 1

    def __exit__(self, *_exc: object) -> None:
        self.count -= 1
        if self.closed:
            self._left.set()

    async def finished(self) -> None:
        """Return when no call is left."""
        while self.count:
            self._left.clear()
            await self._left.wait()
