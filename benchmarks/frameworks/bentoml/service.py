"""BentoML with one ONNX model over HTTP JSON, its adaptive batching on.

Runs in an environment of its own. Settings come by environment variables, since BentoML
imports this file in processes that it starts itself.
"""

# the framework is not in the environment that is checked
# mypy: disable-error-code="import-not-found,untyped-decorator,no-any-return"

from __future__ import annotations

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(
    workers=int(os.environ.get("BENCH_WORKERS", "1")),
    traffic={"timeout": 60, "max_concurrency": 1024},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class OnnxModel:
    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "1"))
        self._session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], options)

    @bentoml.api(
        batchable=True,
        batch_dim=(0, 0),
        max_batch_size=64,
        max_latency_ms=int(os.environ.get("BENCH_MAX_LATENCY_MS", "1000")),
    )
    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._session.run(["y"], {"x": x.astype(np.float32)})[0]
