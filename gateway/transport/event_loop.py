"""The event loop of the gateway: uvloop, an exact clock, one read for all of gRPC's wake-ups."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import uvloop

_READ_BYTES = 4096


class EventLoop(uvloop.Loop):
    """uvloop for a process whose main work is a grpc.aio server.

    gRPC's polling thread writes a byte into a socket for each event, and the loop's callback reads
    one, though it handles every event that has come: four turns of the loop and eight system calls
    for each request, three quarters of them for nothing. Reading all bytes at once is safe: an
    event is in gRPC's queue before its byte is written. (docs/adr/0004)
    """

    def time(self) -> float:
        """Return seconds of the monotonic clock: uvloop's own time has whole milliseconds."""
        return monotonic()

    def add_reader(  # type: ignore[override] # typed loosely: it only looks and passes on
        self, fd: Any, callback: Callable[..., Any], *args: Any
    ) -> None:
        """Watch `fd`; see asyncio."""
        if _is_grpc_wakeup(callback) and type(fd) is socket.socket:
            fd.__class__ = _WakeupSocket
        super().add_reader(fd, callback, *args)


class _WakeupSocket(socket.socket):
    """The reading end: what is asked for as one byte is as many as there are."""

    __slots__ = ()

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        return super().recv(_READ_BYTES, flags)


def _is_grpc_wakeup(callback: Callable[..., Any]) -> bool:
    """Whether a reader is that of gRPC's completion queue, as in grpcio 1.80 and 1.81."""
    if not isinstance(callback, partial):
        return False
    owner = getattr(callback.func, "__self__", None)
    return type(owner).__name__ == "PollerCompletionQueue"
