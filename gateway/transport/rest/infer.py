"""POST /v2/models/M/infer: plain ASGI, since here the time of a request is spent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import Receive, Scope, Send

from gateway.errors import InvalidRequest, NotSupported
from gateway.registry import Registry
from gateway.transport import codec
from gateway.transport.calls import Calls
from gateway.transport.delivery import asked_for
from gateway.transport.inference import Inference
from gateway.transport.rest import answers, bodies, infer_answer, infer_body

JSON_SIZE = b"inference-header-content-length"
# Envoy tells its upstreams with it how long it will wait, in milliseconds
TIMEOUT_HEADER = b"x-envoy-expected-rq-timeout-ms"
_TRACE_HEADERS = (b"traceparent", b"tracestate")
# A request that takes longer than that is watched for its client's leaving: a task for each
# request would cost more than it saves where most are answered in milliseconds.
WATCH_AFTER_S = 0.05


def address(scope: Scope) -> tuple[str, str] | None:
    """Return the model and the version ("" for none) whose inference a path names."""
    path: str = scope["path"]
    if not path.endswith("/infer"):
        return None
    match path.split("/"):
        case ["", "v2", "models", model, "infer"]:
            return model, ""
        case ["", "v2", "models", model, "versions", version, "infer"]:
            return model, version
    return None


class InferEndpoint:
    """Answers inference requests."""

    def __init__(
        self, inference: Inference, registry: Registry, calls: Calls, max_bytes: int
    ) -> None:
        self._inference = inference
        self._registry = registry
        self._calls = calls
        self._max_bytes = max_bytes

    async def __call__(
        self, model: str, version: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request."""
        if scope["method"] != "POST":
            body = answers.error_body("Method Not Allowed")
            await answers.send_body(send, 405, body, headers=((b"allow", b"POST"),))
            return
        try:
            with self._calls:  # until the answer is on its way
                await self._answer(model, version, scope, receive, send)
        except bodies.ClientLeft:
            pass
        except Exception as error:
            await answers.send_body(send, *answers.of_error(error, "infer"))

    async def _answer(
        self, model: str, version: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers: bodies.Headers = dict(scope["headers"])
        deadline = self._inference.deadline(_remaining_s(headers))
        question = await self._read(model, version, headers, receive, deadline)
        request = codec.decode(question.message, deadline, self._inference.regions)
        outputs = question.message.outputs
        with _until_client_leaves(receive):
            response, placed = await self._inference.run(
                request, asked_for(outputs) if outputs else (), _trace_context(headers)
            )
        body, json_size = infer_answer.write(response, placed, question)
        extra: tuple[tuple[bytes, bytes], ...] = ()
        if json_size is not None:
            extra = ((JSON_SIZE, str(json_size).encode()),)
        if b"accept-encoding" in headers and len(body) >= bodies.SMALL_BYTES:
            coding = bodies.accepted(headers[b"accept-encoding"])
            if coding:
                body = await bodies.compress(body, coding)
                extra += ((b"content-encoding", coding.encode()),)
        content_type = answers.JSON if json_size is None else answers.OCTETS
        await answers.send_body(send, 200, body, content_type, extra)

    async def _read(
        self,
        model: str,
        version: str,
        headers: bodies.Headers,
        receive: Receive,
        deadline: float,
    ) -> infer_body.Question:
        spec = self._registry.find(model, version).spec
        if spec.decoupled:
            raise NotSupported(
                "HTTP end point doesn't support models with decoupled transaction policy"
            )
        body = await bodies.read(receive, headers, self._max_bytes, deadline)
        json_size = _json_size(headers, len(body))
        if json_size == 0:
            return infer_body.read_raw(spec, version, body)
        return infer_body.read(model, version, body, json_size)


def _json_size(headers: bodies.Headers, size: int) -> int:
    """Return how much of a body of so many bytes is JSON."""
    if JSON_SIZE not in headers:
        return size
    text = headers[JSON_SIZE]
    if not (text.isdigit() and len(text) <= 19 and int(text) <= size):
        raise InvalidRequest(
            f"inference header size should be in range (0, {size}), got: {text.decode('latin-1')}"
        )
    return int(text)


def _remaining_s(headers: bodies.Headers) -> float | None:
    """Return for how long the caller waits, where a header says so."""
    text = headers.get(TIMEOUT_HEADER, b"")
    return int(text) / 1000 if text.isdigit() and 0 < len(text) <= 9 else None


def _trace_context(headers: bodies.Headers) -> Mapping[str, str]:
    return {
        name.decode(): headers[name].decode("latin-1") for name in _TRACE_HEADERS if name in headers
    }


@contextmanager
def _until_client_leaves(receive: Receive) -> Iterator[None]:
    """Cancel what is done in the scope once the client has gone. Raises `ClientLeft` then."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    watch: asyncio.Task[None] | None = None
    left = False

    async def listen() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        assert task is not None, "a request is answered in a task: this is a bug"
        task.cancel()

    def begin() -> None:
        nonlocal watch
        watch = loop.create_task(listen())

    timer = loop.call_later(WATCH_AFTER_S, begin)
    try:
        yield
    except asyncio.CancelledError:
        if left:
            raise bodies.ClientLeft from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.cancel()
