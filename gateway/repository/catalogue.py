"""The models of a repository folder, read off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from gateway.core import ModelSpec, Override
from gateway.placement import EngineKind
from gateway.repository.reader import ModelListing, has_model, model_names, read_model
from gateway.repository.watch import watch_folder


class FolderCatalogue:
    """A Triton model repository on disk. `kinds` are those of the engines that run its models."""

    def __init__(self, root: Path, kinds: Collection[EngineKind]) -> None:
        self.root = root
        self._kinds = kinds

    async def names(self) -> list[str]:
        """Return the models' names. Raises `StartError` where the repository is no folder."""
        return await asyncio.to_thread(model_names, self.root)

    async def has(self, name: str) -> bool:
        """Return whether there is a model folder of this name."""
        return await asyncio.to_thread(has_model, self.root, name)

    async def follow(self, changed: Callable[[Collection[str]], Awaitable[None]]) -> None:
        """Tell the names of models that have changed, until cancelled."""
        await watch_folder(self.root, changed)

    async def fetch(self, spec: ModelSpec) -> None:
        """Do nothing: a version's files are here."""

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        """Return one model as it is on disk now, or as a client wants it."""
        return await asyncio.to_thread(read_model, self.root, name, self._kinds, override)
