"""The grpc.aio server: the whole service, health and reflection, and its drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2

from gateway.errors import (
    InvalidRequest,
    StartError,
    TidegateError,
)
from gateway.transport import stream
from gateway.transport.calls import Calls
from gateway.transport.inference import Inference
from gateway.transport.status import STATUS

log = logging.getLogger(__name__)

INFERENCE_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

LAME_DUCK_S = 0.25  # how long new calls are still refused properly after the last answer
# A status travels in a header, where a byte may take three: above 8 KB gRPC's own client drops it.
MAX_STATUS_BYTES = 2000

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Rpc = Callable[[Any], Awaitable[Message]]
_ERRORS_END_STREAMS = ("triton_grpc_error", "true")  # metadata of a stream's call


def rpcs_of(*servicers: object) -> dict[str, Rpc]:
    """Return the methods that carry the names of the protocol's RPCs."""
    names = [method.name for method in INFERENCE_SERVICE.methods]
    return {
        name: getattr(servicer, name)
        for servicer in servicers
        for name in names
        if hasattr(servicer, name)
    }


class GrpcServer:
    """Serves KServe v2 on one port."""

    def __init__(
        self, inference: Inference, rpcs: Mapping[str, Rpc], calls: Calls, max_message_bytes: int
    ) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # Without this a second gateway would share the port and half of its requests.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._calls = calls
        self._server.add_generic_rpc_handlers((_inference_handler(inference, rpcs, self._calls),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (INFERENCE_SERVICE.full_name, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server
        )

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port. Raises `StartError` where it cannot be had."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError:
            await self._server.stop(None)  # or its destructor complains of the closed loop
            raise StartError(
                f"cannot listen on {address} (gRPC): the port is in use, or not ours to take"
            ) from None
        await self._server.start()
        await self._health.set(INFERENCE_SERVICE.full_name, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def drain(self, timeout_s: float) -> None:
        """Say NOT_SERVING, refuse new calls, and return once those in flight are answered.

        New calls get UNAVAILABLE, which clients send elsewhere; also for a moment after the last
        answer, for those who have it from the wire only now. Closing at once would have gRPC tell
        them CANCELLED. What is left after `timeout_s` seconds is cancelled, health watches always.
        """
        await self._health.enter_graceful_shutdown()
        self._calls.closed = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._calls.finished()
                await asyncio.sleep(LAME_DUCK_S)
        except TimeoutError:
            if self._calls.count:
                log.warning("%d calls were not answered in the drain's time", self._calls.count)
        await self._server.stop(None)


def _inference_handler(
    inference: Inference, rpcs: Mapping[str, Rpc], calls: Calls
) -> grpc.GenericRpcHandler:
    """Register every RPC that the protocol has, so that none is unknown.

    Messages are parsed here and not by gRPC, which would call a malformed one INTERNAL.
    """

    def model_infer(message: service_pb2.ModelInferRequest, context: Context) -> Awaitable[bytes]:
        if inference.tracing is None:  # metadata costs: gRPC makes it when asked
            return inference.infer(message, context.time_remaining())
        return inference.infer(message, context.time_remaining(), _headers(context))

    def without_context(rpc: Rpc) -> _Call:
        async def call(message: Message, _context: Context) -> bytes:
            return (await rpc(message)).SerializeToString()

        return call

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in INFERENCE_SERVICE.methods:
        if method.client_streaming:
            handler = _streamed(method, inference)
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(handler)
        else:
            infers = method.name == "ModelInfer"
            call = model_infer if infers else without_context(rpcs[method.name])
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(_unary(method, call, calls))
    return grpc.method_handlers_generic_handler(INFERENCE_SERVICE.full_name, handlers)


_Call = Callable[[Any, Context], Awaitable[bytes]]


def _unary(
    method: MethodDescriptor, call: _Call, calls: Calls
) -> Callable[[bytes, Context], Awaitable[bytes]]:
    """Wrap an RPC: bytes in, bytes out, errors to statuses."""
    parse = _parser(method)

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            with calls:
                return await call(parse(data), context)
        except Exception as error:
            await _abort(method, context, error)
        return b""

    return handle


def _streamed(
    method: MethodDescriptor, inference: Inference
) -> Callable[[Any, Context], Awaitable[None]]:
    """Wrap the streaming RPC."""
    parse = _parser(method)

    async def handle(_messages: Any, context: Context) -> None:
        async def read() -> service_pb2.ModelInferRequest | None:
            data = await context.read()
            return None if data is grpc.aio.EOF else parse(data)

        errors_end_it = _ERRORS_END_STREAMS in (context.invocation_metadata() or ())
        try:
            headers = _headers(context)
            answer = partial(inference.stream, errors_end_it=errors_end_it, headers=headers)
            await stream.serve(read, context.write, answer, inference.decoupled)
        except Exception as error:
            await _abort(method, context, error)

    return handle


def _headers(context: Context) -> dict[str, str]:
    metadata = context.invocation_metadata() or ()
    return {key: value for key, value in metadata if isinstance(value, str)}


def _parser(method: MethodDescriptor) -> Callable[[bytes], Any]:
    request_type = GetMessageClass(method.input_type)

    def parse(data: bytes) -> Message:
        try:
            return request_type.FromString(data)
        except DecodeError:
            raise InvalidRequest(
                f"{method.name}: the message is no {method.input_type.full_name}"
            ) from None

    return parse


async def _abort(method: MethodDescriptor, context: Context, error: Exception) -> None:
    """End a call with the status that an error stands for."""
    if isinstance(error, TidegateError):
        code, text = STATUS[type(error)], str(error)
    else:
        log.error("%s failed: this is a bug", method.name, exc_info=error)
        code = grpc.StatusCode.INTERNAL
        text = f"{method.name}: {type(error).__name__}: {error}"
    short = text.encode(errors="replace")[:MAX_STATUS_BYTES].decode(errors="ignore")
    try:
        await context.abort(code, short)
    except grpc.aio.InternalError:
        log.debug("%s: the caller left before it could be told: %s", method.name, text)
