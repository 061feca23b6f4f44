"""MLServer with one ONNX model over gRPC, its adaptive batching on.

Runs in an environment of its own. Its HTTP server cannot be turned off; it gets a port and no load.
"""

# the framework is not in the environment that is checked
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import argparse
import asyncio

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """ONNX Runtime on the event loop: a hop to a thread costs more than these models do."""

    async def load(self) -> bool:
        parameters = self.settings.parameters
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = parameters.extra["threads"]
        self._session = onnxruntime.InferenceSession(parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = NumpyCodec.decode_input(payload.inputs[0])
        (y,) = self._session.run(["y"], {"x": x})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-ms", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=options.http_port,
        grpc_port=options.port,
        metrics_port=options.metrics_port,
        parallel_workers=options.workers,
    )
    model = ModelSettings(
        name=options.model,
        implementation=OnnxModel,
        max_batch_size=64,
        max_batch_time=options.batch_ms / 1e3,
        parameters=ModelParameters(uri=options.onnx, extra={"threads": options.threads}),
    )
    asyncio.run(MLServer(settings).start([model]))


if __name__ == "__main__":
    main()
