"""Loading and unloading by name: what a client of the repository RPCs asks for."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Protocol
from weakref import WeakValueDictionary

from gateway.core import ModelState, Override
from gateway.entry import IN_MEMORY, Entry
from gateway.errors import LoadFailed, ModelNotFound, RepositoryError, TidegateError
from gateway.registry import Registry
from gateway.repository.overrides import Files, OverrideFiles
from gateway.repository.reader import ModelListing

log = logging.getLogger(__name__)

NO_FILES: Files = MappingProxyType({})


class Catalogue(Protocol):
    """Where models come from: a repository folder, or what a Triton server knows."""

    async def names(self) -> list[str]:
        """Return the names of all models, servable or not."""
        ...

    async def has(self, name: str) -> bool:
        """Return whether there is a model of this name."""
        ...

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        """Return a model as it is now; a fault of the model becomes the listing's `error`.

        What `override` says goes before what the repository says.
        """
        ...


class RepositoryControl:
    """Reads the catalogue into the registry, and asks the reconciler for loads and unloads.

    What a client has a model loaded with, in place of its own files, holds until the model is
    loaded by name without that, or unloaded by name: a model that goes to sleep meanwhile wakes
    with it.
    """

    def __init__(self, catalogue: Catalogue, registry: Registry) -> None:
        self._catalogue = catalogue
        self._registry = registry
        self._files = OverrideFiles()
        self._overrides: dict[str, Override] = {}
        # one override of a model comes after the other
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._loads: set[asyncio.Task[None]] = set()
        # loaded by name and not unloaded: these do not go with an ensemble
        self._asked_for: set[str] = set()

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

    async def join(self, held: Mapping[str, Iterable[str]]) -> None:
        """Take in what engines bring along that are there only now, or again."""
        try:
            await self.read_all()
        except TidegateError as error:
            log.error("cannot look for new models: %s", error)
        self.adopt(held)

    def adopt(self, held: Mapping[str, Iterable[str]]) -> None:
        """Take over models that engines have ready already: they sleep when nobody uses them."""
        for engine, names in held.items():
            for name in names:
                if not self._registry.knows(name):
                    log.info(
                        "%s is ready in %s, but not in the repository: left alone", name, engine
                    )
                    continue
                for entry in self._registry.entries():
                    if entry.key.name == name:
                        entry.load_requested = True
                        entry.held_by.add(engine)
        self._registry.poke()

    async def refresh(self, names: Iterable[str]) -> None:
        """Take in what has changed in these models' folders: new, other or deleted versions.

        What was loaded with an override stays as it is.
        """
        for name in names:
            async with self._turns.setdefault(name, asyncio.Lock()):
                if name in self._overrides:
                    continue
                if not await self._catalogue.has(name):
                    if self._registry.knows(name):
                        log.info("%s has left the repository", name)
                        self._registry.remove(name)
                    continue
                listing = await self._catalogue.read(name)
                self._registry.update(listing)
                if listing.error:
                    log.error("model %s as it is now cannot be served: %s", name, listing.error)

    async def load(self, name: str, config: str | None = None, files: Files = NO_FILES) -> None:
        """Read a model anew and return once its versions are ready; reload what has changed.

        `config`, a ModelConfig as JSON, takes the place of config.pbtxt; with `files` the model
        consists of these alone, and needs no folder in the repository.

        Raises `LoadFailed` with the reason. Faulty files leave alone what is loaded, and so does
        an override that cannot be loaded; a model whose folder has gone is unloaded. A load with an
        override goes on where the caller is cancelled.
        """
        if files and config is None:
            raise LoadFailed(f"failed to load '{name}', parameters 'file:' need 'config' beside")
        if not name or not (files or await self._catalogue.has(name)):
            if name not in self._overrides:
                self._registry.remove(name)
            raise LoadFailed(f"failed to load '{name}', failed to poll from model repository")
        if config is None and name not in self._overrides:
            await self._take(name, None)
            await self._until_all_ready(name)
        else:
            load = asyncio.create_task(self._override(name, config, files), name=f"override {name}")
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)
            await asyncio.shield(load)
        self._asked_for.add(name)

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Return once no version of a model is in memory. The next request loads it again.

        Requests in flight are answered first. With `dependents` the members of an ensemble go, too,
        but for those that were loaded by name, and those of other ensembles that are in memory.
        Raises `ModelNotFound`.
        """
        if not self._registry.knows(name):
            raise ModelNotFound(f"Request for unknown model: '{name}' is not found")
        self._asked_for.discard(name)
        names = [name, *sorted(self._dependents(name))] if dependents else [name]
        for each in names:
            async with self._turns.setdefault(each, asyncio.Lock()):
                if override := self._overrides.get(each):
                    await self._restore(each, None)
                    await self._files.discard(override)
            for entry in list(self._registry.entries()):
                if entry.key.name == each:
                    await self._until_cold(entry)

    async def aclose(self) -> None:
        """Give up the loads with overrides that are under way, and remove the overrides' files."""
        for load in self._loads:
            load.cancel()
        if self._loads:
            await asyncio.wait(self._loads)
        await asyncio.to_thread(self._files.close)

    async def _override(self, name: str, config: str | None, files: Files) -> None:
        """Load a model with an override; without one (None) as it is in the repository."""
        async with self._turns.setdefault(name, asyncio.Lock()):
            before = self._overrides.get(name)
            override = None if config is None else await self._files.keep(config, files)
            try:
                await self._take(name, override)
                try:
                    await self._until_all_ready(name)
                except LoadFailed:
                    if override is not None and self._overrides.get(name) is override:
                        await self._restore(name, before)
                    raise
            finally:
                for each in (before, override):
                    if each is not self._overrides.get(name):
                        await self._files.discard(each)

    async def _take(self, name: str, override: Override | None) -> None:
        """Read a model, with an override or without, into the registry."""
        listing = await self._catalogue.read(name, override)
        if override is None or not listing.error:
            self._registry.update(listing)
        if listing.error:
            raise LoadFailed(f"failed to load '{name}', {listing.error}")
        self._note(name, override)
        await self._read_members(listing)

    async def _restore(self, name: str, override: Override | None) -> None:
        """Have a model be what it was with this override, or, with None, in its repository.

        One that is not there, or cannot be served any more, leaves.
        """
        listing = None
        if override is not None or await self._catalogue.has(name):
            listing = await self._catalogue.read(name, override)
        self._note(name, override)
        if listing is None or listing.error:
            self._registry.remove(name)
        if listing is not None:
            self._registry.update(listing)

    def _note(self, name: str, override: Override | None) -> None:
        if override is None:
            self._overrides.pop(name, None)
        else:
            self._overrides[name] = override

    async def _until_all_ready(self, name: str) -> None:
        entries = self._registry.versions(name)
        for entry in [each for each in entries if not self._registry.stands_in(each)]:
            await self._until_ready(entry)

    def _dependents(self, name: str) -> set[str]:
        """Return the members of an ensemble, and theirs, that are there for its sake alone."""
        members: dict[str, set[str]] = defaultdict(set)
        loaded = set()
        for entry in self._registry.entries():
            members[entry.key.name].update(step.model for step in entry.newest.steps)
            if entry.state in IN_MEMORY:
                loaded.add(entry.key.name)
        own = _reachable(members, name)
        others = {each for each in loaded if members[each]} - own - {name}
        kept = (self._asked_for | others) - {name}
        return own - kept.union(*(_reachable(members, each) for each in kept))

    async def _until_ready(self, entry: Entry) -> None:
        wanted, stats = entry.newest, entry.stats
        loads, failures = stats.loads, stats.load_failures
        if not (entry.state is ModelState.READY and entry.reading is wanted):
            self._request(entry)
            self._registry.poke()
        # counters, because a state may be over before its waiters run
        while not (
            entry.loaded is wanted and (entry.state is ModelState.READY or stats.loads > loads)
        ):
            if entry.retired:
                raise LoadFailed(f"failed to load '{entry.key.name}', it has left the repository")
            refused = entry.refused_for(wanted)
            if refused or stats.load_failures > failures:
                raise LoadFailed(
                    f"failed to load '{entry.key.name}', version {entry.key.version}: "
                    f"{refused or entry.reason}"
                )
            if wanted is not entry.reading and wanted is not entry.newest:
                wanted = entry.newest  # read since: it counts now
            else:
                await entry.next_move()

    async def _read_members(self, listing: ModelListing) -> None:
        """Read the members of an ensemble anew, and theirs, so that one that was mended counts."""
        read = {listing.name}
        listings = [listing]
        while listings:
            steps = (step for spec in listings.pop().versions for step in spec.steps)
            for name in {step.model for step in steps} - read:
                read.add(name)
                override = self._overrides.get(name)
                if override is not None or await self._catalogue.has(name):
                    listings.append(await self._catalogue.read(name, override))
                    self._registry.update(listings[-1])

    def _request(self, entry: Entry) -> None:
        """Ask for a load, and for those of an ensemble's cold members with it."""
        entry.load_requested = True
        with suppress(RepositoryError):  # the load itself will say so
            for member in self._registry.members(entry.newest):
                if member.state in (ModelState.UNKNOWN, ModelState.UNAVAILABLE):
                    self._request(member)

    async def _until_cold(self, entry: Entry) -> None:
        unloads = entry.stats.unloads
        while entry.state in IN_MEMORY and entry.stats.unloads == unloads:
            if entry.state is not ModelState.UNLOADING:
                entry.unload_requested = True
                self._registry.poke()
            await entry.next_move()


def _reachable(members: Mapping[str, set[str]], name: str) -> set[str]:
    """Return an ensemble's members, and their members."""
    found: set[str] = set()
    open_ends = [name]
    while open_ends:
        new = members.get(open_ends.pop(), set()) - found
        found |= new
        open_ends += new
    return found
