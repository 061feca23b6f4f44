"""The traffic file: read at the start, and again whenever it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from watchfiles import awatch

from gateway.errors import StartError
from gateway.traffic import Rules, parse

log = logging.getLogger(__name__)

QUIET_MS, AT_LATEST_MS = 50, 1000


async def read(file: Path) -> Rules:
    """Return the rules. Raises `StartError` where the file cannot be read, or is at fault."""
    try:
        text = await asyncio.to_thread(file.read_text, "utf-8")
    except OSError as error:
        raise StartError(f"cannot read the traffic file '{file}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartError(f"{file} is not a text file in UTF-8") from None
    return parse(text, str(file))


async def follow(file: Path, take: Callable[[Rules], None]) -> None:
    """Hand over the rules whenever they may have changed, until cancelled.

    Faulty ones change nothing. The folder is watched: editors replace a file, and Kubernetes the
    link that leads to it.
    """
    one_at_a_time = asyncio.Lock()  # or an older reading might be taken after a newer one

    async def look() -> None:
        async with one_at_a_time:
            try:
                rules = await read(file)
            except StartError as error:
                log.error("the traffic stays as it was: %s", error)
            else:
                take(rules)

    changes = awatch(
        file.parent, watch_filter=None, step=QUIET_MS, debounce=AT_LATEST_MS, recursive=False
    )
    async with asyncio.TaskGroup() as tasks:
        # its turn comes once the watch has begun: what changed between the start's reading and that
        tasks.create_task(look(), name="first look at the traffic file")
        async for _ in changes:
            await look()
