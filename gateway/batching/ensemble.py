"""Leads the requests of an ensemble through its steps; each step is a request to its member."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import replace

from gateway.batching import tensors
from gateway.core import Array, InferRequest, InferResponse, ModelSpec, Stage, Tensor, TensorSpec
from gateway.ensemble import needed
from gateway.errors import DeadlineExceeded, ModelLost, ModelUnavailable, TidegateError
from gateway.metrics import ModelStats


class EnsembleScheduler:
    """Serves an ensemble. `members` answers its steps, which are batched there, each for itself.

    A step starts as soon as its inputs are there; one on which no wanted output depends never
    does. Where a step fails, or the caller is cancelled, the request's other steps are cancelled.
    """

    def __init__(self, spec: ModelSpec, members: Stage, stats: ModelStats) -> None:
        self._spec = spec
        self._members = members
        self._stats = stats
        self._slots = {
            index: asyncio.Semaphore(step.max_inflight)
            for index, step in enumerate(spec.steps)
            if step.max_inflight
        }
        self._running = 0
        self._one_less = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        """Whether no request is on its way."""
        return not self._running

    @property
    def running(self) -> int:
        """Requests on their way through the steps."""
        return self._running

    @property
    def queued(self) -> int:
        """None: what waits, waits in front of the members."""
        return 0

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return what the steps make of a request.

        A member's error is raised as it is, with the ensemble's name before its text.
        """
        started = self._loop.time()
        flow = _Flow(self._spec, request)
        self._running += 1
        try:
            async with asyncio.TaskGroup() as group:
                await self._advance(flow.startable(), flow, group)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._running -= 1
            self._one_less.set()
        rows = tensors.rows_of(request, self._spec)
        self._stats.executed(rows, [0.0], self._loop.time() - started)
        return flow.answer()

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the one answer."""
        yield await self.infer(request)

    def resize(self, copies: int) -> None:
        """Do nothing: the members are what there may be several of."""

    async def drained(self) -> None:
        """Return when no request is on its way."""
        while not self.idle:
            self._one_less.clear()
            await self._one_less.wait()

    def close(self) -> None:
        """Raise AssertionError where requests are left."""
        assert self.idle, f"ensemble {self._spec.key} closed with requests left: this is a bug"

    async def _advance(self, steps: list[int], flow: _Flow, group: asyncio.TaskGroup) -> None:
        """Run steps, all at once, and whatever they make startable."""
        while steps:
            # the first of them in this task: a chain of steps needs no other
            index, *others = steps
            for other in others:
                group.create_task(self._advance([other], flow, group))
            answer = await self._ask(index, flow)
            steps = flow.done(index, answer)

    async def _ask(self, index: int, flow: _Flow) -> InferResponse:
        slots = self._slots.get(index)
        try:
            if slots is not None:
                await _acquired(slots, flow.request.deadline)
            try:
                return await self._members.infer(flow.question(index))
            finally:
                if slots is not None:
                    slots.release()
        except TidegateError as error:
            # the router has had a lost member loaded anew already
            kind = ModelUnavailable if isinstance(error, ModelLost) else type(error)
            raise kind(f"in ensemble '{self._spec.key.name}', {error}") from error


async def _acquired(slots: asyncio.Semaphore, deadline: float) -> None:
    try:
        async with asyncio.timeout_at(deadline):
            await slots.acquire()
    except TimeoutError:
        raise DeadlineExceeded("the request's deadline has passed") from None


class _Flow:
    """One request's tensors, from the first that it brought to the last that it asked for."""

    def __init__(self, ensemble: ModelSpec, request: InferRequest) -> None:
        self.request = request
        self._ensemble = ensemble
        self._batched = ensemble.max_batch_size > 0
        steps = ensemble.steps
        self._wanted = request.outputs or [output.name for output in ensemble.outputs]
        indices = needed(steps, self._wanted)
        # how many will still read each tensor; one that nobody will is let go
        self._readers = Counter(self._wanted)
        for index in indices:
            self._readers.update(steps[index].inputs.values())
        computed = {tensor for index in indices for tensor in steps[index].outputs.values()}
        self._lacking = {
            index: {tensor for tensor in steps[index].inputs.values() if tensor in computed}
            for index in indices
        }
        specs = {each.name: each for each in ensemble.inputs}
        self._tensors = {
            tensor.name: self._shaped(tensor, specs[tensor.name].model_dims)
            if specs[tensor.name].reshape is not None
            else tensor
            for tensor in request.inputs
        }

    def startable(self) -> list[int]:
        """Return the steps whose inputs are all there, each of them once."""
        found = [index for index, lacking in self._lacking.items() if not lacking]
        for index in found:
            del self._lacking[index]
        return found

    def question(self, index: int) -> InferRequest:
        """Return the request to a step's member.

        An optional input that the ensemble's request has not brought is not in it.
        """
        step = self._ensemble.steps[index]
        inputs = []
        for name, tensor in step.inputs.items():
            there = self._tensors.get(tensor)
            if there is not None:
                data = _ranked(there.data, step.ranks.get(name, there.data.ndim))
                inputs.append(Tensor(name, there.datatype, data))
        for tensor in step.inputs.values():
            self._read(tensor)
        return replace(
            self.request,
            model=step.model,
            version=str(step.version or ""),
            inputs=inputs,
            outputs=self._asked(index),
        )

    def done(self, index: int, answer: InferResponse) -> list[int]:
        """Take a step's outputs; return the steps that can start now."""
        outputs = self._ensemble.steps[index].outputs
        for tensor in answer.outputs:
            self._tensors[outputs[tensor.name]] = tensor
            for lacking in self._lacking.values():
                lacking.discard(outputs[tensor.name])
        return self.startable()

    def answer(self) -> InferResponse:
        """Return the ensemble's own answer."""
        specs = {each.name: each for each in self._ensemble.outputs}
        outputs = [self._output(specs[name]) for name in self._wanted]
        key = self._ensemble.key
        return InferResponse(key.name, key.version, self.request.id, outputs)

    def _asked(self, index: int) -> list[str]:
        outputs = self._ensemble.steps[index].outputs
        return [name for name, tensor in outputs.items() if tensor in self._readers]

    def _read(self, tensor: str) -> None:
        self._readers[tensor] -= 1
        if not self._readers[tensor]:
            self._tensors.pop(tensor, None)

    def _output(self, spec: TensorSpec) -> Tensor:
        there = self._tensors[spec.name]
        data = _ranked(there.data, len(spec.model_dims) + self._batched)
        tensor = Tensor(spec.name, there.datatype, data)
        return tensor if spec.reshape is None else self._shaped(tensor, spec.dims)

    def _shaped(self, tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
        rows = tensor.data.shape[:1] if self._batched else ()
        return Tensor(tensor.name, tensor.datatype, tensor.data.reshape((*rows, *dims)))


def _ranked(data: Array, rank: int) -> Array:
    """Return an array with a batch dimension of 1 more or less, where the ranks differ by that.

    Models with and without a batch dimension meet so in one ensemble, as in Triton.
    """
    if data.ndim == rank - 1:
        return data[None]
    if data.ndim == rank + 1 and data.shape[0] == 1:
        return data.reshape(data.shape[1:])
    return data
