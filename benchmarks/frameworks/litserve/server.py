"""LitServe with one ONNX model over HTTP JSON, its batching on. Runs in an environment of its own.

LitServe reads the annotations of `decode_request`, so they must not be postponed to strings.
"""

# the framework is not in the environment that is checked
# mypy: disable-error-code="import-not-found,misc,no-any-return"

import argparse
from typing import Any

import litserve
import numpy as np
import onnxruntime


class OnnxApi(litserve.LitAPI):
    def __init__(self, path: str, threads: int, batch_ms: float) -> None:
        super().__init__(max_batch_size=64, batch_timeout=batch_ms / 1e3)
        self._path = path
        self._threads = threads

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        self._session = onnxruntime.InferenceSession(self._path, options)

    def decode_request(self, request: dict[str, Any], **_: Any) -> np.ndarray:
        return np.array(request["x"], np.float32)

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, x: np.ndarray, **_: Any) -> np.ndarray:
        return self._session.run(["y"], {"x": x})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray, **_: Any) -> dict[str, list[float]]:
        return {"y": output.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-ms", type=float, default=1.0)
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true", help="ZeroMQ in place of a queue")
    options = parser.parse_args()
    api = OnnxApi(options.onnx, options.threads, options.batch_ms)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=1, fast_queue=options.fast_queue
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=options.api_servers,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
