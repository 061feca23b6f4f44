"""The composition root: settings -> objects -> one TaskGroup; signals; the order of the drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from gateway.admission import Admission
from gateway.batching.scheduling import make_scheduler
from gateway.config import Settings
from gateway.engine import tritonserver
from gateway.engine.base import Engine
from gateway.engine.embedded import EmbeddedEngine
from gateway.engine.process import TritonProcess
from gateway.engine.triton import TritonEngine
from gateway.errors import EngineUnavailable, StartError
from gateway.lifecycle.control import Catalogue, RepositoryControl
from gateway.lifecycle.reconciler import Reconciler
from gateway.lifecycle.supervisor import keep_running
from gateway.logs import Logs, log_to_stderr
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.repository.catalogue import FolderCatalogue
from gateway.response_cache import ResponseCache
from gateway.router import Router
from gateway.trace_settings import TraceSettings
from gateway.transport.calls import Calls
from gateway.transport.event_loop import EventLoop
from gateway.transport.http import HttpServer, listen, make_app
from gateway.transport.inference import Inference
from gateway.transport.rest.infer import InferEndpoint
from gateway.transport.rest.routes import routes
from gateway.transport.rpcs.models import ModelRpcs
from gateway.transport.rpcs.repository import RepositoryRpcs
from gateway.transport.rpcs.settings import SettingsRpcs
from gateway.transport.rpcs.shared_memory import SharedMemoryRpcs
from gateway.transport.rpcs.statistics import StatisticsRpcs
from gateway.transport.server import GrpcServer, rpcs_of
from gateway.transport.shared_memory import SharedMemory

if TYPE_CHECKING:
    from gateway.tracing import Tracing

log = logging.getLogger(__name__)

GC_THRESHOLD = 20_000  # allocations between two collections; Python's default is 700


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then drain. Raises `StartError`."""
    logs = log_to_stderr(settings.log_format, settings.log_level)
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(serve(settings, logs))


async def serve(settings: Settings, logs: Logs) -> None:
    """Put the gateway together, serve, and take it apart in order.

    The drain: say NOT_SERVING and refuse new calls; answer those in flight; stop the control loop,
    which unloads every model; close the engine, and end the server that was started for it.
    """
    stopping = _on_signals(signal.SIGTERM, signal.SIGINT)
    http_socket = listen(settings.host, settings.http_port)
    try:
        async with _backend(settings) as backend:
            await _serve(settings, logs, backend, http_socket, stopping)
    finally:
        http_socket.close()
    log.info("stopped")


async def _serve(
    settings: Settings,
    logs: Logs,
    backend: _Backend,
    http_socket: socket.socket,
    stopping: asyncio.Event,
) -> None:
    metrics = Metrics()
    registry = Registry(metrics)
    control = RepositoryControl(backend.catalogue, registry)
    await control.read_all()
    control.adopt(backend.ready_names)

    def ready() -> bool:
        return not stopping.is_set()

    router = Router(registry)
    cache = ResponseCache(settings.response_cache_bytes)
    admission = Admission(router, settings.max_inflight, settings.max_inflight_per_model, metrics)
    calls = Calls()
    memory = SharedMemory(settings.allow_client_shm)
    traces = TraceSettings(settings.trace_endpoint, settings.trace_rate)
    tracing = _tracing(settings.trace_endpoint, traces)
    inference = Inference(admission, registry, calls, settings.request_timeout_s, memory, tracing)
    rpcs = rpcs_of(
        ModelRpcs(registry, ready),
        RepositoryRpcs(registry, control, settings.allow_repository_control),
        SharedMemoryRpcs(memory),
        StatisticsRpcs(registry),
        SettingsRpcs(registry, logs, traces),
    )
    grpc_server = GrpcServer(inference, rpcs, calls, settings.max_message_bytes)
    infer = InferEndpoint(inference, registry, calls, settings.max_message_bytes)
    api = routes(rpcs, calls, settings.max_message_bytes)
    http_server = HttpServer(make_app(metrics, ready, infer, api), http_socket)
    port = await grpc_server.start(settings.host, settings.port)
    async with aclosing(control), asyncio.TaskGroup() as tasks:
        schedule = partial(make_scheduler, backend.engine, router, settings.engine_timeout_s, cache)
        reconciler = Reconciler(registry, backend.engine, settings.idle_timeout_s, schedule)
        control_loop = tasks.create_task(reconciler.run(), name="reconciler")
        tasks.create_task(http_server.run(), name="http")
        _spare_the_collector()
        log.info(
            "serving %s: gRPC on %s:%d, HTTP on %s:%d",
            backend.title,
            settings.host,
            port,
            *http_socket.getsockname()[:2],
        )
        await stopping.wait()
        log.info("draining %d requests in flight", admission.inflight)
        await grpc_server.drain(settings.drain_timeout_s)
        control_loop.cancel()
        http_server.stop()
        memory.close()
        if tracing is not None:
            await tracing.close()


