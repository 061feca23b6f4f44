"""What goes out: JSON bodies, and errors as Triton writes them."""

from __future__ import annotations

import logging

import orjson
from starlette.types import Send

from gateway.errors import TidegateError
from gateway.transport.status import HTTP_CODE

log = logging.getLogger(__name__)

JSON = b"application/json"
OCTETS = b"application/octet-stream"
_NO_HEADERS: tuple[tuple[bytes, bytes], ...] = ()


async def send_body(
    send: Send,
    code: int,
    body: bytes,
    content_type: bytes = JSON,
    headers: tuple[tuple[bytes, bytes], ...] = _NO_HEADERS,
) -> None:
    """Send a whole answer."""
    length = str(len(body)).encode()
    fixed = ((b"content-type", content_type), (b"content-length", length))
    await send({"type": "http.response.start", "status": code, "headers": fixed + headers})
    await send({"type": "http.response.body", "body": body})


def error_body(text: str) -> bytes:
    """Return a text as the body of an error."""
    return orjson.dumps({"error": text})


def of_error(error: Exception, what: str) -> tuple[int, bytes]:
    """Return code and body of what went wrong; `what` was asked for."""
    if isinstance(error, TidegateError):
        return HTTP_CODE[type(error)], error_body(str(error))
    log.error("%s failed: this is a bug", what, exc_info=error)
    return 500, error_body(f"{what}: {type(error).__name__}: {error}")
