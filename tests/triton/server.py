"""A real tritonserver for tests, and why there is none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def running(repository: Path) -> Iterator[TritonProcess]:
    """Run the server of `make triton` over a repository, from a thread with a loop of its own."""
    process = TritonProcess(tritonserver.find(ENV), repository)
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
