"""The nouns of the gateway: tensors, requests, answers, models. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gateway.ensemble import EnsembleStep
from gateway.placement import NO_PLACEMENT, EngineKind, Placement
from gateway.ragged import RaggedBatching
from gateway.sequence import SequenceBatching, SequenceMark

Array = npt.NDArray[Any]
ParameterValue = bool | int | float | str
Parameters = Mapping[str, ParameterValue]
NO_PARAMETERS: Parameters = MappingProxyType({})

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    # NumPy has no bfloat16: a BF16 array holds the 16 bits of each element.
    "BF16": np.dtype(np.uint16),
    # A BYTES array holds `bytes` objects.
    "BYTES": np.dtype(np.object_),
}
"""KServe v2 datatype -> the NumPy dtype that carries it inside the gateway."""


class ModelKey(NamedTuple):
    """Names one version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


class ModelState(StrEnum):
    """Where a model version stands, in Triton's words."""

    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


LEGAL_MOVES: Mapping[ModelState, frozenset[ModelState]] = {
    ModelState.UNKNOWN: frozenset({ModelState.LOADING}),
    ModelState.LOADING: frozenset({ModelState.READY, ModelState.UNAVAILABLE}),
    ModelState.READY: frozenset({ModelState.UNLOADING}),
    ModelState.UNLOADING: frozenset({ModelState.UNAVAILABLE}),
    ModelState.UNAVAILABLE: frozenset({ModelState.LOADING}),
}


class Tensor(NamedTuple):  # a tuple: a frozen dataclass takes three times as long to make
    """A named array, row-major, with its KServe datatype; its dtype is DTYPES[datatype]."""

    name: str
    datatype: str
    data: Array


def request_label(request_id: str) -> str:
    """Return what Triton puts before an error's text; `request_id` is "" where there is none."""
    return f"[request id: {request_id or '<id_unknown>'}] "


class Trace(Protocol):
    """Where the stages of one request say what they spent its time on."""

    def span(self, name: str, started: float, ended: float, **attributes: ParameterValue) -> None:
        """Add a span; both times in seconds of the event loop's clock."""
        ...


@dataclass(slots=True)
class InferRequest:
    """One client's question.

    `version` is as the client wrote it ("" lets the gateway choose). `deadline` is absolute, in
    seconds of the event loop's clock. `outputs` are the names asked for, in order; empty asks for
    all. `priority` 0 means the model's default level; `timeout_us` 0 means the queue's own.
    `parameters` are those that mean nothing to the gateway: a Triton server's model gets them.
    `trace` is there for the few requests that are traced.
    """

    model: str
    version: str
    id: str
    inputs: list[Tensor]
    outputs: list[str]
    deadline: float
    priority: int = 0
    timeout_us: int = 0
    sequence: SequenceMark | None = None
    parameters: Parameters = field(default_factory=lambda: NO_PARAMETERS)
    trace: Trace | None = None

    @property
    def label(self) -> str:
        """What Triton puts before the text of this request's errors."""
        return request_label(self.id)


class InferResponse(NamedTuple):
    """One client's answer, outputs in the order asked for (or the model's)."""

    model: str
    version: int
    id: str
    outputs: list[Tensor]
    parameters: Parameters = NO_PARAMETERS


class Stage(Protocol):
    """A stage of the request path. It knows the next stage and no other."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the one answer, or raise a `TidegateError`."""
        ...

    def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the answers of a decoupled model, none to many; of any other its one answer."""
        ...


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model takes or gives. `dims` exclude the batch dimension; -1 is any size.

    Where `reshape` is given the model itself sees those dims, and clients `dims`. Of a `ragged`
    input it sees one dimension: the elements of all requests of a batch.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: tuple[int, ...] | None = None
    ragged: bool = False

    @property
    def model_dims(self) -> tuple[int, ...]:
        """The dims inside the model, without the batch dimension."""
        if self.ragged:
            return ()
        return self.dims if self.reshape is None else self.reshape


class TimeoutAction(StrEnum):
    """What becomes of a request whose queue timeout has passed."""

    REJECT = "REJECT"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Triton's ModelQueuePolicy for one priority level. 0 means: no timeout, no bound."""

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_s: float = 0.0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


