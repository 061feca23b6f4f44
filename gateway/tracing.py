"""OpenTelemetry traces of requests, exported over OTLP/HTTP in a thread of the SDK's.

Imported only where tracing is on: without it no request pays for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.core import InferRequest, ParameterValue
from gateway.trace_settings import BATCH_SPANS, DELAY_MS, QUEUE_SPANS, TraceSettings

EXPORT_TIMEOUT_S = 5.0  # of one batch of spans, tries included
FLUSH_S = 5.0  # how long the end of the gateway waits for the last of them

_W3C = TraceContextTextMapPropagator()
_NEW_TRACE = Context()


class Tracing:
    """Traces the requests that the settings choose. `close` it at the end."""

    def __init__(self, settings: TraceSettings, endpoint: str) -> None:
        # of its warnings one for each try of each batch would stay; errors say what was lost
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._settings = settings
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # the settings have chosen already
            resource=Resource.create({"service.name": "tidegate"}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(_traces_url(endpoint), timeout=EXPORT_TIMEOUT_S),
                max_queue_size=QUEUE_SPANS,
                schedule_delay_millis=DELAY_MS,
                max_export_batch_size=BATCH_SPANS,
            )
        )
        self._tracer = self._provider.get_tracer("tidegate", version("tidegate"))
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def traced(
        self, request: InferRequest, headers: Mapping[str, str], system: str
    ) -> Iterator[None]:
        """Trace what is done with a request inside this scope, if it is one to be traced.

        `headers` may carry the caller's W3C trace context; `system` is how the request came.
        """
        context = _W3C.extract(headers, _NEW_TRACE) if "traceparent" in headers else _NEW_TRACE
        parent = trace.get_current_span(context).get_span_context()
        rule = self._settings.rule(request.model)
        if not rule.due(parent.trace_flags.sampled if parent.is_valid else None):
            yield
            return
        attributes = {
            "rpc.system": system,
            "model": request.model,
            "version": request.version,
            "request_id": request.id,
        }
        if "TENSORS" in rule.level:
            for tensor in request.inputs:
                attributes[f"input.{tensor.name}"] = f"{tensor.datatype} {[*tensor.data.shape]}"
        span = self._tracer.start_span(
            "ModelInfer", context, kind=trace.SpanKind.SERVER, attributes=attributes
        )
        request.trace = _RequestTrace(self._tracer, span, self._loop.time())
        try:
            yield
        except BaseException as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(trace.StatusCode.ERROR, str(error))
            raise
        finally:
            span.end()

    async def close(self) -> None:
        """Send what has not been sent yet, for no longer than `FLUSH_S`."""
        done = asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop may have given up and ended
                self._loop.call_soon_threadsafe(done.set)

        # no thread of the loop's pool: its end would wait for this one
        threading.Thread(target=flush, name="trace flush", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                await done.wait()


class _RequestTrace:
    """The spans below one request's own."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, now: float) -> None:
        self._tracer = tracer
        self._context = trace.set_span_in_context(span, _NEW_TRACE)
        self._epoch_ns = time.time_ns() - round(now * 1e9)

    def span(self, name: str, started: float, ended: float, **attributes: ParameterValue) -> None:
        """Add a span; see `core.Trace`."""
        child = self._tracer.start_span(
            name, self._context, attributes=attributes, start_time=self._ns(started)
        )
        child.end(self._ns(ended))

    def _ns(self, loop_time: float) -> int:
        return self._epoch_ns + round(loop_time * 1e9)


def _traces_url(endpoint: str) -> str:
    """Return where spans go: a URL without a path is that of a collector."""
    parts = urlsplit(endpoint)
    return parts._replace(path="/v1/traces").geturl() if parts.path in ("", "/") else endpoint
