"""Ray Serve with one ONNX model over HTTP JSON, batched by `@serve.batch`.

Runs in an environment of its own. Its gRPC proxy cannot pickle Triton's messages.
"""

# the framework is not in the environment that is checked
# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined"

from __future__ import annotations

import argparse
import json
import signal
import tempfile

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 1},
    logging_config={"enable_access_log": False},
)
class OnnxModel:
    def __init__(self, path: str, threads: int, batch_ms: float) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options)
        self._infer.set_batch_wait_timeout_s(batch_ms / 1e3)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def _infer(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return list(self._session.run(["y"], {"x": np.stack(rows)})[0])

    async def __call__(self, request: Request) -> Response:
        row = np.array(json.loads(await request.body())["x"], np.float32)
        answer = await self._infer(row)
        return Response(json.dumps({"y": answer.tolist()}), media_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--onnx", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-ms", type=float, default=1.0)
    options = parser.parse_args()
    # Ray's sockets lie under its folder, and their paths have to be short.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            configure_logging=False,
            log_to_driver=False,
            object_store_memory=100 * 1024 * 1024,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        serve.start(
            http_options={"host": "127.0.0.1", "port": options.port},
            logging_config={"enable_access_log": False},
        )
        app = OnnxModel.bind(options.onnx, options.threads, options.batch_ms)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        serve.run(app, name="model", route_prefix="/")
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
