"""Watches over an engine whose server the gateway starts itself: back-off after it has failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from gateway.fleet import Node
from gateway.lifecycle.policy import retry_after_s

log = logging.getLogger(__name__)

QUESTIONS = 3  # that a server leaves without an answer until it is ended: it may be busy
STEADY_S = 60.0  # a server that was well for so long starts anew without earlier ends' back-off


class Mortal(Protocol):
    """A server that may fail, and is started anew with the next load."""

    async def over(self) -> str:
        """Return the reason once it has ended by itself or could not be started."""
        ...

    async def answers(self) -> bool:
        """Return whether it answers, or need not because it does not run."""
        ...

    async def give_up(self) -> None:
        """End a server that does not answer."""
        ...


async def supervise(node: Node, server: Mortal, changed: Callable[[], None]) -> None:
    """Keep loads away from a server that has failed; end one that does not answer.

    Until cancelled.
    """
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_back_off(node, server, changed))
        tasks.create_task(_end_stalled(node, server))


async def _end_stalled(node: Node, server: Mortal) -> None:
    while True:
        await node.suspected.wait()
        node.suspected.clear()
        for _ in range(QUESTIONS):
            if await server.answers():
                break
        else:
            await server.give_up()


async def _back_off(node: Node, server: Mortal, changed: Callable[[], None]) -> None:
    """Have it out for 1 s, and twice as long each time that it does not last."""
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        began = loop.time()
        reason = await server.over()
        failures = 1 if loop.time() - began >= STEADY_S else failures + 1
        wait_s = retry_after_s(failures)
        log.error("%s: %s (it may be started anew in %.0f s)", node.name, reason, wait_s)
        node.up, node.reason = False, reason
        changed()
        await asyncio.sleep(wait_s)
        node.up, node.reason = True, ""
        changed()
