"""Notices what changes in a repository's folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from watchfiles import Change, awatch

# Changes are told once nothing has changed for the first time, or the second has passed.
QUIET_MS, AT_LATEST_MS = 300, 3000


async def watch_folder(root: Path, changed: Callable[[Collection[str]], Awaitable[None]]) -> None:
    """Tell the names of the models whose folders have changed, until cancelled.

    The kernel says so (inotify): nothing is asked. What begins with a dot, or is none of a model's
    files by its name (an editor's copy), is nobody's change.
    """
    root = await asyncio.to_thread(root.resolve)

    def matters(_change: Change, path: str) -> bool:
        name = Path(path).name
        return not (name.startswith(".") or name.endswith(("~", ".swp", ".tmp")))

    changes = awatch(root, watch_filter=matters, step=QUIET_MS, debounce=AT_LATEST_MS)
    async for batch in changes:
        found = {Path(path).relative_to(root).parts[0] for _, path in batch if Path(path) != root}
        await changed(sorted(name for name in found if not name.startswith(".")))
