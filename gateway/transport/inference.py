"""ModelInfer and ModelStreamInfer: decode, ask, encode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING

from tritonclient.grpc import service_pb2 as pb

from gateway import wire
from gateway.core import InferRequest, InferResponse, ModelKey, Stage, Tensor
from gateway.errors import InferenceFailed, TidegateError
from gateway.registry import Registry
from gateway.transport import codec
from gateway.transport.calls import Calls
from gateway.transport.classification import classify
from gateway.transport.delivery import NOTHING_PLACED, Delivery, Placed, Regions, asked_for
from gateway.transport.parameters import EMPTY_FINAL_RESPONSE, FINAL_RESPONSE, flag

_INFER_RESPONSE = (  # the number of the field and its wire type, 2 for messages
    pb.ModelStreamInferResponse.DESCRIPTOR.fields_by_name["infer_response"].number << 3 | 2
)
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_UNTRACED: AbstractContextManager[None] = nullcontext()

if TYPE_CHECKING:  # it comes with an extra, and is imported where it is used
    from gateway.tracing import Tracing


class Inference:
    """Runs the requests of messages; `request_timeout_s` is the deadline of those without one.

    Their inputs and outputs may lie in `regions`.
    """

    def __init__(
        self,
        stage: Stage,
        registry: Registry,
        calls: Calls,
        request_timeout_s: float,
        regions: Regions,
        tracing: Tracing | None = None,
    ) -> None:
        self.regions = regions
        self.tracing = tracing
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

    async def infer(
        self,
        message: pb.ModelInferRequest,
        remaining_s: float | None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> bytes:
        """Return the serialized ModelInferResponse."""
        request = codec.decode(message, self.deadline(remaining_s), self.regions)
        if self.tracing is None and not message.outputs:
            # nothing to trace and to deliver, as most: `run` would be 2 % of a small request
            return codec.encode(await self._stage.infer(request))
        deliveries = asked_for(message.outputs) if message.outputs else ()
        return codec.encode(*await self.run(request, deliveries, headers, "grpc"))

    async def stream(
        self,
        message: pb.ModelInferRequest,
        errors_end_it: bool = False,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the serialized ModelStreamInferResponses to one request of a stream.

        Each says whether it is the last one. An error is an answer, too, unless `errors_end_it`.
        A decoupled model's answers end with an empty one where the client wants that. A request has
        the whole `request_timeout_s`: a stream's deadline is none of its requests'.
        """
        decoupled = self.decoupled(message)
        last_owed = False
        try:
            last_owed = decoupled and flag(message.parameters, EMPTY_FINAL_RESPONSE)
            request = codec.decode(message, self.deadline(), self.regions)
            deliveries = asked_for(message.outputs) if message.outputs else ()
            self._check(deliveries)
            with self._calls, self._traced(request, headers, "grpc"):
                async with aclosing(self._stage.stream(request)) as answers:
                    async for answer in answers:
                        last = bool(answer.parameters.get(FINAL_RESPONSE, not decoupled))
                        last_owed = last_owed and not last
                        own = {**answer.parameters, FINAL_RESPONSE: last}
                        answer, placed = self._deliver(answer._replace(parameters=own), deliveries)
                        yield _streamed(codec.encode(answer, placed))
        except TidegateError as error:
            if errors_end_it:
                raise
            failed = pb.ModelStreamInferResponse(error_message=str(error))
            failed.infer_response.id = message.id
            yield failed.SerializeToString()
        if last_owed:
            empty = pb.ModelInferResponse(model_name=message.model_name, id=message.id)
            empty.parameters[FINAL_RESPONSE].bool_param = True
            yield _streamed(empty.SerializeToString())

    async def run(
        self,
        request: InferRequest,
        deliveries: Sequence[Delivery] = (),
        headers: Mapping[str, str] = _NO_HEADERS,
        system: str = "http",
    ) -> tuple[InferResponse, Placed]:
        """Return the answer, its outputs as `deliveries` have them, and which lie in regions.

        `headers` are the call's metadata (lower case), which may carry a trace's context;
        `system` is how it came.
        """
        with self._traced(request, headers, system):
            if not deliveries:
                return await self._stage.infer(request), NOTHING_PLACED
            self._check(deliveries)
            return self._deliver(await self._stage.infer(request), deliveries)

    def _traced(
        self, request: InferRequest, headers: Mapping[str, str], system: str
    ) -> AbstractContextManager[None]:
        if self.tracing is None:
            return _UNTRACED
        return self.tracing.traced(request, headers, system)

    def _check(self, deliveries: Sequence[Delivery]) -> None:
        """Raise for what cannot be delivered, before it is computed."""
        for wish in deliveries:
            if wish.region:
                self.regions.check(wish.region, wish.offset, wish.size)

    def _deliver(
        self, response: InferResponse, deliveries: Sequence[Delivery]
    ) -> tuple[InferResponse, Placed]:
        """Return the answer with its outputs classified, and which of them are put into regions."""
        if not deliveries:
            return response, NOTHING_PLACED
        wishes = {wish.name: wish for wish in deliveries}
        outputs = list(response.outputs)
        placed = set()
        for index, tensor in enumerate(outputs):
            wish = wishes.get(tensor.name)
            if wish is None:
                continue
            if wish.classes:
                outputs[index] = self._classified(response, tensor, wish.classes)
            else:
                self._place(tensor, wish)
                placed.add(tensor.name)
        return response._replace(outputs=outputs), placed

    def _classified(self, response: InferResponse, tensor: Tensor, classes: int) -> Tensor:
        # the entry itself: a newer version may have taken its place since the request came
        spec = self._registry.entry(ModelKey(response.model, response.version)).spec
        labels = spec.labels.get(tensor.name, ())
        return classify(tensor, classes, spec.max_batch_size > 0, labels)

    def _place(self, tensor: Tensor, wish: Delivery) -> None:
        content = wire.contents(tensor)
        if len(content) > wish.size:
            raise InferenceFailed(
                f"shared memory size specified with the request for output '{tensor.name}' "
                f"({wish.size} bytes) should be at least {len(content)} bytes to hold the results"
            )
        self.regions.write(wish.region, wish.offset, content)

    def decoupled(self, message: pb.ModelInferRequest) -> bool:
        """Whether the model answers a request as often as it likes, in its own time."""
        try:
            return self._registry.find(message.model_name, message.model_version).spec.decoupled
        except TidegateError:
            return False  # its answer is an error, and as such has its place in line


def _streamed(response: bytes) -> bytes:
    return b"".join(wire.field(_INFER_RESPONSE, response))
