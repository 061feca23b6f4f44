"""A Locust user that sends ModelInfer over gRPC as fast as it is answered (a closed loop).

Import this only where gevent may patch the process: under `locust`, never in the gateway.
"""

from __future__ import annotations

import itertools
import time
from typing import ClassVar

import grpc
from grpc.experimental import gevent as grpc_gevent
from locust import User, constant, task
from locust.exception import StopUser
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtest.answers import AnswerCheck, WrongAnswer
from loadtest.endpoint import describe, open_channel, status_of
from loadtest.payloads import Shape, request_ring
from loadtest.recording import Recording

# Importing locust has patched the standard library; gRPC must follow before its first channel.
grpc_gevent.init_gevent()

# Users share connections as a pool of clients behind a few hosts would.
CONNECTIONS = 8


class Target:
    """The model under test: its requests made, its connections open, what was seen so far."""

    def __init__(
        self,
        host: str,
        model: str,
        version: str,
        *,
        batch_size: int,
        shapes: dict[str, Shape],
        integers: tuple[int, int],
        seed: int,
        timeout_s: float,
    ) -> None:
        """Ask the endpoint about the model. Raises `EndpointError`, `PayloadError`."""
        self.channels = [open_channel(host) for _ in range(CONNECTIONS)]
        self.name = f"ModelInfer {model}"
        self.timeout_s = timeout_s
        try:
            about = describe(self.channels[0], host, model, version, timeout_s)
            self.check = AnswerCheck(about.metadata, about.config, batch_size)
            self.requests = request_ring(
                about.metadata,
                about.config,
                batch_size=batch_size,
                model_version=version,
                shapes=shapes,
                integers=integers,
                seed=seed,
            )
        except Exception:
            self.close()
            raise
        self.recording = Recording()
        self._turn = itertools.count()

    def join(self) -> tuple[grpc.Channel, itertools.cycle[service_pb2.ModelInferRequest]]:
        """Return a channel and an endless row of requests for one more user."""
        turn = next(self._turn)
        start = turn % len(self.requests)
        row = self.requests[start:] + self.requests[:start]
        return self.channels[turn % len(self.channels)], itertools.cycle(row)

    def close(self) -> None:
        """Close the connections."""
        for channel in self.channels:
            channel.close()


class InferUser(User):
    """Sends a request, checks the answer, sends the next."""

    wait_time = constant(0)
    target: ClassVar[Target | None] = None
    _run: Target | None = None

    def on_start(self) -> None:
        """Take a connection and a place in the ring of requests."""
        if self.target is not None:
            self._run = self.target
            channel, self._requests = self.target.join()
            self._infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer

    @task
    def infer(self) -> None:
        """Measure one ModelInfer, from before it is serialised to after it is parsed."""
        run = self._run
        if run is None:
            raise StopUser()
        failure: Exception | None = None
        length = 0
        start_s = time.perf_counter()
        try:
            response = self._infer(next(self._requests), timeout=run.timeout_s)
            end_s = time.perf_counter()
            length = sum(map(len, response.raw_output_contents))
            run.check(response)
            run.recording.answered(start_s, end_s)
        except grpc.RpcError as error:
            end_s = time.perf_counter()
            failure = error
            run.recording.failed(start_s, end_s, *status_of(error))
        except WrongAnswer as error:
            failure = error
            run.recording.failed(start_s, end_s, "WRONG_ANSWER", str(error))
        self.environment.events.request.fire(
            request_type="grpc",
            name=run.name,
            response_time=(end_s - start_s) * 1e3,
            response_length=length,
            exception=failure,
            context={},
        )
