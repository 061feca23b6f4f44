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

    def decoupled(self, message: pb.ModelInferRequest) -> bool:
        return bool(message.model_name == "decoupled")

    async def stream(self, message: pb.ModelInferRequest) -> AsyncGenerator[bytes, None]:
        name, script = message.id.split(":")
        self.begun.append(name)
        try:
            if script == "!":
                raise InvalidRequest(f"{name} is wrong")
            for seconds in script.split(","):
                await asyncio.sleep(float(seconds))
                yield pb.ModelInferResponse(id=name).SerializeToString()
        finally:
            self.ended.append(name)


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
        message = pb.ModelStreamInferResponse.FromString(data)
        name = message.infer_response.id
        self.answers.append((asyncio.get_running_loop().time(), message.error_message or name))
        await asyncio.sleep(self.slow_s)

    @property
    def heard(self) -> list[str]:
        return [answer for _, answer in self.answers]


def asks(*scripts: str, model: str = "m") -> list[pb.ModelInferRequest]:
    return [pb.ModelInferRequest(model_name=model, id=script) for script in scripts]


def test_answers_leave_in_the_order_of_their_requests() -> None:
    async def story() -> None:
        client, answers = Client(asks("a:3", "b:1", "c:2")), Scripted()
        await stream.serve(client.next, client.take, answers, False)
        assert answers.begun == ["a", "b", "c"]
        assert client.answers == [(3, "a"), (3, "b"), (3, "c")]

    simulate(story())


def test_answers_of_a_decoupled_model_wait_for_nobody_and_nobody_for_them() -> None:
    async def story() -> None:
        requests = asks("a:3") + asks("d:1,1,3", model="decoupled") + asks("b:2")
        client = Client(requests)
        await stream.serve(client.next, client.take, Scripted(), False)
        assert client.answers == [(1, "d"), (2, "d"), (3, "a"), (3, "b"), (5, "d")]

    simulate(story())


def test_an_error_is_an_answer_and_the_stream_lives_on() -> None:
    async def story() -> None:
        client = Client(asks("a:1", "b:!", "c:1"))
        await stream.serve(client.next, client.take, Scripted(), False)
        assert client.heard == ["a", "b is wrong", "c"]

    simulate(story())


def test_an_error_ends_the_stream_where_the_client_wants_that() -> None:
    async def story() -> None:
        client, answers = Client(asks("a:9", "b:!", "c:1")), Scripted()
        with pytest.raises(TidegateError, match="b is wrong"):
            await stream.serve(client.next, client.take, answers, True)
        assert sorted(answers.ended) == sorted(answers.begun)

    simulate(story())


def test_client_that_does_not_take_its_answers_is_not_read_from() -> None:
    async def story() -> None:
        client = Client(asks(*["a:0"] * 2000), slow_s=10.0)
        answers = Scripted()
        serving = asyncio.create_task(stream.serve(client.next, client.take, answers, False))
        await asyncio.sleep(95)
        assert len(client.answers) == 10
        assert client.read <= len(client.answers) + stream.WINDOW
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert len(answers.ended) == len(answers.begun)

    simulate(story())
