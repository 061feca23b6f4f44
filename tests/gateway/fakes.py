"""A scripted engine, and the gateway without its transport: for stories with times in them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from gateway.admission import Admission
from gateway.batching.scheduling import make_scheduler
from gateway.core import (
    NO_PARAMETERS,
    Array,
    BatchPolicy,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelSpec,
    ModelState,
    Parameters,
    Tensor,
    TensorSpec,
)
from gateway.engine.base import Loaded
from gateway.entry import Entry
from gateway.errors import InferenceFailed, RepositoryError
from gateway.fleet import Fleet, Node
from gateway.lifecycle.policy import Defaults
from gateway.lifecycle.reconciler import Reconciler
from gateway.metrics import Metrics
from gateway.placement import EngineKind
from gateway.registry import Registry
from gateway.repository.reader import ModelListing
from gateway.response_cache import ResponseCache
from gateway.router import Router


@dataclass(frozen=True)
class Ok:
    """Succeed after `seconds`; drop `lost_rows` rows of the answer."""

    seconds: float = 0.01
    lost_rows: int = 0


@dataclass(frozen=True)
class Fail:
    """Fail after `seconds`."""

    text: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Hang:
    """Return only when the engine is `released`, or the call cancelled."""


Act = Ok | Fail | Hang


@dataclass
class FakeEngine:
    """Doubles its input. Plays `loads` and `runs` in order, then succeeds like `Ok()`."""

    loads: list[Act] = field(default_factory=list)
    runs: list[Act] = field(default_factory=list)
    loaded: set[ModelKey] = field(default_factory=set)
    batches: list[Array] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    unload_s: float = 0.0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        self.log.append(f"load {spec.key}")
        self.loaded.add(spec.key)
        try:
            await self._play(self.loads, RepositoryError)
        except RepositoryError:
            self.loaded.remove(spec.key)
            raise
        return Loaded(spec, 1000)

    async def unload(self, key: ModelKey) -> None:
        self.log.append(f"unload {key}")
        await asyncio.sleep(self.unload_s)
        self.loaded.discard(key)

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        assert key in self.loaded, f"{key} ran while not loaded"
        (tensor,) = inputs
        self.batches.append(tensor.data)
        act = await self._play(self.runs, InferenceFailed)
        rows = len(tensor.data) - act.lost_rows
        return [Tensor(name, "FP32", tensor.data[:rows] * 2) for name in outputs]

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        outputs = [output.name for output in spec().outputs]
        answer = await self.infer(key, request.inputs, outputs, request.parameters)
        return InferResponse(key.name, key.version, request.id, answer)

    async def stream(
        self, key: ModelKey, request: InferRequest
    ) -> AsyncGenerator[InferResponse, None]:
        for _ in range(int(request.parameters.get("answers", 1))):
            yield await self.forward(key, request)

    async def close(self) -> None:
        assert not self.loaded, f"closed with {self.loaded} loaded"

    async def _play(self, script: list[Act], failure: Callable[[str], Exception]) -> Ok:
        act = script.pop(0) if script else Ok()
        match act:
            case Ok(seconds=seconds):
                await asyncio.sleep(seconds)
                return act
            case Fail(text=text, seconds=seconds):
                await asyncio.sleep(seconds)
                raise failure(text)
            case Hang():
                await self.released.wait()
                return Ok()

    @property
    def batch_sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def spec(
    name: str = "m",
    version: int = 1,
    batching: BatchPolicy | None = None,
    dims: tuple[int, ...] = (2,),
    max_batch_size: int = 8,
    instances: int = 1,
) -> ModelSpec:
    """A model with one input `x` and one output `y`."""
    return ModelSpec(
        key=ModelKey(name, version),
        path=Path(name),
        model_file="model.onnx",
        platform="fake",
        max_batch_size=max_batch_size,
        inputs=(TensorSpec("x", "FP32", dims),),
        outputs=(TensorSpec("y", "FP32", dims),),
        batching=batching or dynamic(max_batch_size),
        instances=instances,
        file_bytes=1000,
        modified_ns=0,
        config=b"",
    )


def dynamic(max_batch_size: int = 8, delay_s: float = 0.0, *preferred: int) -> BatchPolicy:
    """Dynamic batching as a config.pbtxt would have it."""
    return BatchPolicy(
        max_batch_size=max_batch_size,
        dynamic=True,
        preferred=preferred or (max_batch_size,),
        max_delay_s=delay_s,
    )


class House:
    """The gateway from its door to its engine, on the loop of the test."""

    def __init__(
        self,
        engine: FakeEngine,
        idle_timeout_s: float,
        max_inflight: int,
        per_model: int,
        engine_timeout_s: float,
        cache_bytes: int,
        nodes: Sequence[Node],
        predictive: bool,
    ) -> None:
        self.engine = engine
        self.metrics = Metrics()
        self.registry = Registry(self.metrics, predictive)
        router = Router(self.registry)
        self.cache = ResponseCache(cache_bytes)
        schedule = partial(make_scheduler, router, engine_timeout_s, self.cache)
        self.fleet = Fleet(
            nodes or [Node("embedded", EngineKind.EMBEDDED, engine)], self.registry.poke
        )
        defaults = Defaults(idle_timeout_s)
        self.reconciler = Reconciler(
            self.registry, self.fleet, defaults, schedule, self.metrics.cold_starts
        )
        self.admission = Admission(router, max_inflight, per_model, self.metrics)

    def publish(self, *specs: ModelSpec) -> None:
        """Put versions of one model into the repository."""
        self.registry.update(ModelListing(specs[0].key.name, specs))

    def entry(self, name: str = "m", version: int = 1) -> Entry:
        return self.registry.entry(ModelKey(name, version))

    async def ask(
        self,
        *values: float,
        model: str = "m",
        width: int = 2,
        timeout_s: float = 1000.0,
        priority: int = 0,
        timeout_us: int = 0,
    ) -> InferResponse:
        """Send rows filled with `values`; return the answer, checked against the question."""
        loop = asyncio.get_running_loop()
        data = np.repeat(np.array(values, np.float32)[:, None], width, axis=1)
        request = InferRequest(
            model=model,
            version="",
            id=str(values),
            inputs=[Tensor("x", "FP32", data)],
            outputs=[],
            deadline=loop.time() + timeout_s,
            priority=priority,
            timeout_us=timeout_us,
        )
        response = await self.admission.infer(request)
        assert response.id == request.id
        np.testing.assert_array_equal(response.outputs[0].data, data * 2)
        return response

    async def state(self, wanted: ModelState, name: str = "m") -> None:
        """Return once the model is in this state."""
        while self.entry(name).state is not wanted:
            await self.entry(name).next_move()

    def assert_books_balance(self) -> None:
        """No permit, lease, waiting request or queue entry is left."""
        assert self.admission.inflight == 0, "a permit is left"
        for entry in self.registry.entries():
            assert entry.waiting == 0, f"{entry.key}: a request still waits"
            assert entry.in_flight == 0, f"{entry.key}: a lease is left"
            assert entry.scheduler is None or entry.scheduler.idle, f"{entry.key}: queue not empty"


@asynccontextmanager
async def house(
    *specs: ModelSpec,
    engine: FakeEngine | None = None,
    idle_timeout_s: float = 300.0,
    max_inflight: int = 1000,
    per_model: int = 1000,
    engine_timeout_s: float = math.inf,
    cache_bytes: int = 0,
    nodes: Sequence[Node] = (),
    predictive: bool = False,
) -> AsyncIterator[House]:
    """A gateway that serves `specs`; at the end its books must balance and no task be left."""
    built = House(
        engine or FakeEngine(),
        idle_timeout_s,
        max_inflight,
        per_model,
        engine_timeout_s,
        cache_bytes,
        nodes,
        predictive,
    )
    for one in specs or (spec(),):
        built.publish(one)
    running = asyncio.create_task(built.reconciler.run())
    try:
        yield built
        # a batch whose every client left may still run: its instance is free again afterwards
        await asyncio.sleep(60)
        built.assert_books_balance()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    await built.engine.close()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"
