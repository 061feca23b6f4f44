"""The HTTP side: KServe v2, Prometheus metrics and health, in the same event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import StartError
from gateway.exposition import exposition
from gateway.metrics import Metrics
from gateway.transport.rest.infer import InferEndpoint, address
from gateway.transport.rest.routes import not_routed

MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_S = 75  # Triton never closes idle connections; its clients keep them


def make_app(
    metrics: Metrics, ready: Callable[[], bool], infer: InferEndpoint, api: Sequence[Route]
) -> ASGIApp:
    """Return the ASGI application.

    Beside KServe v2: GET /metrics, and /healthz (503 once the gateway drains). Inference goes past
    Starlette: its routing and its middleware take longer than the rest of a small request.
    """

    async def metrics_page(_request: Request) -> Response:
        return Response(exposition(metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def healthz(_request: Request) -> Response:
        if ready():
            return JSONResponse({"status": "serving"})
        return JSONResponse({"status": "draining"}, status_code=503)

    pages = [Route("/metrics", metrics_page), Route("/healthz", healthz), *api]
    others = Starlette(routes=pages, exception_handlers={HTTPException: not_routed})
    others.router.redirect_slashes = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = address(scope) if scope["type"] == "http" else None
        if asked is not None:
            await infer(*asked, scope, receive, send)
        else:
            await others(scope, receive, send)

    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `StartError` where the port cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen()  # now, so that nobody is refused between the log line and the first accept
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on {host}:{port} (HTTP): {error.strerror}") from None
    return sock


class _Protocol(HttpToolsProtocol):
    """uvicorn's, which would keep whatever comes as long as a head does not end."""

    _in_head = False
    _head_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("Request header is too large.")


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's event loop: that one owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves the application on a listening socket, in this event loop."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        self._sock = sock
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=1,
            )
        )

    async def run(self) -> None:
        """Serve until `stop` is called or the task is cancelled."""
        try:
            await self._server.serve(sockets=[self._sock])
        finally:
            self._sock.close()

    def stop(self) -> None:
        """Have `run` return soon."""
        self._server.should_exit = True
