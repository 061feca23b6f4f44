"""A Triton server as an engine, over gRPC. What it says of its models and errors comes through."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from gateway.core import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelSpec,
    Override,
    Parameters,
    Tensor,
    request_label,
)
from gateway.engine import triton_messages as messages
from gateway.engine.base import Loaded
from gateway.errors import (
    EngineUnavailable,
    InferenceFailed,
    ModelLost,
    NotSupported,
    QueueFull,
    QueueTimeout,
    RepositoryError,
    RequestRefused,
    TidegateError,
)
from gateway.repository.model_spec import model_spec
from gateway.repository.reader import ModelListing

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0
CONTROL_TIMEOUT_S = 10.0  # questions and unloads; a load takes as long as it takes

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own values are 20 s for a try to connect and up to 2 minutes between two: a server
    # that is down is to be known as such now, one that is back is to be used within a second.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_SERVICE = "/inference.GRPCInferenceService/"
_UNLABELLED = request_label("")
# a request, and one whose sequence has not got a slot
_TIMED_OUT = ("Request timeout expired", "timeout of the corresponding sequence has been expired")
_NOT_EXPLICIT = "explicit model load / unload is not allowed"
_UNKNOWN_MODEL = "Request for unknown model"


@dataclass(slots=True)
class _Held:
    """What the gateway holds of one model. Triton loads and unloads all its versions at once.

    A version of `released` has been given back while others were held: Triton has it still, but
    perhaps not as its files are now.
    """

    versions: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    override: Override | None = None  # what Triton was last told to load instead of its own
    # keeps a model's loads and unloads from crossing each other
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class TritonEngine:
    """Runs models in the Triton server at `address` (host:port).

    Triton loads and unloads models by name, the gateway by version: the first version held loads
    the model, the last one to go unloads it. A server that does not let its models be controlled
    serves those that it has ready.

    It knows the models that the server finds in its own repository, too.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._models: defaultdict[str, _Held] = defaultdict(_Held)
        self._unsaid: set[str] = set()  # models whose unloads the server has not heard of
        self._given_up = False
        self._connect()

    def _connect(self) -> None:
        self._channel = grpc.aio.insecure_channel(self._address, options=_CHANNEL_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        # bytes out: the messages are put together here, without protobuf's copy of the contents
        self._infer: Any = self._channel.unary_unary(
            _SERVICE + "ModelInfer", response_deserializer=pb.ModelInferResponse.FromString
        )
        self._stream: Any = self._channel.stream_stream(
            _SERVICE + "ModelStreamInfer",
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )

    async def load(self, spec: ModelSpec, *, awaited: bool = False) -> Loaded:
        """Have Triton load the model; return the version as Triton's configuration describes it."""
        key = spec.key
        held = self._models[key.name]
        async with held.lock:
            # first, so that the `unload` that follows a cancelled load finds it
            held.versions.add(key.version)
            try:
                await self._make_ready(spec, held)
                loaded = await self._describe(key, spec)
            except Exception:  # whatever it is: nobody unloads what has failed to load
                await self._release(key, held)
                raise
        return Loaded(loaded, loaded.file_bytes)

    async def unload(self, key: ModelKey) -> None:
        """Give a version back; with the last one Triton unloads the model."""
        held = self._models[key.name]
        async with held.lock:
            if key.version in held.versions:
                await self._release(key, held)

    async def infer(
        self,
        key: ModelKey,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        parameters: Parameters = NO_PARAMETERS,
    ) -> list[Tensor]:
        """Send one batch as one request. Cancelling the caller cancels the request.

        Raises `ModelLost` where Triton has not the model any more, `EngineUnavailable` where it
        cannot be reached, `RequestRefused` where it finds fault with the request.
        """
        message = messages.batch(key, inputs, outputs, parameters)
        try:
            response = await self._infer(message)
        except grpc.aio.AioRpcError as error:
            raise self._inference_error(error) from None
        except asyncio.CancelledError as error:
            raise self._cancelled(error) from None
        by_name = {tensor.name: tensor for tensor in messages.tensors(key, response)}
        try:
            # Triton answers in its configuration's order
            return [by_name[name] for name in outputs]
        except KeyError as error:
            raise messages.nonsense(key, error) from None

    async def forward(self, key: ModelKey, request: InferRequest) -> InferResponse:
        """Send a request as it came. Raises and is cancelled like `infer`."""
        try:
            answer = await self._infer(messages.request(key, request))
        except grpc.aio.AioRpcError as error:
            raise self._inference_error(error) from None
        except asyncio.CancelledError as error:
            raise self._cancelled(error) from None
        return messages.response(key, request, answer)

    async def stream(
        self, key: ModelKey, request: InferRequest
    ) -> AsyncGenerator[InferResponse, None]:
        """Send a request as it came, and yield all its answers. Raises like `infer`.

        An error among the answers is raised at the end of them: a call that is cancelled at that
        point keeps tritonserver 2.51 from ever being idle again.
        """
        call = self._stream()
        failure: TidegateError | None = None
        try:
            await call.write(messages.request(key, request))
            await call.done_writing()
            async for each in call:
                if each.error_message:
                    failure = self._refusal(each.error_message)
                elif failure is None:
                    yield messages.response(key, request, each.infer_response)
        except grpc.aio.AioRpcError as error:
            raise self._inference_error(error) from None
        except asyncio.CancelledError as error:
            raise self._cancelled(error) from None
        finally:
            call.cancel()
        if failure is not None:
            raise failure

    async def connected(self) -> None:
        """Return once the server takes calls. Raises `EngineUnavailable` where it does not."""
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                await self._channel.channel_ready()
        except TimeoutError:
            raise self._down("no connection") from None

    async def answers(self) -> bool:
        """Return whether the server is ready, as it says itself, and soon."""
        try:
            ready = await self._stub.ServerReady(pb.ServerReadyRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(ready.ready)

    async def abandon(self) -> None:
        """Have all calls under way end in `EngineUnavailable`: the server does not answer."""
        self._given_up = True
        channel = self._channel
        self._connect()
        await channel.close()

    async def catch_up(self) -> None:
        """Tell a server that answers again what it has missed: unloads."""
        self._given_up = False
        for name in list(self._unsaid):
            held = self._models[name]
            async with held.lock:
                if name in self._unsaid and not held.versions:
                    await self._unload(name, held)

    def forget(self) -> None:
        """Take it that the server has nothing loaded: it has ended."""
        self._models.clear()
        self._unsaid.clear()
        self._given_up = False

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def names(self) -> list[str]:
        """Return the names of all models in Triton's repository."""
        return sorted({model.name for model in await self._index()})

    async def ready_names(self) -> list[str]:
        """Return the names of the models that Triton has ready now."""
        return sorted({model.name for model in await self._index() if model.state == "READY"})

    async def read(self, name: str, override: Override | None = None) -> ModelListing:
        """Return a model as Triton describes it; what keeps it from loading becomes `error`.

        Triton describes only what it has loaded: a model that is not ready is loaded for this, and
        unloaded again. One that the gateway holds is loaded anew where its files have changed.
        """
        held = self._models[name]
        async with held.lock:
            found = await self._ready_versions(name)
            try:
                if held.versions or not found or override != held.override:
                    log.info("loading %s in Triton, to have it described", name)
                    await self._load(name, held, override)
                specs = [
                    replace(await self._describe(ModelKey(name, version)), override=override)
                    for version in await self._ready_versions(name, override)
                ]
            except RepositoryError as error:
                return ModelListing(name, (), str(error))
            finally:
                if not held.versions and not found:
                    await self._unload(name, held)
        return ModelListing(name, tuple(specs))

    async def _make_ready(self, spec: ModelSpec, held: _Held) -> None:
        key = spec.key
        ready = await self._ready_versions(key.name, spec.override)
        as_wanted = key.version not in held.released and spec.override == held.override
        if key.version in ready and as_wanted:
            return
        held.released.clear()
        try:
            await self._load(key.name, held, spec.override)
        except RepositoryError:
            # Triton says so, too, where another version is at fault
            if key.version not in await self._ready_versions(key.name, spec.override):
                raise

    async def _release(self, key: ModelKey, held: _Held) -> None:
        held.versions.discard(key.version)
        held.released.add(key.version)
        if not held.versions:
            held.released.clear()
            await self._unload(key.name, held)

    async def _load(self, name: str, held: _Held, override: Override | None) -> None:
        """Load a model by name. Of one that is loaded, Triton loads anew what has changed."""
        if override is None and held.override is not None:
            # or Triton would keep to it while the model's own files are what they were
            await self._unload(name, held)
        request = await asyncio.to_thread(messages.load, name, override)
        try:
            await self._ask(self._stub.RepositoryModelLoad, request, timeout_s=None)
            held.override = override
        except _NotControlled:
            if not await self._ready_versions(name):
                raise RepositoryError(
                    f"Triton at {self._address} has not '{name}' ready and loads no models on "
                    "request: start it with --model-control-mode=explicit"
                ) from None

    async def _unload(self, name: str, held: _Held) -> None:
        """Unload a model by name. A server that is gone has forgotten it by itself.

        With an ensemble go those of its members that nobody has asked for by name.
        """
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        request.parameters["unload_dependents"].bool_param = True
        held.override = None
        if self._given_up:  # who waits for the model to leave would wait in vain
            self._unsaid.add(name)
            return
        self._unsaid.discard(name)
        try:
            await self._ask(self._stub.RepositoryModelUnload, request)
        except _NotControlled:
            pass
        except EngineUnavailable as error:
            self._unsaid.add(name)
            log.warning("cannot unload %s: %s", name, error)
        except TidegateError as error:
            log.warning("cannot unload %s: %s", name, error)

    async def _describe(self, key: ModelKey, spec: ModelSpec | None = None) -> ModelSpec:
        """Return a ready version by Triton's own completed configuration; its files as in `spec`.

        Raises `RepositoryError` where the version is not ready.
        """
        request = pb.ModelConfigRequest(name=key.name, version=str(key.version))
        config = (await self._ask(self._stub.ModelConfig, request)).config
        if spec is None:
            return model_spec(config, key.version, Path(key.name, str(key.version)))
        described = model_spec(config, key.version, spec.path, spec.file_bytes, spec.modified_ns)
        return replace(described, override=spec.override, labels=spec.labels)

    async def _index(self) -> Sequence[pb.RepositoryIndexResponse.ModelIndex]:
        index = await self._ask(self._stub.RepositoryIndex, pb.RepositoryIndexRequest())
        return list(index.models)

    async def _ready_versions(self, name: str, override: Override | None = None) -> list[int]:
        if override is None or override.folder is None:
            index = await self._index()
            return sorted(int(m.version) for m in index if m.name == name and m.state == "READY")
        # the index knows nothing of a model that is not in Triton's repository
        folders = [each.name for each in override.folder.iterdir() if each.name.isdecimal()]
        asked = [pb.ModelReadyRequest(name=name, version=number) for number in folders]
        answers = [await self._ask(self._stub.ModelReady, each) for each in asked]
        ready = [int(each.version) for each, said in zip(asked, answers, strict=True) if said.ready]
        return sorted(ready)

    async def _ask(
        self, method: Any, request: Message, timeout_s: float | None = CONTROL_TIMEOUT_S
    ) -> Any:
        """Call one of Triton's RPCs about models. Raises `RepositoryError` with Triton's text."""
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            if text.startswith(_NOT_EXPLICIT):
                raise _NotControlled(text) from None
            if self._is_down(error):
                raise self._down(text) from None
            raise RepositoryError(text.strip()) from None
        except asyncio.CancelledError as error:
            raise self._cancelled(error) from None

    def _refusal(self, text: str) -> TidegateError:
        """Return what an error message in a stream says: it carries no status."""
        text = text.removeprefix(_UNLABELLED)
        return ModelLost(text) if text.startswith(_UNKNOWN_MODEL) else InferenceFailed(text)

    def _inference_error(self, error: grpc.aio.AioRpcError) -> TidegateError:
        text = (error.details() or "").removeprefix(_UNLABELLED)
        if text.startswith(_UNKNOWN_MODEL):
            return ModelLost(text)
        if text == "Exceeds maximum queue size":
            return QueueFull(text)
        if text in _TIMED_OUT:
            return QueueTimeout(text)
        if self._is_down(error):
            return self._down(text)
        match error.code():
            case grpc.StatusCode.INVALID_ARGUMENT:
                return RequestRefused(text)
            case grpc.StatusCode.UNIMPLEMENTED:
                return NotSupported(text)
        return InferenceFailed(text)

    def _cancelled(self, error: asyncio.CancelledError) -> BaseException:
        """Return why a call was cancelled: by its caller, or because the server is given up."""
        task = asyncio.current_task()
        if task is None or task.cancelling():
            return error
        return self._down("it was given up while calls were under way")

    def _is_down(self, error: grpc.aio.AioRpcError) -> bool:
        return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    def _down(self, text: str) -> EngineUnavailable:
        return EngineUnavailable(f"the Triton server at {self._address} does not answer: {text}")


class _NotControlled(Exception):
    """The server was not started with --model-control-mode=explicit."""
