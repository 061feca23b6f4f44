"""The door: how many requests may be inside. Full means refuse now."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway.core import InferRequest, InferResponse, Stage
from gateway.errors import Overloaded
from gateway.metrics import Metrics


class Admission:
    """Bounds the requests in flight, over all models and for each."""

    def __init__(
        self, router: Stage, max_inflight: int, max_inflight_per_model: int, metrics: Metrics
    ) -> None:
        self._router = router
        self._metrics = metrics
        self._bound = max_inflight
        self._model_bound = max_inflight_per_model
        self._inflight: dict[str, int] = {}
        self._total = 0

    @property
    def inflight(self) -> int:
        """Requests inside at this moment."""
        return self._total

    async def infer(self, request: InferRequest) -> InferResponse:
        """Pass the request on, if there is room. Raises `Overloaded` before any wait."""
        model = request.model
        # the permit is this scope; a context manager of its own would cost as much as the rest
        self._enter(model)
        try:
            return await self._router.infer(request)
        finally:
            self._leave(model)

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Pass the request on, if there is room; it is inside until its last answer."""
        model = request.model
        self._enter(model)
        try:
            async with aclosing(self._router.stream(request)) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._leave(model)

    def _enter(self, model: str) -> None:
        held = self._inflight.get(model, 0)
        if self._total >= self._bound:
            self._metrics.overloaded[""] += 1
            raise Overloaded(f"the gateway has {self._bound} requests in flight, its maximum")
        if held >= self._model_bound:
            self._metrics.overloaded[model] += 1
            raise Overloaded(
                f"model '{model}' has {self._model_bound} requests in flight, its maximum"
            )
        self._inflight[model] = held + 1
        self._total += 1

    def _leave(self, model: str) -> None:
        self._total -= 1
        if self._inflight[model] == 1:
            del self._inflight[model]
        else:
            self._inflight[model] -= 1
