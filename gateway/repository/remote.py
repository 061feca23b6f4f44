"""The models of a repository in object storage, behind a folder that mirrors it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from gateway.core import ModelSpec, Override
from gateway.errors import RepositoryError
from gateway.placement import EngineKind
from gateway.repository.catalogue import FolderCatalogue
from gateway.repository.mirror import Mirror
from gateway.repository.reader import ModelListing, lacks_description, newest_version

log = logging.getLogger(__name__)

FETCHES_AT_ONCE = 4


class RemoteCatalogue(FolderCatalogue):
    """A repository at a URL. What describes its models is here; weights are fetched for a load.

    Object storage tells of no changes: it is asked every `refresh_s` seconds (0: never).
    """

    def __init__(self, mirror: Mirror, kinds: Collection[EngineKind], refresh_s: float) -> None:
        super().__init__(mirror.folder, kinds)
        self._mirror = mirror
        self._refresh_s = refresh_s
        self._syncing = asyncio.Lock()
        self._fetching = asyncio.Semaphore(FETCHES_AT_ONCE)
        self._fetches: dict[str, asyncio.Lock] = {}

    async def open(self) -> None:
        """Read the storage for the first time. Raises `StartError` where it cannot be."""
        await asyncio.to_thread(self._mirror.open)

    async def has(self, name: str) -> bool:
        """Return whether the storage has this model now; what is here where it does not answer."""
        if name and "/" not in name:
            async with self._syncing:
                with suppress(RepositoryError):  # who reads it next hears why
                    await asyncio.to_thread(self._mirror.sync, name, settle=False)
        return await super().has(name)

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        """Return one model as it is here now, or as a client wants it.

        One whose configuration leaves something for the model file to say has its newest version
        fetched for that.
        """
        folder = self.root / name
        if override is None and await asyncio.to_thread(lacks_description, folder):
            number = await asyncio.to_thread(newest_version, folder)
            if number is not None:
                try:
                    await self._fetch(f"{name}/{number}")
                except RepositoryError as error:
                    return ModelListing(name, (), str(error))
        return await super().read(name, override)

    async def fetch(self, spec: ModelSpec) -> None:
        """Have a version's files here. Raises `RepositoryError` where they cannot be had."""
        if spec.path.is_relative_to(self.root):
            await self._fetch(spec.path.relative_to(self.root).as_posix())

    async def follow(self, changed: Callable[[Collection[str]], Awaitable[None]]) -> None:
        """Tell the names of models that have changed, until cancelled."""
        failing = False
        while self._refresh_s:
            await asyncio.sleep(self._refresh_s)
            try:
                async with self._syncing:
                    names = await asyncio.to_thread(self._mirror.sync)
            except RepositoryError as error:
                if not failing:
                    log.error("%s; going on with what is here", error)
                failing = True
                continue
            failing = False
            if names:
                await changed(sorted(names))

    async def _fetch(self, version: str) -> None:
        async with self._fetches.setdefault(version, asyncio.Lock()), self._fetching:
            work = asyncio.ensure_future(asyncio.to_thread(self._mirror.fetch, version))
            try:
                fetched = await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait([work])  # a thread cannot be cancelled, and is not left behind
                raise
        if fetched:
            log.info("fetched %d bytes of %s", fetched, version)
