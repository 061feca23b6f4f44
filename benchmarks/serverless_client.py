"""Clients of the serverless rows, each run in a process of its own: to a schedule, or a crowd.

Raw calls of grpc.aio, bytes in and out. Answers to a schedule are parsed when all is over. Times
are seconds of `time.perf_counter`, which on Linux is one clock for all processes.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import grpc
import numpy as np
import onnxruntime
import uvloop
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from benchmarks.h2load import METHOD, nearest_rank
from benchmarks.serverless_models import ECHO, ECHO_WIDTH, request
from gateway.transport.grpc_tuning import EXPERIMENTS

CONNECTIONS = 8
LEAD_S = 0.2  # between the last preparation and the first request
OK = "OK"
# what a client may be told whose request came to a gateway that had no room for it
REFUSED = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")

P = ParamSpec("P")
T = TypeVar("T")
Infer = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Question:
    """A request, the model that must answer it, and the row that must come back."""

    message: bytes
    model: str
    row: NDArray[np.float32]

    def is_answered_by(self, message: bytes) -> bool:
        """Whether that is the right answer, by the right model."""
        response = service_pb2.ModelInferResponse.FromString(message)
        if response.model_name != self.model or len(response.raw_output_contents) != 1:
            return False
        got = np.frombuffer(response.raw_output_contents[0], np.float32)
        return got.shape == self.row.shape and bool(np.allclose(got, self.row, 1e-3, 1e-3))


def question(repository: Path, model: str, *shape: int) -> Question:
    """Return the request of ones for a model, and what plain ONNX Runtime answers."""
    session = onnxruntime.InferenceSession(
        str(repository / model / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (row,) = session.run(["y"], {"x": np.ones(shape, np.float32)})
    return Question(request(model, *shape), model, np.asarray(row, np.float32).ravel())


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which of the questions is due when: `due_s` seconds after the start, ascending."""

    questions: tuple[Question, ...]
    which: NDArray[np.int64]
    due_s: NDArray[np.float64]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Calls:
    """What became of each request. Times in seconds after `start_s` (perf_counter).

    A crowd's request is due when it is sent.
    """

    start_s: float
    due_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    status: NDArray[np.str_]
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.due_s)

    def statuses(self) -> dict[str, int]:
        """Return how many calls ended how."""
        return dict(Counter(self.status.tolist()))

    def wrong(self) -> int:
        """Return how many were answered, and not rightly."""
        return int(np.sum((self.status == OK) & ~self.right))

    def errors(self) -> int:
        """Return how many were not answered rightly."""
        return int(np.sum(~self.right))

    def during(self, begin_s: float, end_s: float) -> Calls:
        """Return the calls that were due in that time."""
        chosen = (self.due_s >= begin_s) & (self.due_s < end_s)
        return Calls(
            self.start_s,
            *(self.due_s[chosen], self.sent_s[chosen], self.done_s[chosen]),
            *(self.status[chosen], self.right[chosen]),
        )

    def latency_ms(self, fraction: float) -> float:
        """Return a percentile of the right answers' latency, from when each was due."""
        return percentile_ms((self.done_s - self.due_s)[self.right], fraction)

    def lag_ms(self, fraction: float) -> float:
        """Return by how much the client itself was late."""
        return percentile_ms(self.sent_s - self.due_s, fraction)


def percentile_ms(seconds: NDArray[np.float64], fraction: float) -> float:
    """Return a percentile of durations in milliseconds; infinite where there are none."""
    ordered = np.sort(seconds).tolist()
    return round(nearest_rank(ordered, fraction) * 1e3, 3) if ordered else float("inf")


@contextmanager
def in_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Iterator[Future[T]]:
    """Run a function in a process of its own, which the block goes on beside and then awaits."""
    before = os.environ.get("GRPC_EXPERIMENTS")
    # the same I/O layer as the gateway's: it costs the client less
    os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(function, *args, **kwargs)
        if before is None:
            del os.environ["GRPC_EXPERIMENTS"]
        yield future


