"""A tiny KServe v2 server, scripted: what the load test is tested against."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

MODEL = "tiny"
MAX_BATCH = 8

Script = Callable[[int], tuple[grpc.StatusCode, str] | None]


def tiny_metadata() -> service_pb2.ModelMetadataResponse:
    metadata = service_pb2.ModelMetadataResponse(name=MODEL, versions=["1"], platform="onnx")
    metadata.inputs.add(name="x", datatype="FP32", shape=[-1, 4])
    metadata.outputs.add(name="y", datatype="FP32", shape=[-1, 2])
    return metadata


def tiny_config() -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name=MODEL, max_batch_size=MAX_BATCH)
    config.input.add(name="x", data_type=model_config_pb2.TYPE_FP32, dims=[4])
    config.output.add(name="y", data_type=model_config_pb2.TYPE_FP32, dims=[2])
    return config


@dataclass
class TinyServer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Sums pairs of its input; `script` may fail the n-th call, `extra_rows` makes it lie."""

    script: Script = lambda _number: None
    extra_rows: int = 0
    calls: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    served: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: str = ""

    def ModelMetadata(
        self, request: Any, context: grpc.ServicerContext
    ) -> service_pb2.ModelMetadataResponse:
        if request.name != MODEL:
            text = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        return tiny_metadata()

    def ModelConfig(
        self, request: Any, context: grpc.ServicerContext
    ) -> service_pb2.ModelConfigResponse:
        return service_pb2.ModelConfigResponse(config=tiny_config())

    def ModelInfer(
        self, request: Any, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        with self.lock:
            number = next(self.calls)
            self.served += 1
        if failure := self.script(number):
            context.abort(*failure)
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(-1, 2, 2)
        y = np.repeat(x.sum(axis=2), 1 + self.extra_rows, axis=0)
        response = service_pb2.ModelInferResponse(model_name=MODEL, model_version="1")
        response.outputs.add(name="y", datatype="FP32", shape=y.shape)
        response.raw_output_contents.append(y.tobytes())
        return response


@contextmanager
def serving(server: TinyServer) -> Iterator[TinyServer]:
    """Serve on a free port of the loopback until the block ends."""
    with ThreadPoolExecutor(4) as pool:
        grpc_server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(server, grpc_server)
        server.address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
        grpc_server.start()
        try:
            yield server
        finally:
            grpc_server.stop(grace=None).wait()
