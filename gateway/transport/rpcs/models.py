"""ServerLive to ModelConfig: what there is, and whether it is ready."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from gateway.core import ModelSpec, TensorSpec
from gateway.errors import ModelUnavailable
from gateway.registry import Registry

EXTENSIONS = (
    *("classification", "sequence", "model_repository", "model_repository(unload_dependents)"),
    *("schedule_policy", "model_configuration", "system_shared_memory", "cuda_shared_memory"),
    *("binary_tensor_data", "parameters", "statistics", "trace", "logging"),
)


class ModelRpcs:
    """What the server and its models are, and whether they are ready."""

    def __init__(self, registry: Registry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready

    async def ServerLive(self, _message: Any) -> pb.ServerLiveResponse:
        """Say that the process runs."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, _message: Any) -> pb.ServerReadyResponse:
        """Say whether requests are taken: false once the gateway drains."""
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(self, _message: Any) -> pb.ServerMetadataResponse:
        """Name the server, its version and the protocol extensions it has."""
        return pb.ServerMetadataResponse(
            name="tidegate", version=version("tidegate"), extensions=EXTENSIONS
        )

    async def ModelReady(self, message: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Say whether a request would be served: true for a cold model that loads on demand."""
        try:
            entry = self._registry.find(message.name, message.version)
        except ModelUnavailable:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._ready() and not self._registry.fault(entry))

    async def ModelMetadata(self, message: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Describe a model's inputs and outputs; a cold model stays cold."""
        spec = self._registry.find(message.name, message.version).spec
        serving = [str(entry.key.version) for entry in self._registry.versions(message.name)]
        versions = [str(spec.key.version)] if message.version else serving
        return pb.ModelMetadataResponse(
            name=spec.key.name,
            versions=versions,
            platform=spec.platform,
            inputs=[_tensor_metadata(spec, tensor) for tensor in spec.inputs],
            outputs=[_tensor_metadata(spec, tensor) for tensor in spec.outputs],
        )

    async def ModelConfig(self, message: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Return the completed configuration; a cold model stays cold."""
        spec = self._registry.find(message.name, message.version).spec
        return pb.ModelConfigResponse(config=model_config_pb2.ModelConfig.FromString(spec.config))


def _tensor_metadata(
    spec: ModelSpec, tensor: TensorSpec
) -> pb.ModelMetadataResponse.TensorMetadata:
    shape = [-1, *tensor.dims] if spec.max_batch_size > 0 else tensor.dims
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=shape
    )
