"""Models of a Python backend: decoupled ones, and those that read parameters. Tidegate is alike."""

from __future__ import annotations

import queue
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.triton.alike import BEFORE_TRITON, TRITON

# no embedded engine runs them
behind_triton = pytest.mark.parametrize("server", [TRITON, BEFORE_TRITON], indirect=True)


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


@behind_triton
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


@behind_triton
def test_error_of_a_decoupled_model_leaves_the_stream_alive(
    client: triton.InferenceServerClient,
) -> None:
    with Stream(client) as stream:
        stream.ask("count", 13)
        assert "thirteen is not counted to" in stream.next()
        stream.ask("count", 1, request_id="d")
        assert stream.next() == ("d", 0)


@behind_triton
def test_model_infer_is_not_for_decoupled_models(client: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException) as refused:
        client.infer("count", [x(1)])
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"
    assert refused.value.message() == (
        "ModelInfer RPC doesn't support models with decoupled transaction policy"
    )


@behind_triton
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


@behind_triton
def test_error_of_one_request_leaves_its_batch_mates_answered(
    client: triton.InferenceServerClient,
) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for value in (1, 13, 2, 13):
        client.async_infer(
            "times", [x(value, 1)], lambda result, error: answers.put((result, error))
        )
    heard = [answers.get(timeout=20) for _ in range(4)]
    assert sorted(int(result.as_numpy("y")[0, 0]) for result, _ in heard if result) == [1, 2]
    errors = [error for _, error in heard if error]
    assert [error.message() for error in errors] == ["thirteen is not multiplied"] * 2
    assert {error.status() for error in errors} == {"StatusCode.INTERNAL"}


@behind_triton
def test_preserved_order_has_a_fast_answer_wait_for_a_slow_one(
    client: triton.InferenceServerClient,
) -> None:
    client.infer("sleeper", [x(1, 1)])  # it is awake
    order: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.async_infer("sleeper", [x(600, 1)], lambda result, error: order.put(error))
    time.sleep(0.1)  # the slow one is there first; the other instance is free
    began = time.monotonic()
    client.infer("sleeper", [x(1, 1)])
    assert time.monotonic() - began > 0.3
    assert order.get(timeout=10) is None
