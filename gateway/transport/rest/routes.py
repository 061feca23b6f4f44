"""The routes of `operations`: JSON in, the RPC that gRPC calls, too, JSON out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from google.protobuf.message import Message
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gateway.errors import InvalidRequest, TidegateError
from gateway.transport.calls import Calls
from gateway.transport.rest import answers, bodies, docs_page, json_values, openapi
from gateway.transport.rest.operations import OPERATIONS, Operation

Rpcs = Mapping[str, Callable[[Any], Awaitable[Message]]]

BODY_WITHIN_S = 60.0
_NAMES = ("model", "version", "repository", "region")  # that stand in paths
_MEDIA_TYPE = answers.JSON.decode()


def routes(rpcs: Rpcs, calls: Calls, max_bytes: int) -> list[Route]:
    """Return a route for each path of each operation, and those of the documentation."""
    described = openapi.document()
    document = orjson.dumps(described)
    page = docs_page.render(described)

    async def show_document(_request: Request) -> Response:
        return Response(document, media_type=_MEDIA_TYPE)

    async def show_page(_request: Request) -> Response:
        return HTMLResponse(page)

    return [
        Route("/openapi.json", show_document),
        Route("/docs", show_page),
        *(
            Route(path, _endpoint(operation, rpcs, calls, max_bytes), methods=[operation.method])
            for operation in OPERATIONS
            for path in operation.paths
        ),
    ]


async def not_routed(_request: Request, error: Exception) -> Response:
    """Answer what no route is for, or not with that method, as Triton does."""
    assert isinstance(error, HTTPException), "registered for nothing else: this is a bug"
    text = {404: "Not Found", 405: "Method Not Allowed"}.get(error.status_code, error.detail)
    body = answers.error_body(text)
    return Response(body, error.status_code, error.headers, _MEDIA_TYPE)


def _endpoint(
    operation: Operation, rpcs: Rpcs, calls: Calls, max_bytes: int
) -> Callable[[Request], Awaitable[Response]]:
    rpc = rpcs[operation.rpc]

    async def call(request: Request) -> Response:
        body = await _document(request, operation, max_bytes)
        path = {name: request.path_params.get(name, "") for name in _NAMES}
        try:
            response = await rpc(operation.message(path, body))
        except UnicodeEncodeError:
            raise InvalidRequest("the request has a string that is not Unicode") from None
        document = operation.answer.document(response)
        content = b"" if document is None else orjson.dumps(document)
        code = 200 if operation.answer.holds(response) else 400
        return Response(content, code, media_type=_MEDIA_TYPE)

    async def answer(request: Request) -> Response:
        try:
            if operation.method == "GET":  # a gateway that drains still says what it is doing
                return await call(request)
            with calls:
                return await call(request)
        except bodies.ClientLeft:
            return Response(status_code=400)  # for nobody
        except TidegateError as error:
            code, content = answers.of_error(operation.failure(error), operation.rpc)
        except Exception as error:
            code, content = answers.of_error(error, operation.rpc)
        return Response(content, code, media_type=_MEDIA_TYPE)

    return answer


async def _document(request: Request, operation: Operation, max_bytes: int) -> Any:
    """Return the JSON of the body, an object; an empty one where there is none."""
    if operation.body is None:
        return {}
    deadline = asyncio.get_running_loop().time() + BODY_WITHIN_S
    body = await bodies.read(request.receive, dict(request.scope["headers"]), max_bytes, deadline)
    if not body and not operation.needs_body:
        return {}
    return json_values.members(json_values.parse(body), "body")
