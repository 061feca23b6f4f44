"""ModelInfer and ModelStreamInfer: decode, ask, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType

from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import InferRequest, InferResponse, Stage
from gateway.errors import TidegateError
from gateway.registry import Registry
from gateway.transport import codec
from gateway.transport.calls import Calls
from gateway.transport.delivery import Delivery, Placed
from gateway.transport.parameters import EMPTY_FINAL_RESPONSE, FINAL_RESPONSE, flag

_NOTHING_PLACED: Placed = MappingProxyType({})
_INFER_RESPONSE = (  # the number of the field and its wire type, 2 for messages
    pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number << 3 | 2
)
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Inference:
    """Runs the requests of messages; `request_timeout_s` is the deadline of those without one."""

    def __init__(
        self, stage: Stage, registry: Registry, calls: Calls, request_timeout_s: float
    ) -> None:
        self._stage = stage
        self._registry = registry
        self._calls = calls
        self._request_timeout_s = request_timeout_s
        self._loop = asyncio.get_running_loop()

    def deadline(self, remaining_s: float | None = None) -> float:
        """Return when a request is due, on the loop's clock; None is one that set no deadline."""
        if remaining_s is None:
            remaining_s = self._request_timeout_s
        return self._loop.time() + remaining_s

    async def infer(self, message: pb.ModelInferRequest, remaining_s: float | None) -> bytes:
        """Return the serialized ModelInferResponse."""
        request = codec.decode(message, self.deadline(remaining_s))
        response, _placed = await self.run(request)
        return codec.encode(response)

    async def stream(
        self, message: pb.ModelInferRequest, errors_end_it: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """Yield the serialized ModelStreamInferResponses to one request of a stream.

        Each says whether it is the last one. An error is an answer, too, unless `errors_end_it`.
        A decoupled model's answers end with an empty one where the client wants that. A request has
        the whole `request_timeout_s`: a stream's deadline is none of its requests'.
        """
        decoupled = self.decoupled(message)
        last_owed = decoupled
        try:
            request = codec.decode(message, self.deadline())
            with self._calls:
                async with aclosing(self._stage.stream(request)) as answers:
                    async for answer in answers:
                        last = bool(answer.parameters.get(FINAL_RESPONSE, not decoupled))
                        last_owed = not last
                        own = {**answer.parameters, FINAL_RESPONSE: last}
                        yield _streamed(codec.encode(answer._replace(parameters=own)))
        except TidegateError as error:
            if errors_end_it:
                raise
            failed = pb.ModelStreamInferResponse(error_message=str(error))
            failed.infer_response.id = message.id
            yield failed.SerializeToString()
        if last_owed and flag(message.parameters, EMPTY_FINAL_RESPONSE):
            empty = pb.ModelInferResponse(model_name=message.model_name, id=message.id)
            empty.parameters[FINAL_RESPONSE].bool_param = True
            yield _streamed(empty.SerializeToString())

    async def run(
        self,
        request: InferRequest,
        deliveries: Sequence[Delivery] = (),
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> tuple[InferResponse, Placed]:
        """Return the answer, its outputs as `deliveries` have them, and which are placed where.

        `headers` are the call's metadata (lower case), which may carry a trace's context.
        """
        return await self._stage.infer(request), _NOTHING_PLACED

    def decoupled(self, message: pb.ModelInferRequest) -> bool:
        """Whether the model answers a request as often as it likes, in its own time."""
        try:
            return self._registry.find(message.model_name, message.model_version).spec.decoupled
        except TidegateError:
            return False  # its answer is an error, and as such has its place in line


def _streamed(response: bytes) -> bytes:
    return b"".join(wire.field(_INFER_RESPONSE, response))
