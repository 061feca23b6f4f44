"""Bodies as HTTP carries them: read no further than the bound, gzip and deflate undone and done."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping

from starlette.types import Receive

from gateway.errors import DeadlineExceeded, InvalidRequest, NotSupported, RequestTooLarge

Headers = Mapping[bytes, bytes]
"""By name, in lower case, as ASGI has them."""

# the window of zlib, and which of its formats: what HTTP calls deflate is zlib's own
_WINDOWS = {"gzip": 31, "deflate": 15}
_LEVEL = 1  # tensors shrink little, and a higher level takes several times as long
# A body that is too large is still read, and thrown away, until it is as many times the bound: who
# is sending hears of a refusal once the rest is sent, and of a closed connection before.
PATIENCE = 2
SMALL_BYTES = 1024  # is sent as it is: many clients accept gzip without a wish for it


class ClientLeft(Exception):
    """There is nobody to answer."""


async def read(receive: Receive, headers: Headers, max_bytes: int, deadline: float) -> bytes:
    """Return the whole body, decompressed.

    Raises `RequestTooLarge` without keeping more than `max_bytes`, `DeadlineExceeded`,
    `ClientLeft`, and `InvalidRequest` for what does not decompress.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > PATIENCE * max_bytes:
        raise _too_large(max_bytes)
    message = await receive()
    if message["type"] != "http.request":
        raise ClientLeft
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        try:
            async with asyncio.timeout_at(deadline):
                body = await _read_on(receive, bytearray(body), max_bytes)
        except TimeoutError:
            raise DeadlineExceeded("the request's body did not come in time") from None
    elif len(body) > max_bytes:
        raise _too_large(max_bytes)
    coding = headers.get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOWS:
        raise NotSupported("Unsupported compression type")
    # in a thread: a few kilobytes may take long to become what the bound allows
    return await asyncio.to_thread(decompress, body, coding, max_bytes)


async def _read_on(receive: Receive, body: bytearray, max_bytes: int) -> bytes:
    size = len(body)
    more = True
    while more and size <= PATIENCE * max_bytes:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        if size <= max_bytes:
            body += part
        more = message.get("more_body", False)
    if size > max_bytes:
        raise _too_large(max_bytes)
    return bytes(body)


def decompress(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Return what was compressed. Raises `RequestTooLarge`, `InvalidRequest`."""
    stream = zlib.decompressobj(_WINDOWS[coding])
    try:
        content = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {coding}: {error}") from None
    if len(content) > max_bytes:
        raise _too_large(max_bytes)
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"the body is not one whole {coding} stream")
    return content


async def compress(body: bytes, coding: str) -> bytes:
    """Return a body compressed as a coding of `accepted` says."""
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOWS[coding])
    return await asyncio.to_thread(lambda: stream.compress(body) + stream.flush())


def accepted(header: bytes) -> str:
    """Return the coding that an Accept-Encoding header likes best: gzip, deflate, or "" for none.

    Of those that it likes equally well the first, as Triton.
    """
    best, best_weight = "", 0.0
    for each in header.decode("latin-1").lower().replace(" ", "").split(","):
        coding, _, weight_text = each.partition(";q=")
        try:
            weight = float(weight_text) if weight_text else 1.0
        except ValueError:
            continue
        if weight > best_weight and (coding in _WINDOWS or coding == "identity"):
            best, best_weight = coding, weight
    return "" if best == "identity" else best


def _too_large(max_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"the request is larger than {max_bytes} bytes")