def _tracing(endpoint: str, settings: TraceSettings) -> Tracing | None:
    if not endpoint:
        return None
    try:  # an extra, and not imported for nothing
        from gateway.tracing import Tracing
    except ImportError as error:
        raise StartError(
            f"--trace-endpoint needs the extra 'tracing', pip install 'tidegate[tracing]': {error}"
        ) from None
    return Tracing(settings, endpoint)


@dataclass(frozen=True)
class _Backend:
    """What runs the models, where they are listed, and which of them it has ready already."""

    title: str
    engine: Engine
    catalogue: Catalogue
    ready_names: Sequence[str] = ()


@asynccontextmanager
async def _backend(settings: Settings) -> AsyncIterator[_Backend]:
    """Give what the settings name; it is closed at the end."""
    if settings.triton:
        async with _triton(settings.triton) as engine:
            if settings.repository_given:
                catalogue: Catalogue = FolderCatalogue(settings.repository, embedded=False)
            else:
                catalogue = engine
            title = f"Triton at {settings.triton}"
            yield _Backend(title, engine, catalogue, await _ready_in(engine))
    elif settings.spawn_triton:
        folder = FolderCatalogue(settings.repository, embedded=False)
        async with _own_triton(settings) as address, _triton(address) as engine:
            yield _Backend(f"{settings.repository} with Triton", engine, folder)
    else:
        embedded = EmbeddedEngine(
            settings.intra_op_threads,
            settings.cache_dir,
            settings.cache_max_bytes,
            settings.gpu_memory_limit_bytes,
        )
        try:
            folder = FolderCatalogue(settings.repository, embedded=True)
            yield _Backend(str(settings.repository), embedded, folder)
        finally:
            await embedded.close()


@asynccontextmanager
async def _triton(address: str) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(address)
    try:
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def _own_triton(settings: Settings) -> AsyncIterator[str]:
    """Run a Triton server over the repository; give its address, which outlives its restarts."""
    process = TritonProcess(tritonserver.find(settings.triton_env), settings.repository)
    await process.start()
    supervisor = asyncio.create_task(keep_running(process), name="supervisor")
    try:
        yield process.address
    finally:
        supervisor.cancel()
        await asyncio.wait([supervisor])
        await process.stop()


async def _ready_in(triton: TritonEngine) -> list[str]:
    try:
        return await triton.ready_names()
    except EngineUnavailable as error:
        log.warning("%s", error)  # it may come later; where nothing works without it, that says so
        return []


def _spare_the_collector() -> None:
    """Keep the garbage collector away from what start-up has built.

    That heap never becomes garbage, and a request allocates enough to start a collection every few
    dozen of them: walking it each time cost a quarter of the throughput.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)


def _on_signals(*signals: signal.Signals) -> asyncio.Event:
    """Return an event that any of the signals sets. A second signal ends the process at once."""
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def arrive() -> None:
        arrived.set()
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        loop.add_signal_handler(number, arrive)
    return arrived
