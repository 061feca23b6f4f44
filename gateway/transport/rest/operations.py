"""Every path of the API but inference: which RPC it stands for, and how its JSON is spelled.

Pure. The routes and the OpenAPI document are made from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as pb

from gateway.errors import InvalidRequest, ModelNotFound, TidegateError
from gateway.transport.rest import rpc_json
from gateway.transport.rest.message_json import schema, to_json
from gateway.transport.rest.rpc_json import Path

Schema = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a response says: `holds` False becomes code 400, None as document an empty body."""

    document: Callable[[Any], Any]
    schema: Callable[[Schema], Schema] | None = None
    holds: Callable[[Any], bool] = lambda _response: True


@dataclass(frozen=True)
class Operation:
    """A method of HTTP and the paths that it is for; `body` is the schema of its JSON, if any."""

    method: str
    paths: tuple[str, ...]
    rpc: str
    summary: str
    message: Callable[[Path, Any], Any]
    answer: Answer
    body: Schema | None = None
    needs_body: bool = False

    def failure(self, error: TidegateError) -> TidegateError:
        """Return the error that the client is told of."""
        if self.rpc == "ModelReady" and isinstance(error, ModelNotFound):
            return InvalidRequest(NOT_READY)
        return error


NOT_READY = "Model version not ready"


def _of(descriptor: Any) -> Callable[[Schema], Schema]:
    return lambda components: schema(descriptor, components)


def _list_of(descriptor: Any) -> Callable[[Schema], Schema]:
    return lambda components: {"type": "array", "items": schema(descriptor, components)}


def _whole(response: type[Message]) -> Answer:
    return Answer(to_json, _of(response.DESCRIPTOR))


def _model(request: type[Message]) -> Callable[[Path, Any], Any]:
    """Return the maker of a request that names a model and its version."""
    return lambda path, _body: request(name=path["model"], version=path["version"])


def _region(request: type[Message]) -> Callable[[Path, Any], Any]:
    return lambda path, _body: request(name=path["region"])


def _object(needed: tuple[str, ...] = (), **properties: Schema) -> Schema:
    document: Schema = {"type": "object", "properties": properties}
    return {**document, "required": list(needed)} if needed else document


_STRING: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_SIZE: Schema = {"type": "integer", "minimum": 0}
_OPTIONAL_STRING: Schema = {"type": ["string", "null"]}
_STRINGS: Schema = {"type": ["array", "null"], "items": _STRING}
_TRACE = _object(
    trace_level=_STRINGS,
    trace_rate=_OPTIONAL_STRING,
    trace_count=_OPTIONAL_STRING,
    log_frequency=_OPTIONAL_STRING,
)
_LOG = _object(
    log_info=_BOOLEAN,
    log_warning=_BOOLEAN,
    log_error=_BOOLEAN,
    log_verbose_level=_SIZE,
    log_format=_STRING,
)

_NOTHING = Answer(lambda _response: None)
_MODEL = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_REPOSITORY = ("/v2/repository", "/v2/repository/{repository}")


def _each(prefixes: tuple[str, ...], end: str) -> tuple[str, ...]:
    return tuple(prefix + end for prefix in prefixes)


