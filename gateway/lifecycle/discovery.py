"""Servers behind a DNS name, as a Kubernetes headless service has them: they come and go."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

ASK_EVERY_S = 10.0  # DNS tells nobody of changes

Resolve = Callable[[str, int], Awaitable[set[str]]]
Join = Callable[[str, asyncio.Event], Coroutine[Any, Any, None]]


async def addresses(host: str, port: int) -> set[str]:
    """Return what a name stands for now, as HOST:PORT. Raises OSError where that is nothing."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = {str(address[0]) for *_, address in found}
    return {f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in hosts}


async def follow(host: str, port: int, join: Join, resolve: Resolve = addresses) -> None:
    """Have an engine for each address of a name, until cancelled.

    `join(address, gone)` is a task for as long as the engine is there; `gone` is set once the name
    stands for that address no more. A name that cannot be resolved changes nothing.
    """
    loop = asyncio.get_running_loop()
    present: dict[str, asyncio.Event] = {}
    complained = False
    async with asyncio.TaskGroup() as engines:
        while True:
            asked = loop.time()
            try:
                found = await resolve(host, port)
            except OSError as error:
                if not complained:
                    log.warning("cannot resolve %s: %s (the engines stay as they are)", host, error)
                complained = True
            else:
                complained = False
                for address in sorted(found - present.keys()):
                    present[address] = asyncio.Event()
                    engines.create_task(join(address, present[address]))
                for address in present.keys() - found:
                    present.pop(address).set()
            await asyncio.sleep(asked + ASK_EVERY_S - loop.time())
