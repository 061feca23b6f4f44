"""Watches over a server that somebody else runs: out of the fleet while it does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from gateway.fleet import Node

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.1
LAST_WAIT_S = 2.0


# An engine that has batches and ends none for so long is asked whether it is there at all.
STALLED_AFTER_S = 3.0


class Server(Protocol):
    """A server that may stop to answer, and come back."""

    async def answers(self) -> bool:
        """Return whether it is there and ready."""
        ...

    async def abandon(self) -> None:
        """Have what waits for its answers wait no longer."""
        ...

    async def catch_up(self) -> None:
        """Tell it what it has missed while it did not answer."""
        ...


async def watch(
    node: Node,
    server: Server,
    changed: Callable[[], None],
    back: Callable[[], Awaitable[None]],
) -> None:
    """Ask an engine that is suspected, and again until it answers. Until cancelled.

    As long as nobody suspects it, nothing is asked: what it is sent says how it is. `back` is
    awaited once one that was out answers, before it is in the fleet again.
    """
    while True:
        await node.suspected.wait()
        node.suspected.clear()
        wait_s = FIRST_WAIT_S
        while not await server.answers():
            if node.up:
                node.up = False
                log.error("%s is out of the fleet: %s", node.name, node.reason)
                changed()
                await server.abandon()
            await asyncio.sleep(wait_s)
            wait_s = min(LAST_WAIT_S, 2 * wait_s)
        node.seen = True
        if not node.up:
            await server.catch_up()
            await back()
            node.up, node.reason = True, ""
            log.info("%s answers: it is back in the fleet", node.name)
            changed()
