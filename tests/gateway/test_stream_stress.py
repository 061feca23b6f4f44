"""Long streams: nothing is lost or swapped, and nothing piles up."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2 as pb

from tests.gateway.onnx_models import identity, put, widened
from tests.gateway.process import Gateway, gateway

MANY = 10_000
WIDTH = 262_144  # floats of an answer of 1 MB
HELD_BACK = 2000  # of them
UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# stream.HELD_BYTES as answers, as many as the engine's arrays, and what malloc keeps of both
HELD_BACK_BYTES = 200e6
FLAT_BYTES = 40e6


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    root = tmp_path_factory.mktemp("models")
    put(root, "echo", identity())
    put(root, "wide", widened(WIDTH))
    with gateway(root) as served:
        yield served
        assert served.metric("tidegate_model_in_flight") == 0
        assert served.stop() == 0


def question(number: int, model: str = "echo", width: int = 3) -> bytes:
    message = pb.ModelInferRequest(model_name=model, id=str(number))
    message.inputs.add(name="x", datatype="FP32", shape=[1, width])
    message.raw_input_contents.append(np.full(width, number, np.float32).tobytes())
    serialized: bytes = message.SerializeToString()
    return serialized


def resident(served: Gateway) -> float:
    return served.metric("process_resident_memory_bytes")


def ask(served: Gateway, count: int) -> list[tuple[str, float]]:
    """Send requests down one stream as fast as it takes them; return ids and first values."""
    with grpc.insecure_channel(served.url) as channel:
        stream: Any = channel.stream_stream(
            STREAM, response_deserializer=pb.ModelStreamInferResponse.FromString
        )
        answers = [each.infer_response for each in stream(map(question, range(count)), timeout=60)]
    raw = [np.frombuffer(each.raw_output_contents[0], np.float32) for each in answers]
    return [(each.id, float(y[0])) for each, y in zip(answers, raw, strict=True)]


def test_pipelined_requests_are_answered_in_order_each_with_its_own_and_memory_stays_flat(
    streamed: Gateway,
) -> None:
    ask(streamed, 2000)
    before = resident(streamed)
    assert ask(streamed, MANY) == [(str(number), float(number)) for number in range(MANY)]
    assert resident(streamed) - before < FLAT_BYTES


def tensor(number: int) -> triton.InferInput:
    made = triton.InferInput("x", [1, 3], "FP32")
    return made.set_data_from_numpy(np.full((1, 3), number, np.float32))


def test_nvidias_client_has_its_answers_in_order(streamed: Gateway) -> None:
    came: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with triton.InferenceServerClient(streamed.url) as client:
        client.start_stream(lambda result, error: came.put((result, error)))
        for number in range(MANY):
            client.async_stream_infer("echo", [tensor(number)], request_id=str(number))
        for number in range(MANY):
            result, error = came.get(timeout=30)
            assert error is None
            assert result.get_response().id == str(number)
            assert result.as_numpy("y")[0, 0] == number
        client.stop_stream()


def test_nvidias_asyncio_client_has_its_answers_in_order(streamed: Gateway) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(MANY):
            yield {
                "model_name": "echo",
                "inputs": [tensor(number)],
                "request_id": str(number),
            }

    async def story() -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(streamed.url) as client:
            number = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None
                assert result.get_response().id == str(number)
                number += 1
            assert number == MANY

    asyncio.run(story())


async def served_meanwhile(served: Gateway, infer: Any, seconds: float) -> float:
    """Return the most memory that the gateway had while others asked it."""
    end = asyncio.get_running_loop().time() + seconds
    most = 0.0
    while asyncio.get_running_loop().time() < end:
        await infer(question(1), timeout=5)
        most = max(most, await asyncio.to_thread(resident, served))
    return most


async def read_late(served: Gateway, stream: Any, infer: Any) -> None:
    """Send without reading, then read."""
    await infer(question(1))
    before = resident(served)

    async def send() -> None:
        for number in range(HELD_BACK):
            await stream.write(question(number, "wide", 1))
        await stream.done_writing()

    sending = asyncio.create_task(send())
    most = await served_meanwhile(served, infer, 2) - before
    print(f"held back at {most / 1e6:.0f} MB")
    assert most < HELD_BACK_BYTES
    for number in range(HELD_BACK):
        answer = pb.ModelStreamInferResponse.FromString(await stream.read()).infer_response
        assert answer.id == str(number)
        assert len(answer.raw_output_contents[0]) == 4 * WIDTH
    await sending
    assert await stream.read() is grpc.aio.EOF


def test_client_that_stops_reading_is_held_back_and_others_are_served(streamed: Gateway) -> None:
    async def story() -> None:
        large = [("grpc.max_receive_message_length", -1)]
        async with (
            grpc.aio.insecure_channel(streamed.url, options=large) as channel,
            grpc.aio.insecure_channel(streamed.url) as others,
        ):
            stream: Any = channel.stream_stream(STREAM)()
            try:
                await read_late(streamed, stream, others.unary_unary(UNARY))
            finally:
                # a failure's traceback would keep the client connected, and not reading
                stream.cancel()

    asyncio.run(story())
