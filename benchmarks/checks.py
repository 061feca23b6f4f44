"""A light second client: different inputs, every answer held against the model's own.

h2load sends one request over and over and reads no answer; this one shows that the answers are
right while the load runs.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks import h2load
from benchmarks.models import Cases, grpc_row, json_row
from benchmarks.processes import Server
from loadtest.endpoint import open_channel

# About 20 calls a second beside thousands; of large tensors fewer.
CHECK_EVERY_S = 0.05
CHECK_EVERY_LARGE_S = 0.5
LARGE_WIDTH = 100_000
CALL_TIMEOUT_S = 10.0

Row = NDArray[np.float32]


class CallFailed(Exception):
    """A call that got no answer; the text is its status."""


class Caller(Protocol):
    """One connection to a server."""

    def call(self, index: int) -> Row | None:
        """Return the answer to input `index`. Raises `CallFailed`."""

    def close(self) -> None:
        """Close the connection."""


def caller(server: Server, cases: Cases) -> Caller:
    """Return a connection that speaks what the server speaks."""
    return _GrpcCaller(server, cases) if server.protocol == "grpc" else _JsonCaller(server, cases)


class _GrpcCaller:
    def __init__(self, server: Server, cases: Cases) -> None:
        self._channel = open_channel(server.address)
        self._infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            h2load.METHOD
        )
        self._cases = cases

    def call(self, index: int) -> Row | None:
        try:
            message: bytes = self._infer(self._cases.grpc_request(index), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            status: grpc.Call = error  # type: ignore[assignment]  # whatever a call raises is one
            raise CallFailed(f"{status.code().name}: {status.details()}") from None
        return grpc_row(message)

    def close(self) -> None:
        self._channel.close()


class _JsonCaller:
    def __init__(self, server: Server, cases: Cases) -> None:
        self._connection = http.client.HTTPConnection(server.address, timeout=CALL_TIMEOUT_S)
        self._server = server
        self._cases = cases

    def call(self, index: int) -> Row | None:
        body = self._cases.json_request(index, nested=self._server.protocol == "nested json")
        try:
            self._connection.request(
                "POST", self._server.path, body, {"content-type": "application/json"}
            )
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise CallFailed(f"{type(error).__name__}: {error}") from None
        if response.status != 200:
            raise CallFailed(f"HTTP status {response.status}")
        return json_row(answer)

    def close(self) -> None:
        self._connection.close()


@dataclass(slots=True)
class Checked:
    """What the second client saw while the load ran."""

    calls: int = 0
    wrong: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def checking(server: Server, cases: Cases, for_s: float) -> Iterator[Checked]:
    """Call the server now and then for so many seconds, a different input each time.

    The echo gets the same calls as the others, its answers are not read. The counts are complete
    after the block.
    """
    checked = Checked()
    pause_s = CHECK_EVERY_LARGE_S if cases.inputs.shape[-1] > LARGE_WIDTH else CHECK_EVERY_S
    end_s = time.monotonic() + for_s

    def call_now_and_then() -> None:
        connection = caller(server, cases)
        for index in itertools.cycle(range(len(cases))):
            try:
                row = connection.call(index)
            except CallFailed as failed:
                checked.failures.append(str(failed))
            else:
                checked.calls += 1
                checked.wrong += server.answers_truly and not cases.is_right(index, row)
            if time.monotonic() + pause_s > end_s:
                break
            time.sleep(pause_s)
        connection.close()

    thread = threading.Thread(target=call_now_and_then, name="checker")
    thread.start()
    try:
        yield checked
    finally:
        thread.join()
