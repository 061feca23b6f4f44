"""Requests of sequences, each after the one before it, with the state that the model left there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace

import numpy as np

from gateway import wire
from gateway.batching.batcher import Batcher
from gateway.batching.sequence_slots import LiveSequence, SequenceSlots
from gateway.core import DTYPES, Array, InferRequest, InferResponse, ModelSpec, Tensor
from gateway.engine.base import BatchEngine
from gateway.errors import DeadlineExceeded, InvalidRequest, QueueTimeout
from gateway.metrics import ModelStats
from gateway.sequence import Control, ControlKind, SequenceBatching, SequenceMark, State

_Turn = asyncio.Future[None]
_CORRID_BITS = {"UINT64": 64, "INT64": 64, "UINT32": 32, "INT32": 32}


class SequenceBatcher:
    """Serves a version whose requests belong to sequences.

    It says whose turn it is, and gives each request control inputs and state; a `Batcher` below
    makes batches of the requests that have their turns, at most one of each sequence.

    The state moves with the answers: a request that failed, or whose client left before it was
    answered, leaves its sequence as it was before, so that it may be asked again. Only END ends
    it, whatever becomes of that request. A sequence that had no request for `max_idle_s` is
    forgotten, and with the model's unload all are.
    """

    def __init__(
        self,
        spec: ModelSpec,
        engine: BatchEngine,
        tasks: asyncio.TaskGroup,
        stats: ModelStats,
        engine_timeout_s: float = math.inf,
    ) -> None:
        assert spec.sequence is not None, f"{spec.key} has no sequences: this is a bug"
        self._spec = spec
        self._sequence: SequenceBatching = spec.sequence
        self._state_outputs = [state.output_name for state in self._sequence.states]
        self._batcher = Batcher(spec.inside, engine, tasks, stats, engine_timeout_s)
        self._slots: SequenceSlots[_Turn] = SequenceSlots(
            spec.instances * self._sequence.slots, self._sequence.max_idle_s
        )
        self._batched = spec.max_batch_size > 0
        self._initial = [_initial(state, self._batched) for state in self._sequence.states]
        self._controls = [_Signal(control, spec) for control in self._sequence.controls]
        self._waiting = 0
        self._turned = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs. Sequences may be under way all the same."""
        return not self._waiting and self._batcher.idle

    @property
    def running(self) -> int:
        """Batches in the engine."""
        return self._batcher.running

    @property
    def queued(self) -> int:
        """Requests that wait for their turns, for slots or for an instance."""
        return self._waiting + self._batcher.queued

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the answer to a sequence's next request.

        Raises `InvalidRequest` where it belongs to no sequence, `QueueTimeout` where its own
        timeout passes before its sequence has a slot, and otherwise like `Batcher.infer`.
        """
        mark, signals = self._check(request)
        sequence = self._slots.join(mark)
        if sequence is None:
            raise InvalidRequest(
                f"inference request for sequence {mark.id} to model '{self._spec.key.name}' must "
                "specify the START flag on the first request of the sequence"
            )
        if not self._slots.take_turn(sequence):
            await self._turn(sequence, request)
        try:
            return await self._step(sequence, request, mark, signals)
        finally:
            self._go_on(self._slots.end_turn(sequence, self._loop.time()))

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the one answer."""
        yield await self.infer(request)

    def resize(self, copies: int) -> None:
        """Tell the batcher. More sequences at once there are not: their number is the model's."""
        self._batcher.resize(copies)

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        while not self.idle:
            if self._waiting:
                self._turned.clear()
                await self._turned.wait()
            else:
                await self._batcher.drained()

    def close(self) -> None:
        """Forget every sequence. Raises AssertionError where requests are left."""
        assert not self._waiting, f"{self._spec.key} closed with requests left: this is a bug"
        self._batcher.close()
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, request: InferRequest) -> tuple[SequenceMark, list[Tensor]]:
        """Return the request's place in its sequence, and its control inputs."""
        mark, model = request.sequence, self._spec.key.name
        if self._batched and request.inputs and request.inputs[0].data.shape[0] != 1:
            raise InvalidRequest(
                f"inference request to model '{model}' must specify batch-size 1 due to "
                "requirements of sequence batcher"
            )
        if mark is None:
            raise InvalidRequest(
                f"inference request to model '{model}' must specify a non-zero or non-empty "
                "correlation ID"
            )
        try:
            return mark, [signal.of(mark) for signal in self._controls]
        except ValueError as error:
            raise InvalidRequest(f"{request.label}{error}") from None

    async def _turn(self, sequence: LiveSequence[_Turn], request: InferRequest) -> None:
        """Return when the request has the turn."""
        turn = self._loop.create_future()
        sequence.waiting.append(turn)
        self._waiting += 1
        try:
            if request.timeout_us and not sequence.active:
                slot_due = self._loop.time() + request.timeout_us / 1e6
                await self._until(min(slot_due, request.deadline), turn)
                if slot_due < request.deadline and not turn.done() and not sequence.active:
                    self._reject(self._slots.drop(sequence))
            await self._until(request.deadline, turn)
            if not turn.done():
                raise DeadlineExceeded("the request's deadline has passed")
            turn.result()
        except BaseException:
            self._leave(sequence, turn)
            raise
        finally:
            self._waiting -= 1
            self._turned.set()

    async def _until(self, due: float, turn: _Turn) -> None:
        if not turn.done():
            wait_s = due - self._loop.time() if due < math.inf else None
            await asyncio.wait((turn,), timeout=wait_s)

    def _leave(self, sequence: LiveSequence[_Turn], turn: _Turn) -> None:
        """Give up a request's place, or the turn that it got just as its client left."""
        now = self._loop.time()
        if not turn.done():
            self._go_on(self._slots.leave(sequence, turn, now))
        elif turn.exception() is None:
            self._go_on(self._slots.end_turn(sequence, now))

    async def _step(
        self,
        sequence: LiveSequence[_Turn],
        request: InferRequest,
        mark: SequenceMark,
        signals: list[Tensor],
    ) -> InferResponse:
        states = self._initial if mark.start or not sequence.states else sequence.states
        answer = await self._batcher.infer(
            replace(
                request,
                inputs=[*request.inputs, *signals, *states],
                outputs=[*request.outputs, *self._state_outputs] if request.outputs else [],
            )
        )
        if not self._state_outputs:
            return answer
        by_name = {tensor.name: tensor for tensor in answer.outputs}
        # copied: a view would keep the whole batch's outputs in memory
        sequence.states = [
            Tensor(state.input_name, state.datatype, by_name[state.output_name].data.copy())
            for state in self._sequence.states
        ]
        names = request.outputs or [output.name for output in self._spec.outputs]
        return answer._replace(outputs=[by_name[name] for name in names])

    def _go_on(self, turns: Iterable[_Turn]) -> None:
        for turn in turns:
            turn.set_result(None)
        if self._timer is None:
            self._arm()

    def _reject(self, turns: Iterable[_Turn]) -> None:
        for turn in turns:
            turn.set_exception(QueueTimeout(_SEQUENCE_TIMEOUT))

    def _arm(self) -> None:
        due = self._slots.next_expiry()
        if due < math.inf:
            # whole milliseconds, as the loop's timers have: one that fired too early would find
            # nothing to do
            wait_s = math.ceil((due - self._loop.time()) * 1e3) / 1e3
            self._timer = self._loop.call_later(max(0.0, wait_s), self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._go_on(self._slots.expire(self._loop.time()))


_SEQUENCE_TIMEOUT = "timeout of the corresponding sequence has been expired"


class _Signal:
    """Makes one control input of a request, of one element."""

    def __init__(self, control: Control, spec: ModelSpec) -> None:
        self._control = control
        self._model = spec.key.name
        self._shape = (1, 1) if spec.max_batch_size > 0 else (1,)
        self._false, self._true = (self._tensor(value) for value in (control.false, control.true))

    def of(self, mark: SequenceMark) -> Tensor:
        """Return the control input. Raises `ValueError` for an id that it cannot hold."""
        match self._control.kind:
            case ControlKind.START:
                return self._true if mark.start else self._false
            case ControlKind.END:
                return self._true if mark.end else self._false
            case ControlKind.READY:
                return self._true  # only what is there goes into a batch
        return self._corrid(mark.id)

    def _corrid(self, number: int | str) -> Tensor:
        datatype = self._control.datatype
        given = "BYTES" if isinstance(number, str) else "UINT64"
        if (given == "BYTES") != (datatype == "BYTES"):
            raise ValueError(
                f"sequence batching control '{self._control.name}' data-type is '{given}', but "
                f"model '{self._model}' expects '{datatype}'"
            )
        if isinstance(number, str):
            return self._tensor(number.encode())
        bits = _CORRID_BITS[datatype]
        unsigned = np.array(number % 2**bits, f"uint{bits}")
        return self._tensor(unsigned.astype(DTYPES[datatype]))

    def _tensor(self, value: object) -> Tensor:
        data: Array = np.empty(self._shape, DTYPES[self._control.datatype])
        data[...] = value
        return Tensor(self._control.name, self._control.datatype, data)


def _initial(state: State, batched: bool) -> Tensor:
    shape = (1, *state.initial_dims) if batched else state.initial_dims
    if state.initial:
        data = wire.array(state.datatype, shape, state.initial)
    else:
        filler = b"" if state.datatype == "BYTES" else 0
        data = np.full(shape, filler, DTYPES[state.datatype])
    return Tensor(state.input_name, state.datatype, data)
