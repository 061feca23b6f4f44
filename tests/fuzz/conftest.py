"""One gateway to be sent nonsense, and what must hold of it afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient, InferInput

from tests.fuzz.messages import SEED, damaged, samples, sized
from tests.gateway.onnx_models import identity, put
from tests.gateway.process import Gateway, eventually, gateway

LIMIT_S = 10.0
GROWTH_BYTES = sized(40, 80) * 1e6


class Complaints:
    """What a gateway says on its stderr, read so that it never has to wait for a reader."""

    def __init__(self, served: Gateway) -> None:
        self._lines: list[str] = []
        assert served.process.stderr is not None
        self._stderr = served.process.stderr
        self._reader = threading.Thread(target=lambda: self._lines.extend(self._stderr))
        self._reader.start()

    def of_bugs(self) -> list[str]:
        """Return the lines about bugs, once the gateway has ended."""
        self._reader.join()
        said = [json.loads(line) for line in self._lines]
        return [str(line) for line in said if "bug" in line["message"] or "exception" in line]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("models")
    put(root, "echo", identity())
    put(root, "text", identity("BYTES"))
    put(root, "victim", identity())
    flags = ("--allow-repository-control", "--allow-client-shm", "--max-message-bytes", "1000000")
    with gateway(root, *flags) as served:
        complaints = Complaints(served)
        try:
            with grpc.insecure_channel(served.url) as channel:
                infer: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                for data in islice(damaged(samples(), SEED - 1), 500):  # what it keeps for good
                    with suppress(grpc.RpcError):
                        infer(data, timeout=LIMIT_S)
            yield served
            assert served.stop() == 0
        finally:
            served.process.kill()
            served.process.wait()
        assert complaints.of_bugs() == []


@pytest.fixture
def nothing_is_lost(fuzzed: Gateway) -> Iterator[None]:
    """Neither memory nor file descriptors nor requests; and a good request is answered rightly."""
    before = holdings(fuzzed)
    yield
    with InferenceServerClient(fuzzed.url) as client:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        tensor = InferInput("x", [2, 3], "FP32")
        answer = client.infer("echo", [tensor.set_data_from_numpy(x)], client_timeout=LIMIT_S)
        np.testing.assert_array_equal(answer.as_numpy("y"), x)
    eventually(lambda: fuzzed.metric("tidegate_model_in_flight") == 0)
    assert fuzzed.metric("nv_inference_pending_request_count") == 0
    # a connection's end is noticed a moment later
    eventually(lambda: holdings(fuzzed)[1] <= before[1])
    grown = holdings(fuzzed)[0] - before[0]
    print(f"grown by {grown / 1e6:.1f} MB")
    assert grown < GROWTH_BYTES


def holdings(served: Gateway) -> tuple[float, int]:
    """Return the bytes of memory and the number of file descriptors that the gateway holds."""
    descriptors = len(list(Path(f"/proc/{served.process.pid}/fd").iterdir()))
    return served.metric("process_resident_memory_bytes"), descriptors
