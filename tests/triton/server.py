"""A real tritonserver for tests, and why there is none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gateway.engine import tritonserver
from gateway.engine.process import TritonProcess
from gateway.errors import StartError

ENV = Path(__file__).parents[2] / ".venv-triton"


def why_not() -> str:
    """Return why no tritonserver can be started here; "" where one can."""
    try:
        tritonserver.find(ENV)
    except StartError as error:
        return tritonserver.unsupported() or str(error)
    return ""


class Endpoint(NamedTuple):
    """Where a server answers: HOST:PORT of its gRPC service and of its REST interface.

    `metrics` is the address of the page that Prometheus reads.
    """

    grpc: str
    http: str
    metrics: str


class _Told(TritonProcess):
    """A server with more flags than the gateway gives its own."""

    flags: tuple[str, ...] = ()

    def _command(self) -> list[str]:
        package = self._installation.package
        caches = [] if package is None else [f"--cache-directory={package / 'caches'}"]
        return [*super()._command(), *caches, *self.flags]


@contextmanager
def running(repository: Path, *flags: str) -> Iterator[TritonProcess]:
    """Run the server of `make triton` over a repository, from a thread with a loop of its own."""
    process = _Told(tritonserver.find(ENV), repository)
    process.flags = flags
    started, finished = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    async def serve() -> None:
        try:
            await process.start()
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            started.set()
        await asyncio.to_thread(finished.wait)
        await process.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="tritonserver")
    thread.start()
    started.wait()
    try:
        if errors:
            raise errors[0]
        yield process
    finally:
        finished.set()
        thread.join()
