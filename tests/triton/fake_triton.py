"""A Triton server of a page: scripted, on a real port, so that the real adapter talks to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2_grpc
from tritonclient.grpc import service_pb2 as pb

CONFIG = """
name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }
instance_group { name: "m_0" count: 2 kind: KIND_CPU }
dynamic_batching { preferred_batch_size: 8 }
"""

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves one model, `m`, that answers its input. `log` has every load and unload."""

    versions: tuple[int, ...] = (1,)
    config: str = CONFIG
    explicit: bool = True
    ready: set[int] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    load_takes: asyncio.Event | None = None
    fault: tuple[grpc.StatusCode, str] | None = None
    load_fault: tuple[grpc.StatusCode, str] | None = None
    hang: bool = False
    asked: list[pb.ModelInferRequest] = field(default_factory=list)
    hung: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def RepositoryIndex(self, _request: Any, _context: Context) -> pb.RepositoryIndexResponse:
        index = pb.RepositoryIndexResponse()
        for version in self.ready:
            index.models.add(name="m", version=str(version), state="READY")
        if not self.ready:
            index.models.add(name="m")
        return index

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        await self._refuse_if_not_explicit(context)
        self.log.append(f"load {request.model_name}")
        if self.load_takes is not None:
            self.hung.set()
            await self.load_takes.wait()
        if self.load_fault is not None:
            await context.abort(*self.load_fault)
        self.ready = set(self.versions)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._refuse_if_not_explicit(context)
        self.log.append(f"unload {request.model_name}")
        self.ready = set()
        return pb.RepositoryModelUnloadResponse()

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Context
    ) -> pb.ModelConfigResponse:
        if int(request.version) not in self.ready:
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Request for unknown model: 'm' version {request.version} is not found",
            )
        config = text_format.Parse(self.config, model_config_pb2.ModelConfig())
        return pb.ModelConfigResponse(config=config)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        self.asked.append(request)
        if self.hang:
            self.hung.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if self.fault is not None:
            await context.abort(*self.fault)
        if int(request.model_version) not in self.ready:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'm' is not found"
            )
        response = pb.ModelInferResponse(model_name="m", model_version=request.model_version)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            # named as the outputs are, and in the order opposite to the one asked for
            response.outputs.add(
                name=tensor.name.replace("x", "y"), datatype=tensor.datatype, shape=tensor.shape
            )
            response.raw_output_contents.append(raw)
        return response

    async def _refuse_if_not_explicit(self, context: Context) -> None:
        if not self.explicit:
            await context.abort(
                grpc.StatusCode.UNAVAILABLE,
                "explicit model load / unload is not allowed if polling is enabled",
            )


@asynccontextmanager
async def serving(fake: FakeTriton, port: int = 0) -> AsyncIterator[str]:
    """Serve on 127.0.0.1; give the address."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)
