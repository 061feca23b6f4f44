"""The door: how many requests may be inside, and until when. Full means refuse now."""

from __future__ import annotations

import asyncio

from gateway.core import InferRequest, InferResponse, Stage
from gateway.errors import DeadlineExceeded, Overloaded


class Admission:
    """Bounds the requests in flight, over all models and for each, and keeps their deadlines."""

    def __init__(self, router: Stage, max_inflight: int, max_inflight_per_model: int) -> None:
        self._router = router
        self._bound = max_inflight
        self._model_bound = max_inflight_per_model
        self._inflight: dict[str, int] = {}
        self._total = 0

    @property
    def inflight(self) -> int:
        """Requests inside at this moment."""
        return self._total

    async def infer(self, request: InferRequest) -> InferResponse:
        """Pass the request on, if there is room.

        Raises `Overloaded` before any wait, `DeadlineExceeded` once the request's deadline passes.
        """
        with _Permit(self, request.model):
            try:
                async with asyncio.timeout_at(request.deadline):
                    return await self._router.infer(request)
            except TimeoutError:
                raise DeadlineExceeded("the request's deadline has passed") from None

    def _enter(self, model: str) -> None:
        held = self._inflight.get(model, 0)
        if self._total >= self._bound:
            raise Overloaded(f"the gateway has {self._bound} requests in flight, its maximum")
        if held >= self._model_bound:
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


class _Permit:
    """Room for one request, held by scope. (A class: a generator costs 1 us more a request.)"""

    __slots__ = ("_admission", "_model")

    def __init__(self, admission: Admission, model: str) -> None:
        self._admission = admission
        self._model = model

    def __enter__(self) -> None:
        self._admission._enter(self._model)

    def __exit__(self, *_exc: object) -> None:
        self._admission._leave(self._model)
