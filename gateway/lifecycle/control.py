"""Loading and unloading by name: what a client of the repository RPCs asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from gateway.core import ModelState
from gateway.errors import LoadFailed, ModelNotFound
from gateway.registry import IN_MEMORY, Entry, Registry
from gateway.repository.reader import ModelListing

log = logging.getLogger(__name__)


class Catalogue(Protocol):
    """Where models come from: a repository folder, or what a Triton server knows."""

    async def names(self) -> list[str]:
        """Return the names of all models, servable or not."""
        ...

    async def has(self, name: str) -> bool:
        """Return whether there is a model of this name."""
        ...

    async def read(self, name: str) -> ModelListing:
        """Return a model as it is now; a fault of the model becomes the listing's `error`."""
        ...


class RepositoryControl:
    """Reads the catalogue into the registry, and asks the reconciler for loads and unloads."""

    def __init__(self, catalogue: Catalogue, registry: Registry) -> None:
        self._catalogue = catalogue
        self._registry = registry

    async def read_all(self) -> None:
        """Take in every model that is not known yet. Raises `StartError` without a repository."""
        for name in await self._catalogue.names():
            if self._registry.knows(name):
                continue
            listing = await self._catalogue.read(name)
            self._registry.update(listing)
            for folder in listing.ignored:
                log.warning("%s/%s is ignored: no whole number > 0 without leading 0", name, folder)
            if listing.error:
                log.error("model %s cannot be served: %s", name, listing.error)

    def adopt(self, names: Iterable[str]) -> None:
        """Take over models that the engine has ready already: they sleep when nobody uses them."""
        for name in names:
            if not self._registry.knows(name):
                log.info("%s is ready in the server, but not in the repository: left alone", name)
                continue
            for entry in self._registry.entries():
                if entry.key.name == name:
                    entry.load_requested = True
        self._registry.poke()

    async def load(self, name: str) -> None:
        """Read a model anew and return once its versions are ready; reload what has changed.

        Raises `LoadFailed` with the reason. Faulty files leave alone what is loaded; a model whose
        folder has gone is unloaded.
        """
        if not await self._catalogue.has(name):
            self._registry.remove(name)
            raise LoadFailed(f"failed to load '{name}', failed to poll from model repository")
        listing = await self._catalogue.read(name)
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
        wanted, stats = entry.newest, entry.stats
        loads, failures = stats.loads, stats.load_failures
        if not (entry.state is ModelState.READY and entry.reading is wanted):
            entry.load_requested = True
            self._registry.poke()
        # counters, because a state may be over before its waiters run
        while not (
            entry.loaded is wanted and (entry.state is ModelState.READY or stats.loads > loads)
        ):
            if entry.retired:
                raise LoadFailed(f"failed to load '{entry.key.name}', it has left the repository")
            if stats.load_failures > failures:
                raise LoadFailed(
                    f"failed to load '{entry.key.name}', version {entry.key.version}: "
                    f"{entry.reason}"
                )
            await entry.next_move()

    async def _until_cold(self, entry: Entry) -> None:
        unloads = entry.stats.unloads
        while entry.state in IN_MEMORY and entry.stats.unloads == unloads:
            if entry.state is not ModelState.UNLOADING:
                entry.unload_requested = True
                self._registry.poke()
            await entry.next_move()