@dataclass(frozen=True, slots=True)
class BatchTime:
    """How long a batch of so many rows takes, as the exporter measured it."""

    rows: int
    median_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How requests become batches: Triton's ModelDynamicBatching.

    `max_batch_size` counts elements (rows), at least 1. `preferred` is ascending and never empty.
    Without dynamic batching every request is a batch of its own (`dynamic` is False). `slo_s` > 0
    is a latency objective (`tidegate.slo_ms`): earliest deadline first, no larger batches than it
    allows. `pad_to` are the sizes, ascending, to which variable dims are padded (`tidegate.pad`).
    `expected` is how long batches take before any was measured, by rows, ascending.
    """

    max_batch_size: int = 1
    dynamic: bool = False
    preferred: tuple[int, ...] = (1,)
    max_delay_s: float = 0.0
    preserve_ordering: bool = False
    slo_s: float = 0.0
    pad_to: tuple[int, ...] = ()
    priority_levels: int = 0
    default_level: int = 0
    default_queue: QueuePolicy = QueuePolicy()
    level_queues: Mapping[int, QueuePolicy] = field(default_factory=dict)
    expected: tuple[BatchTime, ...] = ()

    def level(self, priority: int) -> int:
        """Return the level that serves `priority`: 0 or one above the levels is the default."""
        return priority if 0 < priority <= self.priority_levels else self.default_level

    def queue(self, level: int) -> QueuePolicy:
        """Return the queue policy of a level."""
        return self.level_queues.get(level, self.default_queue)


class DeviceKind(StrEnum):
    """Where a model is to run. AUTO is the GPU where there is one."""

    AUTO = "AUTO"
    CPU = "CPU"
    GPU = "GPU"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU execution accelerator (`tensorrt`, `cuda`) with its parameters, in Triton's words."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


class WarmUpData(StrEnum):
    """What a warm-up input holds."""

    ZEROS = "ZEROS"
    RANDOM = "RANDOM"
    FILE = "FILE"


@dataclass(frozen=True, slots=True)
class WarmUpInput:
    """One input of a warm-up request; `dims` exclude the batch dimension.

    `file` is relative to the folder `warmup` of the model.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    data: WarmUpData = WarmUpData.ZEROS
    file: str = ""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """A request that a model runs `count` times before it is ready: Triton's ModelWarmup."""

    name: str
    batch_size: int
    inputs: tuple[WarmUpInput, ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What a configuration asks of the runtime that opens the model in this process.

    `gpus` are device numbers; empty means the first. `graph_level` and `parameters` are those of
    Triton's ONNX Runtime backend.
    """

    device: DeviceKind = DeviceKind.AUTO
    gpus: tuple[int, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()
    graph_level: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
    warm_up: tuple[WarmUp, ...] = ()


@dataclass(frozen=True, slots=True)
class Override:
    """What a client had a model loaded with, in place of what its repository says.

    `config` is a ModelConfig as JSON. `folder` has the files, version folders and all, of which the
    model then consists; None: those of the repository.
    """

    config: str
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One servable model version, as its repository describes it.

    `path` is the version's folder, `config` the completed `inference.ModelConfig`, serialized: the
    transport alone reads it. `max_batch_size` 0 means that the model has no batch dimension.
    `modified_ns` is the newest change of the version's files, so that two readings of an
    unchanged version are equal. `utf8_only`: what runs it takes no BYTES but UTF-8. `steps` make
    it an ensemble. `forwarded`: its requests go to the engine one by one, which schedules them.
    `parametric`: what runs it looks at the parameters of requests.
    `cached`: equal requests may be answered from the response cache. `own_inputs` and
    `own_outputs` are between the gateway and the model, and no client's: controls, states.
    `metric_tags` are labels of its metrics.
    `labels` are the names of an output's classes, by the output's name. `kind` is the kind of
    engine that runs it; an ensemble's steps the gateway runs unless it is `forwarded`.
    """

    key: ModelKey
    path: Path
    model_file: str
    platform: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batching: BatchPolicy
    instances: int
    file_bytes: int
    modified_ns: int
    config: bytes
    utf8_only: bool = False
    runtime: RuntimeOptions = RuntimeOptions()
    sequence: SequenceBatching | None = None
    steps: tuple[EnsembleStep, ...] = ()
    decoupled: bool = False
    forwarded: bool = False
    parametric: bool = False
    cached: bool = False
    ragged: RaggedBatching | None = None
    own_inputs: tuple[TensorSpec, ...] = ()
    own_outputs: tuple[TensorSpec, ...] = ()
    override: Override | None = None
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)
    kind: EngineKind = EngineKind.EMBEDDED
    placement: Placement = NO_PLACEMENT

    @property
    def inside(self) -> ModelSpec:
        """The version as the model itself has it: its own inputs and outputs among the others."""
        if not self.own_inputs and not self.own_outputs:
            return self
        return replace(
            self,
            inputs=self.inputs + self.own_inputs,
            outputs=self.outputs + self.own_outputs,
            own_inputs=(),
            own_outputs=(),
        )
