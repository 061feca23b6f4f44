"""The HTTP side: Prometheus metrics and health."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.errors import StartError
from gateway.metrics import Metrics


def make_app(metrics: Metrics, ready: Callable[[], bool]) -> Starlette:
    """Return the ASGI application: GET /metrics, and /healthz (503 once the gateway drains)."""

    async def metrics_page(_request: Request) -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def healthz(_request: Request) -> Response:
        if ready():
            return JSONResponse({"status": "serving"})
        return JSONResponse({"status": "draining"}, status_code=503)

    return Starlette(routes=[Route("/metrics", metrics_page), Route("/healthz", healthz)])


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


class _Server(uvicorn.Server):
    """uvicorn inside somebody else's event loop: that one owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves the application on a listening socket, in this event loop."""

    def __init__(self, app: Starlette, sock: socket.socket) -> None:
        self._sock = sock
        self._server = _Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
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
