"""Real handwritten digits as requests, and what the model answers to them without a gateway."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtest.endpoint import open_channel

MODEL = "digits"
COUNT = 256
# Batching reorders float32 sums; two digits' logits differ by whole units.
TOLERANCE = 1e-3
# A light second client: about 20 calls a second beside thousands.
CHECK_EVERY_S = 0.05
CHECK_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Digits:
    """Requests of one image each, and the row that ONNX Runtime itself answers to each."""

    requests: list[service_pb2.ModelInferRequest]
    expected: NDArray[np.float32]

    def is_right(self, index: int, response: service_pb2.ModelInferResponse) -> bool:
        """Whether a response is the answer to request `index`."""
        expected = self.expected[index]
        if len(response.raw_output_contents) != 1:
            return False
        raw = response.raw_output_contents[0]
        if len(raw) != expected.nbytes:
            return False
        row = np.frombuffer(raw, np.float32)
        return bool(np.allclose(row, expected, rtol=TOLERANCE, atol=TOLERANCE))


def load(repository: Path) -> Digits:
    """Return the digits, answered by the newest version in the repository.

    Raises `FileNotFoundError` where the repository has no digits.
    """
    versions = [int(path.parent.name) for path in repository.glob(f"{MODEL}/[0-9]*/model.onnx")]
    if not versions:
        raise FileNotFoundError(f"no {MODEL}/<version>/model.onnx in '{repository}'")
    session = onnxruntime.InferenceSession(
        repository / MODEL / str(max(versions)) / "model.onnx",
        providers=["CPUExecutionProvider"],
    )
    (model_input,) = session.get_inputs()
    (model_output,) = session.get_outputs()
    images = (load_digits().images[:COUNT] / 16).astype(np.float32)[:, np.newaxis]
    expected = session.run([model_output.name], {model_input.name: images})[0]
    requests = []
    for image in images:
        request = service_pb2.ModelInferRequest(model_name=MODEL)
        request.inputs.add(name=model_input.name, datatype="FP32", shape=[1, *image.shape])
        request.raw_input_contents.append(image.tobytes())
        requests.append(request)
    return Digits(requests, expected)


@dataclass(slots=True)
class Checked:
    """What the second client saw while the load ran."""

    calls: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def checking(address: str, digits: Digits, *, compare: bool) -> Iterator[Checked]:
    """Call the server now and then until the block ends, a different digit each time.

    With `compare` every answer is held against the model's own. The echo gets the same calls
    without it, so that both servers carry the same load. The counts are complete after the block.
    """
    checked = Checked()
    stop = threading.Event()

    def call_now_and_then() -> None:
        with open_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for index in itertools.cycle(range(len(digits.requests))):
                try:
                    response = stub.ModelInfer(digits.requests[index], timeout=CHECK_TIMEOUT_S)
                except grpc.RpcError as error:
                    checked.failures.append(str(error.code()))
                else:
                    checked.calls += 1
                    checked.wrong += compare and not digits.is_right(index, response)
                if stop.wait(CHECK_EVERY_S):
                    return

    thread = threading.Thread(target=call_now_and_then, name="checker")
    thread.start()
    try:
        yield checked
    finally:
        stop.set()
        thread.join()
