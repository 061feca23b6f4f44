"""A gateway that is sent nonsense answers it, and loses nothing by it."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from tritonclient.grpc import service_pb2
from tritonclient.grpc import service_pb2 as pb

from tests.fuzz.messages import SEED, damaged, requests, samples, sized
from tests.gateway.process import Gateway

pytestmark = pytest.mark.usefixtures("nothing_is_lost")
SERVICE = "/inference.GRPCInferenceService/"
LIMIT_S = 10.0  # for each call: one that takes as long hangs
# What a client's nonsense may be told. UNKNOWN and CANCELLED are gRPC's for a server that broke,
# DEADLINE_EXCEEDED would be one that hangs.
STATUSES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
}

Call = Callable[[bytes], grpc.StatusCode]


@pytest.fixture(scope="module")
def channel(fuzzed: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fuzzed.url) as opened:
        grpc.channel_ready_future(opened).result(LIMIT_S)
        yield opened


def unary(channel: grpc.Channel, rpc: str) -> Call:
    """Return a call with bytes as they are; its answer must be one of the RPC's."""
    method = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[rpc]
    answer_type: type[Message] = getattr(pb, method.output_type.name)
    send: Any = channel.unary_unary(SERVICE + rpc)

    def call(data: bytes) -> grpc.StatusCode:
        code: grpc.StatusCode = grpc.StatusCode.OK
        details: str | None = "OK"
        try:
            answer_type.FromString(send(data, timeout=LIMIT_S))
        except grpc.RpcError as error:
            code, details = error.code(), error.details()
        assert details, data
        assert code in STATUSES, f"{rpc}: {code.name} {details}: {data!r}"
        return code

    return call


def send_all(served: Gateway, rpc: str, messages: Iterator[bytes]) -> Counter[grpc.StatusCode]:
    """Send messages over a few connections; return how often each status came."""
    told: Counter[grpc.StatusCode] = Counter()
    one_by_one = threading.Lock()

    def next_message() -> bytes | None:
        with one_by_one:
            return next(messages, None)

    def client() -> None:
        own: Counter[grpc.StatusCode] = Counter()
        with grpc.insecure_channel(served.url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = unary(channel, rpc)
            while (data := next_message()) is not None:
                own[call(data)] += 1
        with one_by_one:
            told.update(own)

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(client) for _ in range(4)]:
            each.result()
    return told


def test_damaged_inference_requests_are_answered(fuzzed: Gateway) -> None:
    told = send_all(fuzzed, "ModelInfer", islice(damaged(samples()), sized(3_000, 12_000)))
    assert told[grpc.StatusCode.OK] > 20
    assert told[grpc.StatusCode.INVALID_ARGUMENT] > 200


@settings(
    max_examples=sized(100, 2_000),
    derandomize=SEED == 0,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(requests())
def test_inference_request_of_any_contents_is_answered(
    fuzzed: Gateway, channel: grpc.Channel, message: pb.ModelInferRequest
) -> None:
    unary(channel, "ModelInfer")(message.SerializeToString())


PARAMETER = pb.ModelRepositoryParameter
CONFIG = PARAMETER(string_param='{"max_batch_size": 2}')
FILE = PARAMETER(bytes_param=b"no model")
OTHERS: dict[str, list[Message]] = {
    "ServerLive": [pb.ServerLiveRequest()],
    "ServerReady": [pb.ServerReadyRequest()],
    "ServerMetadata": [pb.ServerMetadataRequest()],
    "ModelReady": [pb.ModelReadyRequest(name="echo", version="1")],
    "ModelMetadata": [pb.ModelMetadataRequest(name="echo", version="1")],
    "ModelConfig": [pb.ModelConfigRequest(name="text")],
    "ModelStatistics": [
        pb.ModelStatisticsRequest(name="echo", version="1"),
        pb.ModelStatisticsRequest(),
    ],
    "RepositoryIndex": [pb.RepositoryIndexRequest(ready=True), pb.RepositoryIndexRequest()],
    "RepositoryModelLoad": [
        pb.RepositoryModelLoadRequest(model_name="victim"),
        pb.RepositoryModelLoadRequest(model_name="victim", parameters={"config": CONFIG}),
        pb.RepositoryModelLoadRequest(
            model_name="victim", parameters={"config": CONFIG, "file:1/model.onnx": FILE}
        ),
    ],
    "RepositoryModelUnload": [
        pb.RepositoryModelUnloadRequest(
            model_name="victim", parameters={"unload_dependents": PARAMETER(bool_param=True)}
        )
    ],
    "SystemSharedMemoryStatus": [pb.SystemSharedMemoryStatusRequest(name="region")],
    "SystemSharedMemoryRegister": [
        pb.SystemSharedMemoryRegisterRequest(name="region", key="/nothing", byte_size=64)
    ],
    "SystemSharedMemoryUnregister": [pb.SystemSharedMemoryUnregisterRequest(name="region")],
    "CudaSharedMemoryStatus": [pb.CudaSharedMemoryStatusRequest(name="region")],
    "CudaSharedMemoryRegister": [
        pb.CudaSharedMemoryRegisterRequest(name="region", raw_handle=bytes(64), byte_size=64)
    ],
    "CudaSharedMemoryUnregister": [pb.CudaSharedMemoryUnregisterRequest(name="region")],
    "TraceSetting": [
        pb.TraceSettingRequest(
            settings={"trace_rate": pb.TraceSettingRequest.SettingValue(value=["1"])}
        )
    ],
    "LogSettings": [
        pb.LogSettingsRequest(
            settings={"log_verbose_level": pb.LogSettingsRequest.SettingValue(uint32_param=0)}
        )
    ],
}


def test_every_rpc_is_tried() -> None:
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert {method.name for method in methods} - OTHERS.keys() == {"ModelInfer", "ModelStreamInfer"}


@pytest.mark.parametrize("rpc", OTHERS)
def test_damaged_requests_of_every_other_rpc_are_answered(rpc: str, fuzzed: Gateway) -> None:
    originals = [message.SerializeToString() for message in OTHERS[rpc]]
    told = send_all(fuzzed, rpc, islice(damaged(originals), sized(20, 170)))
    assert told.total() == sized(20, 170)


def test_stream_of_damaged_requests_ends_with_a_status_and_answers_up_to_there(
    channel: grpc.Channel,
) -> None:
    draw = random.Random(SEED)
    messages = damaged(samples())
    stream: Any = channel.stream_stream(SERVICE + "ModelStreamInfer")
    for _ in range(sized(40, 400)):
        asked = list(islice(messages, draw.randrange(1, 10)))
        answers = 0
        ended = grpc.StatusCode.OK
        try:
            for data in stream(iter(asked), timeout=LIMIT_S):
                answer = pb.ModelStreamInferResponse.FromString(data)
                assert answer.error_message or answer.infer_response.model_name
                answers += 1
        except grpc.RpcError as error:
            ended = error.code()
        whole = answers == len(asked)
        assert ended is (grpc.StatusCode.OK if whole else grpc.StatusCode.INVALID_ARGUMENT)


def test_message_beyond_the_bound_is_refused_and_the_connection_lives(
    channel: grpc.Channel,
) -> None:
    call = unary(channel, "ModelInfer")
    for _ in range(sized(5, 50)):
        assert call(bytes(2_000_000)) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(samples()[0]) is grpc.StatusCode.OK
