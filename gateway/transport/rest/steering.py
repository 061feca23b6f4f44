"""What is in memory and where, as JSON; models woken ahead of requests, and pinned."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core import ModelState
from gateway.entry import Entry
from gateway.errors import DeadlineExceeded, InvalidRequest, NotAllowed, TidegateError
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.rows import HALF_LIFE_S
from gateway.transport.calls import Calls
from gateway.transport.rest import answers

MOST_MODELS = 1000  # in one answer, unless `limit` says otherwise
_MEDIA_TYPE = answers.JSON.decode()

Handler = Callable[[Request], Awaitable[Any]]


def steering_routes(
    registry: Registry, metrics: Metrics, calls: Calls, timeout_s: float, control_allowed: bool
) -> list[Route]:
    """Return the routes below /tidegate.

    `timeout_s` is how long a prewarm may take that does not say; pins need `control_allowed`.
    """

    async def models(request: Request) -> Any:
        wanted = request.query_params
        pattern, state = wanted.get("name", "*"), wanted.get("state", "").upper()
        if state and state not in set(ModelState):
            raise InvalidRequest(f"'{state}' is no state: there are {', '.join(ModelState)}")
        limit = _number(wanted, "limit", MOST_MODELS)
        now = asyncio.get_running_loop().time()
        found: list[dict[str, Any]] = []
        for entry in registry.entries():
            if len(found) >= limit:
                break
            if fnmatchcase(entry.key.name, pattern) and state in ("", entry.state.value):
                found.append(_model(entry, now))
        return {"models": found}

    async def engines(_request: Request) -> Any:
        rows = metrics.rows()
        held = {
            engine.name: [
                each for row in rows for each in row.replicas if each.engine == engine.name
            ]
            for engine in metrics.engines()
        }
        return {
            "engines": [
                {
                    "name": engine.name,
                    "kind": engine.kind,
                    "up": engine.up,
                    "reason": engine.reason,
                    "models": sum(each.state is ModelState.READY for each in held[engine.name]),
                    "bytes": sum(each.bytes for each in held[engine.name]),
                    "budget_bytes": engine.budget_bytes,
                }
                for engine in metrics.engines()
            ]
        }

    async def prewarm(request: Request) -> Any:
        entry = registry.find(request.path_params["model"])
        within_s = _number(request.query_params, "timeout_s", timeout_s)
        try:
            async with asyncio.timeout(within_s):
                await registry.ready(entry)
        except TimeoutError:
            raise DeadlineExceeded(
                f"model '{entry.key.name}' was not ready within {within_s:g} s"
            ) from None
        return _model(entry, asyncio.get_running_loop().time())

    async def pin(request: Request) -> Any:
        copies = _number(request.query_params, "replicas", 1)
        return _pin(request, int(copies))

    async def unpin(request: Request) -> Any:
        return _pin(request, None)

    def _pin(request: Request, copies: int | None) -> Any:
        if not control_allowed:
            raise NotAllowed(
                "models are not pinned by clients: --allow-repository-control opens it to them"
            )
        registry.pin(request.path_params["model"], copies)
        return {}

    model = "/tidegate/models/{model}"
    return [
        Route("/tidegate/models", _answering(models), methods=["GET"]),
        Route("/tidegate/engines", _answering(engines), methods=["GET"]),
        Route(f"{model}/prewarm", _answering(prewarm, calls), methods=["POST"]),
        Route(f"{model}/pin", _answering(pin, calls), methods=["POST"]),
        Route(f"{model}/unpin", _answering(unpin, calls), methods=["POST"]),
    ]


def traffic_routes(described: Callable[[], Mapping[str, Any]]) -> list[Route]:
    """Return the route that says which traffic rules are in force."""

    async def traffic(_request: Request) -> Any:
        return {"models": described()}

    return [Route("/tidegate/traffic", _answering(traffic), methods=["GET"])]


def _model(entry: Entry, now: float) -> dict[str, Any]:
    row = entry.row()
    faded = 0.5 ** ((now - row.frequency_at) / HALF_LIFE_S)
    return {
        "name": row.key.name,
        "version": row.key.version,
        "state": row.state,
        "reason": entry.reason,
        "copies": [
            {"engine": each.engine, "state": each.state, "bytes": each.bytes}
            for each in row.replicas
        ],
        "bytes": row.resident_bytes,
        "waiting": row.waiting,
        "queued": row.queued,
        "in_flight": row.in_flight,
        # what the fading count comes to at a steady rate
        "requests_per_s": row.frequency * faded * math.log(2) / HALF_LIFE_S,
        "idle_s": now - row.last_used if row.last_used else None,
        "loads": entry.stats.loads,
        "min_replicas": row.min_replicas,
    }


def _number(given: Mapping[str, str], name: str, default: float) -> float:
    text = given.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise InvalidRequest(f"'{name}' is a number from 0 on, not '{text}'")
    return value


def _answering(handler: Handler, calls: Calls | None = None) -> Handler:
    """Return an endpoint; with `calls` a drain refuses it, and waits for those that are in."""

    async def answer(request: Request) -> Response:
        try:
            if calls is None:
                content = orjson.dumps(await handler(request))
            else:
                with calls:
                    content = orjson.dumps(await handler(request))
        except TidegateError as error:
            code, content = answers.of_error(error, request.url.path)
            return Response(content, code, media_type=_MEDIA_TYPE)
        return Response(content, media_type=_MEDIA_TYPE)

    return answer
