"""The composition root: settings -> objects -> one TaskGroup; signals; the order of the drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from gateway import traffic_file
from gateway.admission import Admission
from gateway.batching.scheduling import make_scheduler
from gateway.config import Settings
from gateway.core import Stage
from gateway.engines import Engines, open_fleet
from gateway.errors import StartError
from gateway.lifecycle.control import RepositoryControl
from gateway.lifecycle.policy import Defaults
from gateway.lifecycle.reconciler import Reconciler
from gateway.logs import Logs, log_to_stderr
from gateway.metrics import Metrics
from gateway.registry import Registry
from gateway.response_cache import ResponseCache
from gateway.router import Router
from gateway.split import Split
from gateway.trace_settings import TraceSettings
from gateway.transport.calls import Calls
from gateway.transport.event_loop import EventLoop
from gateway.transport.http import HttpServer, listen, make_app
from gateway.transport.inference import Inference
from gateway.transport.rest.infer import InferEndpoint
from gateway.transport.rest.routes import routes
from gateway.transport.rest.steering import steering_routes, traffic_routes
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
    metrics = Metrics()
    registry = Registry(metrics, settings.predictive_prewarm)
    try:
        async with open_fleet(settings, registry.poke) as engines:
            await _serve(settings, logs, metrics, registry, engines, http_socket, stopping)
    finally:
        http_socket.close()
    log.info("stopped")


async def _serve(
    settings: Settings,
    logs: Logs,
    metrics: Metrics,
    registry: Registry,
    engines: Engines,
    http_socket: socket.socket,
    stopping: asyncio.Event,
) -> None:
    metrics.engines = engines.fleet.rows
    control = RepositoryControl(engines.catalogue, registry)
    await control.read_all()
    control.adopt(engines.held)

    def ready() -> bool:
        return not stopping.is_set()

    router = Router(registry)
    stage: Stage = router
    split = None
    if settings.traffic is not None:
        stage = split = Split(router, registry, metrics)
        split.take(await traffic_file.read(settings.traffic))
    cache = ResponseCache(settings.response_cache_bytes)
    admission = Admission(stage, settings.max_inflight, settings.max_inflight_per_model, metrics)
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
    api = [
        *routes(rpcs, calls, settings.max_message_bytes),
        *steering_routes(
            registry, metrics, calls, settings.request_timeout_s, settings.allow_repository_control
        ),
        *traffic_routes(split.described if split else dict),
    ]
    http_server = HttpServer(make_app(metrics, ready, infer, api), http_socket)
    port = await grpc_server.start(settings.host, settings.port)
    async with aclosing(control), asyncio.TaskGroup() as tasks:
        schedule = partial(make_scheduler, stage, settings.engine_timeout_s, cache)
        defaults = Defaults(
            settings.idle_timeout_s, settings.max_replicas, settings.target_concurrency
        )
        reconciler = Reconciler(
            registry,
            engines.fleet,
            defaults,
            schedule,
            metrics.cold_starts,
            engines.files.fetch,
        )
        control_loop = tasks.create_task(reconciler.run(), name="reconciler")
        tasks.create_task(http_server.run(), name="http")
        watches = [tasks.create_task(engines.watch(control.join), name="watch over engines")]
        if settings.watch and engines.catalogue is engines.files:
            watching = engines.files.follow(control.refresh)
            watches.append(tasks.create_task(watching, name="watch over the repository"))
        if split is not None and settings.traffic is not None:
            following = traffic_file.follow(settings.traffic, split.take)
            watches.append(tasks.create_task(following, name="watch over the traffic file"))
            watches.append(tasks.create_task(split.run(), name="shadows"))
        _spare_the_collector()
        log.info(
            "serving %s: gRPC on %s:%d, HTTP on %s:%d",
            engines.title,
            settings.host,
            port,
            *http_socket.getsockname()[:2],
        )
        await stopping.wait()
        log.info("draining %d requests in flight", admission.inflight)
        await grpc_server.drain(settings.drain_timeout_s)
        control_loop.cancel()
        for watch in watches:
            watch.cancel()
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
