"""Whatever bytes come in, what goes out is an answer or one of the gateway's own errors."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from tritonclient.grpc import service_pb2 as pb

from gateway import signature
from gateway.core import InferRequest, InferResponse, Tensor, TensorSpec
from gateway.errors import TidegateError
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.repository.config_pbtxt import parse_json
from gateway.repository.reader import ModelListing
from gateway.transport.calls import Calls
from gateway.transport.inference import Inference
from gateway.transport.shared_memory import SharedMemory
from tests.fuzz.messages import SEED, damaged, requests, samples, sized
from tests.gateway.fakes import spec

pytestmark = pytest.mark.timeout(1800)
GROWTH_BYTES = 64e6  # what a message of at most some kilobytes may make this process take


class Echo:
    """A gateway without engine: checks a request as the router does, and answers its inputs."""

    def __init__(self) -> None:
        self.registry = Registry(Metrics())
        text = replace(spec("text"), inputs=(TensorSpec("x", "BYTES", (3,)),), utf8_only=True)
        for each in (spec("echo", dims=(3,)), text):
            self.registry.update(ModelListing(each.key.name, (each,)))

    async def infer(self, request: InferRequest) -> InferResponse:
        signature.check(request, self.registry.find(request.model, request.version).spec)
        outputs = [Tensor("y", each.datatype, each.data) for each in request.inputs]
        return InferResponse(request.model, 1, request.id, outputs, request.parameters)

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        yield await self.infer(request)


class Memory:
    """A region of 24 bytes."""

    name = "region"
    size = 24
    _bytes = bytearray(24)

    def read(self, offset: int, size: int) -> bytes:
        content = bytes(self._bytes[offset : offset + size])
        assert len(content) == size
        return content

    def write(self, offset: int, content: bytes | memoryview) -> None:
        self._bytes[offset : offset + len(content)] = content
        assert len(self._bytes) == 24

    def close(self) -> None:
        pass


class Door:
    """The transport above such a gateway, on a loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._inference = self._loop.run_until_complete(self._build())

    async def _build(self) -> Inference:
        echo, memory = Echo(), SharedMemory(allowed=True)
        memory.add(Memory())
        return Inference(echo, echo.registry, Calls(), 10.0, memory)

    def ask(self, message: pb.ModelInferRequest) -> str:
        """Return "OK" or the error's text. Raises what is none of the gateway's errors."""
        try:
            answer = self._loop.run_until_complete(self._inference.infer(message, 10.0))
        except TidegateError as error:
            return str(error)
        response = pb.ModelInferResponse.FromString(answer)
        assert response.id == message.id
        assert len(response.outputs) == len(response.raw_output_contents)
        return "OK"

    def close(self) -> None:
        self._loop.close()


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    opened = Door()
    yield opened
    opened.close()


@pytest.fixture
def no_growth() -> Iterator[None]:
    """The largest amount of memory that was in use at any time does not grow beyond a bound."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < GROWTH_BYTES


def test_samples_themselves_are_answered(door: Door) -> None:
    answers = [door.ask(pb.ModelInferRequest.FromString(sample)) for sample in samples()]
    assert answers.count("OK") >= 4


@settings(
    max_examples=sized(500, 30_000),
    derandomize=SEED == 0,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(requests())
def test_message_of_any_contents_is_answered_or_refused(
    door: Door, message: pb.ModelInferRequest
) -> None:
    assert door.ask(message)


@pytest.mark.usefixtures("no_growth")
def test_damaged_message_is_answered_or_refused(door: Door) -> None:
    answers = []
    for data in islice(damaged(samples()), sized(20_000, 300_000)):
        try:
            message = pb.ModelInferRequest.FromString(data)
        except DecodeError:
            continue
        answers.append(door.ask(message))
    assert all(answers)
    # or the damage would be too great to reach what is tested
    assert len(answers) > sized(4_000, 70_000)
    assert answers.count("OK") > sized(400, 7_000)


CONFIG = b'{"max_batch_size":8,"input":[{"name":"x","data_type":"TYPE_FP32","dims":[3]}]}'


def test_damaged_configuration_of_a_load_is_read_or_refused() -> None:
    for data in islice(damaged([CONFIG]), sized(2_000, 20_000)):
        with suppress(TidegateError):
            parse_json(data.decode(errors="surrogateescape"))
