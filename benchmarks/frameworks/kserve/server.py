"""KServe's Python server with one ONNX model over gRPC. Runs in an environment of its own.

It has no batching: KServe's batcher is a sidecar in front of the server, for the HTTP v1 protocol.
"""

# the framework is not in the environment that is checked
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    """ONNX Runtime on the event loop: a hop to a thread costs more than these models do."""

    def __init__(self, name: str, path: str, threads: int) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options)
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        (y,) = self._session.run(["y"], {"x": payload.inputs[0].as_numpy()})
        output: Any = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(np.ascontiguousarray(y), binary_data=True)
        return InferResponse(payload.id or "", self.name, [output], use_binary_outputs=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    server = ModelServer(
        http_port=options.http_port,
        grpc_port=options.port,
        enable_latency_logging=False,
        workers=1,
    )
    logging.disable(logging.INFO)
    server.start([OnnxModel(options.model, options.onnx, options.threads)])


if __name__ == "__main__":
    main()
