"""What stands between the requests of one ready model version and its engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from gateway.core import InferRequest, InferResponse, ModelSpec
from gateway.engine.base import ModelEngine
from gateway.metrics import ModelStats


class Scheduler(Protocol):
    """Decides which of a model's requests run when, and together with which others."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        ...

    @property
    def running(self) -> int:
        """Runs in the engine. One may outlive every request that it was for."""
        ...

    @property
    def queued(self) -> int:
        """Requests that wait for an instance."""
        ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the one answer, or raise a `TidegateError`; see `Stage.infer`."""
        ...

    def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the answers of a decoupled model; asked of no other."""
        ...

    def resize(self, copies: int) -> None:
        """Have so many copies of the model to run in, from now on."""
        ...

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        ...

    def close(self) -> None:
        """Stop timers. Raises AssertionError where requests are left."""
        ...


Schedule = Callable[[ModelSpec, ModelStats, ModelEngine, asyncio.TaskGroup], Scheduler]
"""Makes the scheduler of a version that has just become ready; tasks are its batches' parent."""