def _memory(kind: str, end: str) -> tuple[str, ...]:
    return (f"/v2/{kind}sharedmemory/{end}", f"/v2/{kind}sharedmemory/region/{{region}}/{end}")


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        ("/v2/health/live",),
        "ServerLive",
        "Whether the process runs",
        lambda _path, _body: pb.ServerLiveRequest(),
        Answer(lambda _response: None, holds=lambda response: response.live),
    ),
    Operation(
        "GET",
        ("/v2/health/ready",),
        "ServerReady",
        "Whether requests are taken",
        lambda _path, _body: pb.ServerReadyRequest(),
        Answer(lambda _response: None, holds=lambda response: response.ready),
    ),
    Operation(
        "GET",
        _each(_MODEL, "/ready"),
        "ModelReady",
        "Whether a request would be served; of a model that sleeps, too",
        _model(pb.ModelReadyRequest),
        Answer(
            lambda response: None if response.ready else {"error": NOT_READY},
            holds=lambda response: response.ready,
        ),
    ),
    Operation(
        "GET",
        ("/v2",),
        "ServerMetadata",
        "Name, version and protocol extensions",
        lambda _path, _body: pb.ServerMetadataRequest(),
        _whole(pb.ServerMetadataResponse),
    ),
    # before the models' own metadata: no model is called stats
    Operation(
        "GET",
        ("/v2/models/stats", *_each(_MODEL, "/stats")),
        "ModelStatistics",
        "What models have done since the gateway started",
        _model(pb.ModelStatisticsRequest),
        _whole(pb.ModelStatisticsResponse),
    ),
    Operation(
        "GET",
        _MODEL,
        "ModelMetadata",
        "A model's inputs and outputs",
        _model(pb.ModelMetadataRequest),
        _whole(pb.ModelMetadataResponse),
    ),
    Operation(
        "GET",
        _each(_MODEL, "/config"),
        "ModelConfig",
        "A model's completed configuration",
        _model(pb.ModelConfigRequest),
        Answer(
            lambda response: to_json(response.config),
            _of(model_config_pb2.ModelConfig.DESCRIPTOR),
        ),
    ),
    Operation(
        "POST",
        _each(_REPOSITORY, "/index"),
        "RepositoryIndex",
        "Every model version with its state",
        rpc_json.index_request,
        Answer(rpc_json.index, _list_of(pb.RepositoryIndexResponse.ModelIndex.DESCRIPTOR)),
        _object(ready=_BOOLEAN),
    ),
    Operation(
        "POST",
        _each(_REPOSITORY, "/models/{model}/load"),
        "RepositoryModelLoad",
        "Load a model now: `config` as text, `file:<version>/<name>` in base64",
        rpc_json.load_request,
        _NOTHING,
        _object(parameters={"type": "object", "additionalProperties": _STRING}),
    ),
    Operation(
        "POST",
        _each(_REPOSITORY, "/models/{model}/unload"),
        "RepositoryModelUnload",
        "Put a model to sleep now",
        rpc_json.unload_request,
        _NOTHING,
        _object(parameters=_object(unload_dependents=_BOOLEAN)),
    ),
    Operation(
        "GET",
        _memory("system", "status"),
        "SystemSharedMemoryStatus",
        "The registered regions of system shared memory",
        _region(pb.SystemSharedMemoryStatusRequest),
        Answer(
            rpc_json.regions, _list_of(pb.SystemSharedMemoryStatusResponse.RegionStatus.DESCRIPTOR)
        ),
    ),
    Operation(
        "POST",
        _memory("system", "register"),
        "SystemSharedMemoryRegister",
        "Register a region of system shared memory",
        rpc_json.system_registration,
        _NOTHING,
        _object(("key", "byte_size"), key=_STRING, offset=_SIZE, byte_size=_SIZE),
        needs_body=True,
    ),
    Operation(
        "POST",
        _memory("system", "unregister"),
        "SystemSharedMemoryUnregister",
        "Forget one region of system shared memory, or all",
        _region(pb.SystemSharedMemoryUnregisterRequest),
        _NOTHING,
    ),
    Operation(
        "GET",
        _memory("cuda", "status"),
        "CudaSharedMemoryStatus",
        "The registered regions of GPU memory",
        _region(pb.CudaSharedMemoryStatusRequest),
        Answer(
            rpc_json.regions, _list_of(pb.CudaSharedMemoryStatusResponse.RegionStatus.DESCRIPTOR)
        ),
    ),
    Operation(
        "POST",
        _memory("cuda", "register"),
        "CudaSharedMemoryRegister",
        "Register a region of GPU memory",
        rpc_json.cuda_registration,
        _NOTHING,
        _object(
            ("raw_handle", "byte_size", "device_id"),
            raw_handle=_object(("b64",), b64={**_STRING, "contentEncoding": "base64"}),
            byte_size=_SIZE,
            device_id=_SIZE,
        ),
        needs_body=True,
    ),
    Operation(
        "POST",
        _memory("cuda", "unregister"),
        "CudaSharedMemoryUnregister",
        "Forget one region of GPU memory, or all",
        _region(pb.CudaSharedMemoryUnregisterRequest),
        _NOTHING,
    ),
    *(
        Operation(
            method,
            ("/v2/trace/setting", "/v2/models/{model}/trace/setting"),
            "TraceSetting",
            summary,
            message,
            Answer(rpc_json.trace_settings, lambda _components: _TRACE),
            body,
            needs_body=method == "POST",
        )
        for method, summary, message, body in (
            ("GET", "What is traced", lambda path, _body: rpc_json.trace_request(path, {}), None),
            ("POST", "Change what is traced; null sets back", rpc_json.trace_request, _TRACE),
        )
    ),
    *(
        Operation(
            method,
            ("/v2/logging",),
            "LogSettings",
            summary,
            message,
            Answer(rpc_json.log_settings, lambda _components: _LOG),
            body,
            needs_body=method == "POST",
        )
        for method, summary, message, body in (
            ("GET", "What is logged", lambda path, _body: rpc_json.log_request(path, {}), None),
            ("POST", "Change what is logged", rpc_json.log_request, _LOG),
        )
    ),
)