def offer(address: str, schedule: Schedule) -> Calls:
    """Send each request when it is due, whatever became of those before."""
    return uvloop.run(_offer(address, schedule))


def crowd(
    address: str, clients: int, deadline_s: float, for_s: float, question: Question | None = None
) -> Calls:
    """Let `clients` ask, each again as soon as it is answered, for so many seconds.

    Without a question they ask the echo: each request has numbers and an id of its own then, and so
    must its answer.
    """
    return uvloop.run(_crowd(address, clients, deadline_s, for_s, question))


async def _offer(address: str, schedule: Schedule) -> Calls:
    channels = _channels(address)
    methods: list[Infer] = [channel.unary_unary(METHOD) for channel in channels]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    messages = [question.message for question in schedule.questions]
    count = len(schedule.due_s)
    sent_s, done_s = np.zeros(count), np.zeros(count)
    status = [""] * count
    answers = [b""] * count
    gc.collect()
    gc.disable()
    start_s = time.perf_counter() + LEAD_S

    async def call(index: int, which: int, due_s: float, method: Infer) -> None:
        now_s = time.perf_counter()
        sent_s[index] = now_s - start_s
        left_s = max(start_s + due_s + schedule.deadline_s - now_s, 1e-3)
        try:
            answers[index] = await method(messages[which], timeout=left_s)
            status[index] = OK
        except grpc.aio.AioRpcError as error:
            status[index] = error.code().name
        done_s[index] = time.perf_counter() - start_s

    plan = zip(schedule.which.tolist(), schedule.due_s.tolist(), strict=True)
    async with asyncio.TaskGroup() as tasks:
        for index, (which, due_s) in enumerate(plan):
            wait_s = start_s + due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.create_task(call(index, which, due_s, methods[index % CONNECTIONS]))
    for channel in channels:
        await channel.close()
    right = [
        one == OK and schedule.questions[which].is_answered_by(answer)
        for one, which, answer in zip(status, schedule.which.tolist(), answers, strict=True)
    ]
    return Calls(start_s, schedule.due_s, sent_s, done_s, np.array(status), np.array(right))


async def _crowd(
    address: str, clients: int, deadline_s: float, for_s: float, question: Question | None
) -> Calls:
    channels = _channels(address)
    methods: list[Infer] = [channel.unary_unary(METHOD) for channel in channels]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    start_s = time.perf_counter()
    numbers = itertools.count(1)
    done: list[tuple[float, float, str, bool]] = []

    async def client(method: Infer) -> None:
        while (sent_s := time.perf_counter()) < start_s + for_s:
            number = next(numbers)
            message = question.message if question else _echo_request(number)
            right = False
            try:
                answer = await method(message, timeout=deadline_s)
                status = OK
                right = question.is_answered_by(answer) if question else _is_echo(number, answer)
            except grpc.aio.AioRpcError as error:
                status = error.code().name
            now_s = time.perf_counter()
            done.append((sent_s - start_s, now_s - start_s, status, right))

    async with asyncio.TaskGroup() as tasks:
        for index in range(clients):
            tasks.create_task(client(methods[index % CONNECTIONS]))
    for channel in channels:
        await channel.close()
    sent_s = np.array([each[0] for each in done])
    return Calls(
        *(start_s, sent_s, sent_s, np.array([each[1] for each in done])),
        *(np.array([each[2] for each in done]), np.array([each[3] for each in done])),
    )


def _echo_request(number: int) -> bytes:
    # whole numbers up to 2**24 are exact in FP32
    return request(ECHO, 1, ECHO_WIDTH, value=float(number), number=str(number))


def _is_echo(number: int, message: bytes) -> bool:
    response = service_pb2.ModelInferResponse.FromString(message)
    wanted = np.full(ECHO_WIDTH, number, np.float32).tobytes()
    return response.id == str(number) and list(response.raw_output_contents) == [wanted]


def _channels(address: str) -> list[grpc.aio.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    return [grpc.aio.insecure_channel(address, options=options) for _ in range(CONNECTIONS)]
