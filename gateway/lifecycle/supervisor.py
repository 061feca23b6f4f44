"""Keeps a server process running that the gateway has started itself."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from gateway.errors import TidegateError
from gateway.lifecycle.policy import retry_after_s

log = logging.getLogger(__name__)

STEADY_S = 60.0  # a server that ran for so long starts anew without the back-off of earlier ends


class Server(Protocol):
    """A process that can be started again and again."""

    async def start(self) -> None:
        """Return once it serves. Raises a `TidegateError` with the reason where it does not."""
        ...

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        ...


async def keep_running(server: Server) -> None:
    """Start a running server anew whenever it ends, until cancelled.

    The first time after 1 s, then after twice as long each time that it does not last.
    """
    loop = asyncio.get_running_loop()
    ends = 0
    while True:
        started_at = loop.time()
        code = await server.wait()
        ends = 1 if loop.time() - started_at >= STEADY_S else ends + 1
        log.error("the Triton server has ended with %d", code)
        while True:
            wait_s = retry_after_s(ends)
            log.info("starting the Triton server anew in %.0f s", wait_s)
            await asyncio.sleep(wait_s)
            try:
                await server.start()
            except TidegateError as error:
                log.error("%s", error)
                ends += 1
            else:
                break
