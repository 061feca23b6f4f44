"""Models of a Python backend behind the gateway: decoupled ones, and those that read parameters."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.gateway.process import Gateway, gateway
from tests.triton.server import running

pytestmark = pytest.mark.usefixtures("real_triton")

CONFIG = """backend: "python"
max_batch_size: 0
input { name: "x" data_type: TYPE_INT32 dims: 1 }
output { name: "y" data_type: TYPE_INT32 dims: 1 }
instance_group { count: 1 kind: KIND_CPU }
"""
# answers a request for n with 0, 1 ... n - 1; fails at 13
COUNT = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            n = int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])
            if n == 13:
                error = pb_utils.TritonError("thirteen is not counted to")
                sender.send(pb_utils.InferenceResponse(error=error))
            else:
                for i in range(n):
                    y = pb_utils.Tensor("y", np.array([i], np.int32))
                    sender.send(pb_utils.InferenceResponse([y]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
# answers x times the parameter "factor"
TIMES = """
import json
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            factor = json.loads(request.parameters() or "{}").get("factor", 1)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x * factor)]))
        return answers
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("python_models")
    decoupled = "model_transaction_policy { decoupled: true }\n"
    batched = CONFIG.replace("max_batch_size: 0", "max_batch_size: 8\ndynamic_batching { }")
    for name, code, config in (("count", COUNT, CONFIG + decoupled), ("times", TIMES, batched)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
        (root / name / "1" / "model.py").write_text(code)
    with running(root) as server, gateway(root, "--triton", server.address) as through:
        yield through
        assert through.stop() == 0


def x(value: int, *batch: int) -> triton.InferInput:
    made = triton.InferInput("x", [*batch, 1], "INT32")
    made.set_data_from_numpy(np.full((*batch, 1), value, np.int32))
    return made


class Stream:
    """A client's stream: what it hears, in order."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client
        self._heard: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def __enter__(self) -> Stream:
        self._client.start_stream(lambda result, error: self._heard.put((result, error)))
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client.stop_stream()

    def ask(self, model: str, value: int, **more: Any) -> None:
        self._client.async_stream_infer(model, [x(value)], **more)

    def next(self) -> Any:
        """Return the next answer's id and value, or the text of an error."""
        result, error = self._heard.get(timeout=20)
        if error is not None:
            return error.message()
        message = result.get_response()
        if not message.outputs:
            return message.id, message.parameters["triton_final_response"].bool_param
        return message.id, int(result.as_numpy("y")[0])


@pytest.fixture
def client(served: Gateway) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as connected:
        yield connected


def test_decoupled_model_answers_as_often_as_it_likes(
    client: triton.InferenceServerClient,
) -> None:
    with Stream(client) as stream:
        stream.ask("count", 3, request_id="a")
        assert [stream.next() for _ in range(3)] == [("a", 0), ("a", 1), ("a", 2)]
        stream.ask("count", 0, request_id="b", enable_empty_final_response=True)
        assert stream.next() == ("b", True)
        stream.ask("count", 2, request_id="c", enable_empty_final_response=True)
        assert [stream.next() for _ in range(3)] == [("c", 0), ("c", 1), ("c", True)]


def test_error_of_a_decoupled_model_leaves_the_stream_alive(
    client: triton.InferenceServerClient,
) -> None:
    with Stream(client) as stream:
        stream.ask("count", 13)
        assert "thirteen is not counted to" in stream.next()
        stream.ask("count", 1, request_id="d")
        assert stream.next() == ("d", 0)


def test_model_infer_is_not_for_decoupled_models(client: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException) as refused:
        client.infer("count", [x(1)])
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    assert refused.value.message() == (
        "ModelInfer RPC doesn't support models with decoupled transaction policy"
    )


def test_parameters_reach_the_model_and_only_equal_ones_share_a_batch(
    client: triton.InferenceServerClient,
) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for factor in (1, 2, 3) * 10:
        client.async_infer(
            "times",
            [x(7, 1)],
            lambda result, error: answers.put((result, error)),
            parameters={"factor": factor},
            request_id=str(factor),
        )
    for _ in range(30):
        result, error = answers.get(timeout=20)
        assert error is None
        assert result.as_numpy("y")[0, 0] == 7 * int(result.get_response().id)
