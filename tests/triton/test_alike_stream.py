"""ModelStreamInfer: Tidegate's streams are Triton's. Decoupled models are in test_decoupled.py."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as pb

from tests.triton.alike import COMPATIBILITY, TRITON
from tests.triton.questions import A, B, ask, floats, tensor, with_int64
from tests.triton.server import Endpoint

F = "identity_FP32"
GOOD, NARROW = floats(1, 3), floats(1, 4)
ONES = np.ones(3, np.float32).tobytes()
GRPC_ERRORS = (("triton_grpc_error", "true"),)
WRONG_SHAPE = "[request id: a] unexpected shape for input 'x' for model 'identity_FP32'."
WRONG_KIND = (
    "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param."
)
NOBODY = "Request for unknown model: 'nobody' is not found"


def final(parameters: Any) -> None:
    parameters["triton_enable_empty_final_response"].bool_param = True


def heard(stub: Any, *requests: pb.ModelInferRequest, metadata: Any = ()) -> list[Any]:
    return list(stub.ModelStreamInfer(iter(requests), metadata=metadata, timeout=60))


def answered(message: Any, id: str) -> None:
    response = message.infer_response
    assert message.error_message == ""
    assert (response.model_name, response.model_version, response.id) == (F, "1", id)
    assert MessageToDict(response)["parameters"] == {"triton_final_response": {"boolParam": True}}
    assert response.raw_output_contents == [ONES]


def refused(message: Any, text: str, id: str) -> None:
    assert message.error_message.startswith(text)
    assert message.infer_response == pb.ModelInferResponse(id=id)


def test_request_of_a_stream_has_one_answer_that_is_the_final_one(stub: Any) -> None:
    (message,) = heard(stub, ask(F, GOOD, id="7"))
    answered(message, "7")
    # the answer is the final one: no empty one follows
    (message,) = heard(stub, ask(F, GOOD, id="8", parameters=final))
    answered(message, "8")


def test_answer_outside_of_a_stream_says_nothing_of_being_final(stub: Any) -> None:
    assert not stub.ModelInfer(ask(F, GOOD, parameters=final)).parameters


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ask(F, NARROW, id="a"), WRONG_SHAPE),
        (ask(F, NARROW, id="a", parameters=final), WRONG_SHAPE),
        (ask("nobody", GOOD, id="a"), NOBODY),
        (ask("nobody", GOOD, id="a", parameters=final), NOBODY),
        (ask(F, GOOD, id="a", version="7"), "Request for unknown model: 'identity_FP32' version 7"),
        (ask(F, GOOD, id="a", version="x"), "failed to get model version from specified version"),
        (ask(F, GOOD, id="a", outputs=("z",)), "unexpected inference output 'z' for model"),
        (ask(F, floats(1, 3, name="z"), id="a"), "unexpected inference input 'z' for model"),
        (ask("two", A, id="a"), "[request id: a] expected 2 inputs but got 1 inputs for model"),
        (
            ask(F, GOOD, id="a", parameters=with_int64("triton_enable_empty_final_response", 1)),
            WRONG_KIND,
        ),
    ],
)
def test_error_is_an_answer_in_its_place_and_the_stream_lives_on(
    request_: pb.ModelInferRequest, text: str, stub: Any
) -> None:
    before, between, after = heard(stub, ask(F, GOOD, id="0"), request_, ask(F, GOOD, id="2"))
    answered(before, "0")
    refused(between, text, "a")
    answered(after, "2")


def test_stream_without_requests_ends_well(stub: Any) -> None:
    assert heard(stub) == []


def test_answers_leave_in_the_order_of_their_requests(stub: Any) -> None:
    requests = [
        ask("two", A, B, id=str(n), outputs=("product",)) if n % 3 else ask(F, GOOD, id=str(n))
        for n in range(600)
    ]
    requests[100] = ask("nobody", GOOD, id="100")
    requests[200] = ask(F, NARROW, id="200")
    messages = heard(stub, *requests)
    assert [message.infer_response.id for message in messages] == [str(n) for n in range(600)]
    wrong = [n for n, message in enumerate(messages) if message.error_message]
    assert wrong == [100, 200]


def test_errors_become_the_status_of_the_call_where_the_client_wants_that(
    server: str, stub: Any
) -> None:
    def call(*requests: pb.ModelInferRequest) -> tuple[list[str], str]:
        ids: list[str] = []
        try:
            messages = stub.ModelStreamInfer(iter(requests), metadata=GRPC_ERRORS, timeout=20)
            ids.extend(message.infer_response.id for message in messages)
        except grpc.RpcError as error:
            return ids, f"{error.code().name} {error.details()}"
        return ids, "OK"

    assert call(ask(F, GOOD, id="0")) == (["0"], "OK")
    ids, status = call(ask(F, GOOD, id="0"), ask("nobody", GOOD, id="1"), ask(F, GOOD, id="2"))
    if server == TRITON:  # which does so with the errors of models alone
        assert (ids, status) == (["0", "1", "2"], "OK")
    else:
        assert (ids, status) == (["0"], f"NOT_FOUND {NOBODY}")
    assert "| errors of a stream as its status |" in COMPATIBILITY
    wrong_value = (("triton_grpc_error", "1"),)
    assert len(heard(stub, ask("nobody", GOOD), ask(F, GOOD), metadata=wrong_value)) == 2


def test_nvidias_client_streams_with_a_callback(client: triton.InferenceServerClient) -> None:
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: results.put((result, error)))
    x = np.arange(3, dtype=np.float32)[None]
    for number in range(5):
        client.async_stream_infer(F, [tensor("x", x + number)], request_id=str(number))
    client.async_stream_infer("nobody", [tensor("x", x)], request_id="5")
    for number in range(5):
        result, error = results.get(timeout=20)
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("y"), x + number)
    result, error = results.get(timeout=20)
    assert result is None
    assert error.message() == NOBODY
    client.stop_stream()


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_nvidias_asyncio_client_streams(compression: str | None, endpoint: Endpoint) -> None:
    x = np.arange(3, dtype=np.float32)[None]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(50):
            inputs = [tensor("x", x + number)]
            yield {"model_name": F, "inputs": inputs, "request_id": str(number)}

    async def story() -> Sequence[Any]:
        async with triton_aio.InferenceServerClient(endpoint.grpc) as client:
            answers = client.stream_infer(requests(), compression_algorithm=compression)
            return [answer async for answer in answers]

    for number, (result, error) in enumerate(asyncio.run(story())):
        assert error is None
        assert result.get_response().id == str(number)
        np.testing.assert_array_equal(result.as_numpy("y"), x + number)


def test_stream_that_is_cancelled_disturbs_nobody(stub: Any) -> None:
    call = stub.ModelStreamInfer(iter([ask(F, GOOD, id=str(n)) for n in range(200)]))
    next(call)
    call.cancel()
    (message,) = heard(stub, ask(F, GOOD, id="after"))
    answered(message, "after")
