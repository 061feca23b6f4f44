"""What a stream promises, told as stories on simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import InvalidRequest, TidegateError
from gateway.transport import stream
from tests.simulated_loop import simulate


@dataclass
class Scripted:
    """Answers `ID:SECONDS` after so long, `ID:SECONDS,SECONDS` twice, `ID:!` with an error."""

    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    async def stream(self, message: pb.ModelInferRequest) -> AsyncGenerator[bytes, None]:
        name, script = message.id.split(":")
        self.begun.append(name)
        try:
            if script == "!":
                raise InvalidRequest(f"{name} is wrong")
            for seconds in script.split(","):
                await asyncio.sleep(float(seconds))
                yield name.encode()
        finally:
            self.ended.append(name)


def decoupled(message: pb.ModelInferRequest) -> bool:
    return bool(message.model_name == "decoupled")


@dataclass
class Client:
    """Sends its requests at once; takes `slow_s` for each answer."""

    requests: list[pb.ModelInferRequest]
    slow_s: float = 0.0
    read: int = 0
    answers: list[tuple[float, str]] = field(default_factory=list)

    async def next(self) -> pb.ModelInferRequest | None:
        if self.read == len(self.requests):
            return None
        self.read += 1
        return self.requests[self.read - 1]

    async def take(self, data: bytes) -> None:
        self.answers.append((asyncio.get_running_loop().time(), data.decode()))
        await asyncio.sleep(self.slow_s)


def asks(*scripts: str, model: str = "m") -> list[pb.ModelInferRequest]:
    return [pb.ModelInferRequest(model_name=model, id=script) for script in scripts]


def test_answers_leave_in_the_order_of_their_requests() -> None:
    async def story() -> None:
        client, answers = Client(asks("a:3", "b:1", "c:2")), Scripted()
        await stream.serve(client.next, client.take, answers.stream, decoupled)
        assert answers.begun == ["a", "b", "c"]
        assert client.answers == [(3, "a"), (3, "b"), (3, "c")]

    simulate(story())


def test_answers_of_a_decoupled_model_wait_for_nobody_and_nobody_for_them() -> None:
    async def story() -> None:
        requests = asks("a:3") + asks("d:1,1,3", model="decoupled") + asks("b:2")
        client = Client(requests)
        await stream.serve(client.next, client.take, Scripted().stream, decoupled)
        assert client.answers == [(1, "d"), (2, "d"), (3, "a"), (3, "b"), (5, "d")]

    simulate(story())


def test_error_that_ends_the_stream_comes_in_its_turn_and_ends_every_request() -> None:
    async def story() -> None:
        client, answers = Client(asks("a:3", "b:!", "c:9")), Scripted()
        with pytest.raises(TidegateError, match="b is wrong"):
            await stream.serve(client.next, client.take, answers.stream, decoupled)
        assert client.answers == [(3, "a")]
        assert sorted(answers.ended) == ["a", "b", "c"]

    simulate(story())


def test_no_answer_is_cut_off_while_it_is_sent() -> None:
    async def story() -> None:
        sent: list[str] = []

        async def take(data: bytes) -> None:
            await asyncio.sleep(2)
            sent.append(data.decode())

        async def read() -> pb.ModelInferRequest | None:
            if client.read:
                await asyncio.sleep(1)
            return await client.next()

        client = Client(asks("d:0,0,0", model="decoupled") + asks("b:!"))
        with pytest.raises(TidegateError, match="b is wrong"):
            await stream.serve(read, take, Scripted().stream, decoupled)
        assert sent == ["d"]

    simulate(story())


def test_client_that_does_not_take_its_answers_is_not_read_from() -> None:
    async def story() -> None:
        client = Client(asks(*["a:0"] * 2000), slow_s=10.0)
        answers = Scripted()
        serving = asyncio.create_task(
            stream.serve(client.next, client.take, answers.stream, decoupled)
        )
        await asyncio.sleep(95)
        assert len(client.answers) == 10
        assert client.read <= len(client.answers) + stream.WINDOW
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert len(answers.ended) == len(answers.begun)

    simulate(story())
