"""The models of Triton servers that have repositories of their own."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core import Override
from gateway.engine.triton import TritonEngine
from gateway.errors import EngineUnavailable
from gateway.fleet import Node
from gateway.repository.reader import ModelListing


class TritonCatalogue:
    """What Triton servers say of the models in their repositories, all together.

    Equal names are equal models: one that several servers have is as the first describes it, and
    may be loaded by each of them, and by no other. So each server's node is told what it offers,
    whenever it is asked; one that does not answer offers what it did. A model whose files come with
    its load may be loaded anywhere.
    """

    def __init__(self, tritons: Sequence[tuple[Node, TritonEngine]]) -> None:
        self._tritons = tritons
        self._indexes: dict[str, frozenset[str]] = {}
        self._carried: set[str] = set()  # models whose files come with their loads

    async def names(self) -> list[str]:
        """Return the names of all models. Raises `EngineUnavailable` where no server answers."""
        failures = []
        for node, triton in self._tritons:
            try:
                self._indexes[node.name] = frozenset(await triton.names())
            except EngineUnavailable as error:
                failures.append(error)
                node.suspect(str(error))
        if len(failures) == len(self._tritons):
            raise failures[0]
        self._tell()
        return sorted(frozenset().union(*self._indexes.values()))

    async def has(self, name: str) -> bool:
        """Return whether a server has a model of this name."""
        return name in await self.names()

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        """Return a model as the first server that has it describes it; see `TritonEngine.read`."""
        if override is not None and override.folder is not None:
            self._carried.add(name)
        else:
            self._carried.discard(name)
        self._tell()
        failure = EngineUnavailable(f"no Triton server has '{name}'")
        for node, triton in self._tritons:
            if name not in (node.offers or ()):
                continue
            try:
                return await triton.read(name, override)
            except EngineUnavailable as error:
                node.suspect(str(error))
                failure = error
        raise failure

    def _tell(self) -> None:
        for node, _ in self._tritons:
            node.offers = self._indexes.get(node.name, frozenset()) | self._carried
