"""The RPCs of inference.GRPCInferenceService: decode, call, encode."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Protocol

import grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from gateway.core import ModelSpec, ModelState, Stage, TensorSpec
from gateway.errors import ModelUnavailable, NotSupported
from gateway.registry import Entry, Registry
from gateway.transport.codec import decode, encode

EXTENSIONS = ("model_repository", "model_configuration", "schedule_policy")

Context = grpc.aio.ServicerContext[Any, Any]


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


class Servicer:
    """Answers the RPCs that work; each method carries its RPC's name.

    Every `TidegateError` raised here becomes a status by transport/status.py.
    """

    def __init__(
        self,
        infer: Stage,
        registry: Registry,
        control: Control,
        ready: Callable[[], bool],
        request_timeout_s: float,
    ) -> None:
        self._infer = infer
        self._registry = registry
        self._control = control
        self._ready = ready
        self._request_timeout_s = request_timeout_s
        self._loop = asyncio.get_running_loop()

    async def ModelInfer(self, message: pb.ModelInferRequest, context: Context) -> bytes:
        """Run one inference; return the serialized ModelInferResponse."""
        # None without a deadline, whatever the stubs of grpcio say
        remaining: float | None = context.time_remaining()
        if remaining is None:
            remaining = self._request_timeout_s
        return encode(await self._infer.infer(decode(message, self._loop.time() + remaining)))

    async def ServerLive(self, _message: Any, _context: Context) -> pb.ServerLiveResponse:
        """Say that the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _message: Any, _context: Context) -> pb.ServerReadyResponse:
        """Say whether requests are taken: false once the gateway drains."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(self, _message: Any, _context: Context) -> pb.ServerMetadataResponse:
        """Name the server, its version and the protocol extensions it has."""
        return pb.ServerMetadataResponse(
            name="tidegate", version=version("tidegate"), extensions=EXTENSIONS
        )

    async def ModelReady(
        self, message: pb.ModelReadyRequest, _context: Context
    ) -> pb.ModelReadyResponse:
        """Say whether a request would be served: true for a cold model that loads on demand."""
        try:
            entry = self._registry.find(message.name, message.version)
        except ModelUnavailable:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready() and not entry.backing_off())

    async def ModelMetadata(
        self, message: pb.ModelMetadataRequest, _context: Context
    ) -> pb.ModelMetadataResponse:
        """Describe a model's inputs and outputs; a cold model stays cold."""
        spec = self._registry.find(message.name, message.version).spec
        versions = [str(entry.key.version) for entry in self._registry.versions(message.name)]
        return pb.ModelMetadataResponse(
            name=spec.key.name,
            versions=versions,
            platform=spec.platform,
            inputs=[_tensor_metadata(spec, tensor) for tensor in spec.inputs],
            outputs=[_tensor_metadata(spec, tensor) for tensor in spec.outputs],
        )

    async def ModelConfig(
        self, message: pb.ModelConfigRequest, _context: Context
    ) -> pb.ModelConfigResponse:
        """Return the completed configuration; a cold model stays cold."""
        spec = self._registry.find(message.name, message.version).spec
        return pb.ModelConfigResponse(config=model_config_pb2.ModelConfig.FromString(spec.config))

    async def RepositoryIndex(
        self, message: pb.RepositoryIndexRequest, _context: Context
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
        self, message: pb.RepositoryModelLoadRequest, _context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model now, reading its folder anew; reload what changed."""
        _refuse_repository_name(message.repository_name)
        if message.parameters:
            raise NotSupported(f"load parameter '{min(message.parameters)}' is not supported yet")
        await self._control.load(message.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, message: pb.RepositoryModelUnloadRequest, _context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Put a model to sleep now; the next request wakes it."""
        _refuse_repository_name(message.repository_name)
        await self._control.unload(message.model_name)
        return pb.RepositoryModelUnloadResponse()


def _refuse_repository_name(name: str) -> None:
    if name:
        raise NotSupported("'repository_name' specification is not supported")


def _tensor_metadata(
    spec: ModelSpec, tensor: TensorSpec
) -> pb.ModelMetadataResponse.TensorMetadata:
    shape = [-1, *tensor.dims] if spec.max_batch_size > 0 else tensor.dims
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=shape
    )


def _reason(entry: Entry) -> str:
    return "not loaded yet" if entry.state is ModelState.UNKNOWN else entry.reason
