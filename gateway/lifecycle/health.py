"""Watches over a server that somebody else runs: out of the fleet while it does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gateway.fleet import Node

log = logging.getLogger(__name__)

FIRST_WAIT_S = 0.1
LAST_WAIT_S = 2.0


async def watch(
    node: Node, answers: Callable[[], Awaitable[bool]], changed: Callable[[], None]
) -> None:
    """Ask an engine that is suspected, and again until it answers. Until cancelled.

    As long as nobody suspects it, nothing is asked: what it is sent says how it is.
    """
    while True:
        await node.suspected.wait()
        node.suspected.clear()
        wait_s = FIRST_WAIT_S
        while not await answers():
            if node.up:
                node.up = False
                log.error("%s is out of the fleet: %s", node.name, node.reason)
                changed()
            await asyncio.sleep(wait_s)
            wait_s = min(LAST_WAIT_S, 2 * wait_s)
        node.seen = True
        if not node.up:
            node.up, node.reason = True, ""
            log.info("%s answers: it is back in the fleet", node.name)
            changed()
