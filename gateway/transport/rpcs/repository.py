"""RepositoryIndex, RepositoryModelLoad, RepositoryModelUnload."""

from __future__ import annotations

from typing import Protocol

from tritonclient.grpc import service_pb2 as pb

from gateway.core import ModelState
from gateway.errors import NotAllowed, NotSupported
from gateway.registry import Entry, Registry


class Control(Protocol):
    """What the repository RPCs ask for."""

    async def read_all(self) -> None:
        """Take in the models that are new on disk."""
        ...

    async def load(self, name: str) -> None:
        """Read a model anew and load it. Raises `LoadFailed`."""
        ...

    async def unload(self, name: str) -> None:
        """Take a model out of memory. Raises `ModelNotFound`."""
        ...


class RepositoryRpcs:
    """What is in the repository; loads and unloads by name, where clients may have them."""

    def __init__(self, registry: Registry, control: Control, allowed: bool) -> None:
        self._registry = registry
        self._control = control
        self._allowed = allowed

    async def RepositoryIndex(
        self, message: pb.RepositoryIndexRequest
    ) -> pb.RepositoryIndexResponse:
        """List every model version with its state; models new on disk are taken in."""
        _refuse_repository_name(message.repository_name)
        await self._control.read_all()
        index = pb.RepositoryIndexResponse()
        for entry in self._registry.entries():
            if entry.state is ModelState.READY or not message.ready:
                index.models.add(
                    name=entry.key.name,
                    version=str(entry.key.version),
                    state=entry.state.value,
                    reason=_reason(entry),
                )
        if not message.ready:
            for name, reason in self._registry.broken():
                index.models.add(name=name, state=ModelState.UNAVAILABLE.value, reason=reason)
        return index

    async def RepositoryModelLoad(
        self, message: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model now, reading its folder anew; reload what changed."""
        _refuse_repository_name(message.repository_name)
        if message.parameters:
            raise NotSupported(f"load parameter '{min(message.parameters)}' is not supported yet")
        self._check_allowed()
        await self._control.load(message.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, message: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Put a model to sleep now; the next request wakes it."""
        _refuse_repository_name(message.repository_name)
        self._check_allowed()
        await self._control.unload(message.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise NotAllowed(
                "explicit model load / unload is closed to clients: the gateway loads models when "
                "they are asked for. --allow-repository-control opens it"
            )


def _refuse_repository_name(name: str) -> None:
    if name:
        raise NotSupported("'repository_name' specification is not supported")


def _reason(entry: Entry) -> str:
    return "not loaded yet" if entry.state is ModelState.UNKNOWN else entry.reason
