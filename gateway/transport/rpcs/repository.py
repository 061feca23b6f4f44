"""RepositoryIndex, RepositoryModelLoad, RepositoryModelUnload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tritonclient.grpc import service_pb2 as pb

from gateway.core import ModelState
from gateway.entry import Entry
from gateway.errors import InvalidRequest, NotAllowed, NotSupported
from gateway.registry import Registry

_FILE = "file:"
_COLD = (ModelState.UNKNOWN, ModelState.UNAVAILABLE)


class Control(Protocol):
    """What the repository RPCs ask for."""

    async def read_all(self) -> None:
        """Take in the models that are new on disk."""
        ...

    async def load(
        self, name: str, config: str | None = None, files: Mapping[str, bytes] = ...
    ) -> None:
        """Read a model anew and load it, with what is given in place of its own.

        Raises `LoadFailed`, and `InvalidRequest` for a file's name that is none.
        """
        ...

    async def unload(self, name: str, dependents: bool = False) -> None:
        """Take a model out of memory, an ensemble with its members. Raises `ModelNotFound`."""
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
                fault = self._registry.fault(entry) if entry.state in _COLD else ""
                index.models.add(
                    name=entry.key.name,
                    version=str(entry.key.version),
                    state=(ModelState.UNAVAILABLE if fault else entry.state).value,
                    reason=fault or _reason(entry),
                )
        if not message.ready:
            for name, reason in self._registry.broken():
                index.models.add(name=name, state=ModelState.UNAVAILABLE.value, reason=reason)
        return index

    async def RepositoryModelLoad(
        self, message: pb.RepositoryModelLoadRequest
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model now, reading its folder anew, or with the configuration and files given.

        These hold until it is loaded without them or unloaded by name: a model that has gone to
        sleep wakes with them.
        """
        _refuse_repository_name(message.repository_name)
        config, files = _given(message.parameters)
        self._check_allowed()
        await self._control.load(message.model_name, config, files)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, message: pb.RepositoryModelUnloadRequest
    ) -> pb.RepositoryModelUnloadResponse:
        """Put a model to sleep now; the next request wakes it as its repository has it."""
        _refuse_repository_name(message.repository_name)
        dependents = False
        if "unload_dependents" in message.parameters:
            given = message.parameters["unload_dependents"]
            _expect("bool_param", given, "'unload_dependents' parameter")
            dependents = given.bool_param
        self._check_allowed()
        await self._control.unload(message.model_name, dependents)
        return pb.RepositoryModelUnloadResponse()

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise NotAllowed(
                "explicit model load / unload is not allowed: the gateway loads models when they "
                "are asked for. --allow-repository-control opens it to clients"
            )


def _refuse_repository_name(name: str) -> None:
    if name:
        raise NotSupported("'repository_name' specification is not supported")


def _given(parameters: Mapping[str, Any]) -> tuple[str | None, dict[str, bytes]]:
    """Return the configuration and the files among load parameters. The texts are Triton's."""
    config = None
    files = {}
    for name, value in sorted(parameters.items()):
        if name == "config":
            _expect("string_param", value, "load parameter 'config'")
            config = value.string_param
        elif name.startswith(_FILE):
            _expect("bytes_param", value, f"load parameter '{name}'")
            files[name.removeprefix(_FILE)] = value.bytes_param
        else:
            raise InvalidRequest(f"unrecognized load parameter '{name}'.")
    return config, files


def _expect(kind: str, parameter: Any, what: str) -> None:
    if parameter.WhichOneof("parameter_choice") != kind:
        raise InvalidRequest(f"invalid value type for {what}, expected {kind}.")


def _reason(entry: Entry) -> str:
    return "not loaded yet" if entry.state is ModelState.UNKNOWN else entry.reason
