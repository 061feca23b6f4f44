"""Loading and unloading by name: what a client of the repository RPCs asks for."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from gateway.core import ModelState
from gateway.errors import LoadFailed, ModelNotFound
from gateway.registry import Entry, Registry
from gateway.repository.reader import has_model, read_model, read_repository

log = logging.getLogger(__name__)


class RepositoryControl:
    """Reads the repository into the registry, and asks the reconciler for loads and unloads."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self._root = root
        self._registry = registry

    async def read_all(self) -> None:
        """Take in every model that is not known yet. Raises `StartError` without a repository."""
        for listing in await asyncio.to_thread(read_repository, self._root):
            if not self._registry.knows(listing.name):
                self._registry.update(listing)
                for folder in listing.ignored:
                    log.warning(
                        "%s/%s is ignored: versions are whole numbers > 0", listing.name, folder
                    )
                if listing.error:
                    log.error("model %s cannot be served: %s", listing.name, listing.error)

    async def load(self, name: str) -> None:
        """Read a model anew and return once its versions are ready; reload what has changed.

        Raises `LoadFailed` with the reason; what was loaded before then stays loaded.
        """
        if not await asyncio.to_thread(has_model, self._root, name):
            self._registry.remove(name)
            raise LoadFailed(f"failed to load '{name}', failed to poll from model repository")
        listing = await asyncio.to_thread(read_model, self._root, name)
        self._registry.update(listing)
        if listing.error:
            raise LoadFailed(f"failed to load '{name}', {listing.error}")
        for entry in self._registry.versions(name):
            await self._until_ready(entry)

    async def unload(self, name: str) -> None:
        """Return once no version of a model is in memory. The next request loads it again.

        Requests in flight are answered first. Raises `ModelNotFound`.
        """
        if not self._registry.knows(name):
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        for entry in list(self._registry.entries()):
            if entry.key.name == name:
                await self._until_cold(entry)

    async def _until_ready(self, entry: Entry) -> None:
        failures = entry.failures
        if entry.state is ModelState.READY and not entry.unload_requested:
            return
        entry.load_requested = True
        self._registry.poke()
        while entry.state is not ModelState.READY or entry.unload_requested:
            await entry.next_move()
            if entry.retired:
                raise LoadFailed(f"failed to load '{entry.key.name}', it has left the repository")
            if entry.failures > failures:
                raise LoadFailed(
                    f"failed to load '{entry.key.name}', version {entry.key.version}: "
                    f"{entry.reason}"
                )

    async def _until_cold(self, entry: Entry) -> None:
        while entry.state in (ModelState.LOADING, ModelState.READY, ModelState.UNLOADING):
            if entry.state is not ModelState.UNLOADING:
                entry.unload_requested = True
                self._registry.poke()
            await entry.next_move()
