"""What the gateway asks of an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

from gateway.core import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelSpec,
    Parameters,
    Tensor,
)


class Loaded(NamedTuple):
    """A version that is ready: as the engine itself describes it, and the memory it holds."""

    spec: ModelSpec
    resident_bytes: int


class BatchEngine(Protocol):
    """Runs batches of ready versions: all that a batcher asks for."""

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        """Return the named outputs of one batch, in that order.

        `parameters` are what all members of the batch have said to the model beside their tensors.
        Raises `InferenceFailed` where the model refuses it. A caller that is cancelled here gets
        its CancelledError soon; what the engine can abort of the run, it aborts.
        """
        ...


class ModelEngine(BatchEngine, Protocol):
    """Runs ready versions: all that their schedulers ask for."""

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        """Return the answer to one request that the engine schedules itself.

        For versions that `load` returned as `forwarded`. Raises and is cancelled like `infer`.
        """
        ...

    def stream(self, key: ModelKey, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the answers of a decoupled model as they come; otherwise like `forward`."""
        ...


class Engine(ModelEngine, Protocol):
    """Anything that can load, unload and infer, and say how much memory a model takes.

    All methods run on the event loop and return without blocking it. Every error they raise for a
    model's or a request's sake is a `TidegateError`.
    """

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        """Make a version ready; return it as the engine has it.

        One that is `awaited` has requests: what is only there to have the first of them find a warm
        model is left out.
        Raises `RepositoryError` where its files are at fault. A caller that is cancelled here
        calls `unload` afterwards: part of the load may have happened.
        """
        ...

    async def unload(self, key: ModelKey) -> None:
        """Give back what `load` took. Does nothing for a version that is not loaded."""
        ...

    async def close(self) -> None:
        """Free what the engine itself holds, after every model is unloaded."""
        ...
