"""The asynchronous shell of the batch queue: requests in, batches to the engine, replies out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from gateway.batching import ragged, tensors
from gateway.batching.accounts import count_run
from gateway.batching.batch_queue import MAX_MARGIN_S, BatchQueue
from gateway.batching.due_times import DueTimes
from gateway.batching.lane import Item
from gateway.batching.latency_curve import LatencyCurve
from gateway.core import InferRequest, InferResponse, ModelSpec
from gateway.engine.base import BatchEngine
from gateway.errors import (
    DeadlineExceeded,
    EngineStalled,
    InferenceFailed,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    TidegateError,
)
from gateway.metrics import ModelStats
from gateway.placement import EngineKind

log = logging.getLogger(__name__)

# gRPC hands requests over about one a turn of the event loop, also when dozens have arrived: a cut
# at the first makes batches of one. At 64 concurrent requests 8 turns give twice the throughput
# of 1, 16 a little more, 40 no more than these; one that brings nothing costs under 1 us.
# (benchmarks/results/request-path-experiments-2026-11-23.json)
QUIET_TURNS = 16
# A model that runs beside the loop idles while it waits for quiet: it waits no longer than a
# quarter of what its largest batch takes, at most 2 ms. So half of 64 clients' requests run while
# the other half come: 1.3 times the throughput on the 784-2048-2048-10 MLP. One that runs on the
# loop itself (well below a millisecond) has nothing to gain by that.
PATIENCE = 0.25
MAX_PATIENCE_S = 0.002
BESIDE_THE_LOOP_S = 0.001


@dataclass(slots=True, eq=False)
class _Pending(Item):
    """A request, and where its answer goes.

    `length` is its own size of the dims that were padded, -1 where none were. `outcome` is an
    answer that has to wait until those of earlier requests have left.
    """

    request: InferRequest
    reply: asyncio.Future[InferResponse]
    length: int = -1
    outcome: InferResponse | TidegateError | None = None

    def settle(self, outcome: InferResponse | TidegateError) -> None:
        """Give the caller its answer or its error, unless it has gone."""
        if not self.reply.done():
            if isinstance(outcome, TidegateError):
                self.reply.set_exception(outcome)
            else:
                self.reply.set_result(outcome)


_Outcome = InferResponse | TidegateError


def _failures(batch: Sequence[_Pending], error: TidegateError) -> list[TidegateError]:
    # each caller gets an exception of its own: a shared one would grow every traceback
    return [type(error)(*error.args) for _ in batch]


class Batcher:
    """Serves one ready model version. A batch is cut when an instance is free, not before.

    So a busy engine makes the batch. One that is free gets its work as soon as the event loop has
    brought nothing new for `QUIET_TURNS` turns, or a full batch is there.
    """

    def __init__(
        self,
        spec: ModelSpec,
        engine: BatchEngine,
        tasks: asyncio.TaskGroup,
        stats: ModelStats,
        engine_timeout_s: float = math.inf,
    ) -> None:
        self._spec = spec
        self._policy = spec.batching
        self._engine = engine
        self._tasks = tasks
        self._stats = stats
        self._engine_timeout_s = engine_timeout_s
        self._limit_s = engine_timeout_s if engine_timeout_s < math.inf else None
        self._queue: BatchQueue[_Pending] = BatchQueue(self._policy)
        self._deadlines: DueTimes[_Pending] = DueTimes(lambda item: not item.reply.done())
        self._curve = LatencyCurve(self._policy.expected)
        is_ragged = spec.ragged is not None
        self._uniform = tensors.uniform(spec) and not is_ragged
        self._bucket_of = ragged.bucket_of if is_ragged else tensors.bucket_of
        self._stack = partial(ragged.stack, spec=spec) if is_ragged else tensors.stack
        self._split = ragged.split if is_ragged else tensors.split
        # one instance of one copy alone answers in order anyway
        several = spec.instances > 1 or spec.kind is EngineKind.TRITON
        ordered = self._policy.preserve_ordering and several
        self._line: deque[_Pending] | None = deque() if ordered else None
        self._slots = self._free = spec.instances  # below 0 where copies have left that still run
        self._batch_done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pump_due = False
        self._ending = False  # nothing can be sent any more: the parent of the batches ends
        self._quiet_turns = 0
        self._gathering_since = 0.0
        self._cut_at = 0.0
        self._gather_until = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not len(self._queue) and not self.running

    @property
    def running(self) -> int:
        """Batches in the engine. One may outlive every request that it was cut for."""
        return self._slots - self._free

    @property
    def queued(self) -> int:
        """Requests that wait for an instance."""
        return len(self._queue)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the request's share of the batch that it went in.

        Raises `DeadlineExceeded` as soon as the request's deadline passes, or, before it costs a
        slot, once the model's measured latency says that it will; `QueueFull` and `QueueTimeout`
        as the model's queue policy has it. Cancelling the caller takes the request out of the
        queue; one that already runs is answered to nobody, and its batch-mates do not notice.
        """
        item = self._enter(request)
        try:
            return await item.reply
        finally:
            if item.waiting:
                self._queue.discard(item)
            if self._line is not None:
                self._flush(self._line)

    async def stream(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        """Yield the one answer."""
        yield await self.infer(request)

    def resize(self, copies: int) -> None:
        """Have `copies` times the model's instances to run in, from now on."""
        slots = self._spec.instances * copies
        self._free += slots - self._slots
        self._slots = slots
        if self._free > 0 and len(self._queue) and not self._pump_due:
            self._pump_soon()

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        while not self.idle:
            self._batch_done.clear()
            await self._batch_done.wait()

    def close(self) -> None:
        """Stop the timer. Raises AssertionError where requests are left."""
        assert self.idle, f"batcher of {self._spec.key} closed with requests left: this is a bug"
        self._disarm()

    def _enter(self, request: InferRequest) -> _Pending:
        policy = self._policy
        length = -1
        if policy.pad_to:
            request, length = tensors.padded(request, self._spec)
        now = self._loop.time()
        level = policy.level(request.priority) if policy.priority_levels else 0
        deadline = request.deadline
        item = _Pending(
            tensors.rows_of(request, self._spec),
            self._bucket(request),
            now,
            deadline,
            level,
            self._timeout_s(request, level),
            min(deadline, now + policy.slo_s) if policy.slo_s else deadline,
            request,
            self._loop.create_future(),
            length,
        )
        if deadline < math.inf and len(self._queue):
            self._refuse_at_once(item, now)
        try:
            self._queue.push(item)
        except QueueFull as error:
            raise QueueFull(f"{request.label}{error}") from None
        if deadline < math.inf:
            self._deadlines.add(deadline, item)
        if self._line is not None:
            self._line.append(item)
        if len(self._queue) == 1:
            self._gathering_since = now
        self._quiet_turns = 0
        if self._free <= 0:  # the batch that ends next looks at the queue; until then only time can
            self._arm(min(deadline, now + item.timeout_s if item.timeout_s else math.inf))
        elif not self._pump_due:
            self._pump_soon()
        return item

    def _refuse_at_once(self, item: _Pending, now: float) -> None:
        """Turn away a request behind so many that it cannot be in time, before it waits at all."""
        rows = self._policy.max_batch_size if self._policy.dynamic else item.rows
        batch_s = self._curve.predict(rows, now)
        if self._queue.hopeless(item, now, self._cut_at, batch_s, self._slots):
            self._stats.refused += 1
            raise DeadlineExceeded(
                "the request's deadline cannot be met: too many wait for the model already"
            )

    def _bucket(self, request: InferRequest) -> tuple[object, ...]:
        if self._uniform and not (request.parameters and self._spec.parametric):
            return ()
        return self._bucket_of(request, self._spec)

    def _timeout_s(self, request: InferRequest, level: int) -> float:
        queue = self._policy.queue(level)
        timeout = queue.default_timeout_s
        if queue.allow_timeout_override and request.timeout_us:
            # a request may shorten the model's timeout, never lengthen it
            timeout = min(timeout, request.timeout_us / 1e6)
        return timeout

    def _pump_soon(self) -> None:
        self._pump_due = True
        self._gather_until = self._patient_until()
        self._loop.call_soon(self._pump_when_quiet)

    def _patient_until(self) -> float:
        """Return until when a free instance waits for quiet."""
        longest = self._curve.typical(self._policy.max_batch_size, self._loop.time())
        if longest < BESIDE_THE_LOOP_S:
            return math.inf
        return self._gathering_since + min(MAX_PATIENCE_S, PATIENCE * longest)

    def _pump_when_quiet(self) -> None:
        self._quiet_turns += 1
        policy = self._policy
        growing = policy.dynamic and len(self._queue) < policy.max_batch_size
        quiet = self._quiet_turns >= QUIET_TURNS or self._loop.time() >= self._gather_until
        if growing and self._free > 0 and not quiet:
            self._loop.call_soon(self._pump_when_quiet)
        else:
            self._pump_due = False
            self._pump()

    def _pump(self) -> None:
        """Turn away what is late, cut while an instance is free, set the timer for the rest."""
        queue, now = self._queue, self._loop.time()
        if self._ending:
            for item in queue.clear():
                item.settle(ShuttingDown("the gateway is shutting down"))
            return
        predicted: dict[int, float] = {}

        def finish(rows: int) -> float:
            if rows not in predicted:
                predicted[rows] = now + self._curve.predict(rows, now)
            return predicted[rows]

        for item in queue.expire(now):
            item.settle(QueueTimeout("Request timeout expired"))
        for item in self._deadlines.pop_due(now):
            queue.discard(item)
            item.settle(DeadlineExceeded("the request's deadline has passed"))
        while self._free > 0 and len(queue):
            self._refuse(now, finish)
            batch = queue.cut(now, finish)
            if not batch:
                break
            self._free -= 1
            self._gathering_since = self._cut_at = now
            self._tasks.create_task(self._run(batch), name=f"batch {self._spec.key}")
        due = queue.ready_at(now, finish) if self._free > 0 and len(queue) else queue.next_expiry()
        self._arm(min(due, self._deadlines.next()))

    def _refuse(self, now: float, finish: Callable[[int], float]) -> None:
        """Turn away requests that would miss their deadlines, before they cost a slot."""
        longest = finish(self._policy.max_batch_size) + MAX_MARGIN_S
        if not self._policy.slo_s and self._deadlines.next() >= longest:
            return
        for item in self._queue.refuse(now, finish):
            self._stats.refused += 1
            item.settle(
                DeadlineExceeded(
                    "the request's deadline cannot be met: the model would answer later"
                )
            )

    async def _run(self, batch: list[_Pending]) -> None:
        """Occupy an instance with one batch.

        Where the engine refuses it, its members run again alone: one of them may be at fault, and
        the others are not to suffer for it.
        """
        outcomes: Sequence[_Outcome] | None = ()
        try:
            outcomes = await self._ask(batch, retry=len(batch) > 1)
            if outcomes is None:
                for item in batch:
                    if not item.reply.done():
                        self._deliver([item], await self._ask([item], retry=False) or ())
        except asyncio.CancelledError:
            self._ending = True
            raise
        finally:
            # The next batch goes first: sending the answers takes the loop about 30 us each, and
            # a model that runs beside it need not wait for that.
            self._release()
        self._deliver(batch, outcomes or ())

    def _release(self) -> None:
        self._free += 1
        self._batch_done.set()
        if not len(self._queue):
            return
        if self._ending or self._loop.time() >= self._patient_until():
            self._pump()
        elif not self._pump_due:
            self._quiet_turns = 0
            self._pump_soon()

    async def _ask(self, batch: list[_Pending], retry: bool) -> Sequence[_Outcome] | None:
        """Return what becomes of a batch's members; None where the engine refused and may retry."""
        spec = self._spec
        requests = [item.request for item in batch]
        rows = [item.rows for item in batch]
        started = self._loop.time()
        try:
            inputs = self._stack(requests)
            joined = self._loop.time()
            async with asyncio.timeout(self._limit_s):
                outputs = await self._engine.infer(
                    spec.key, inputs, tensors.wanted(requests, spec), requests[0].parameters
                )
            finished = self._loop.time()
            retry = False  # an answer that does not fit is no refusal
            responses = self._split(outputs, requests, rows, spec)
            for index, item in enumerate(batch):
                if item.length >= 0:
                    responses[index] = tensors.cropped(responses[index], item.length, spec)
            split = self._loop.time()
        except InferenceFailed as error:
            return None if retry else _failures(batch, error)
        except TidegateError as error:
            return _failures(batch, error)
        except TimeoutError:
            text = (
                f"model '{spec.key.name}': the engine has not answered a batch within "
                f"{self._engine_timeout_s:g} s"
            )
            return _failures(batch, EngineStalled(text))
        except asyncio.CancelledError:
            self._deliver(batch, _failures(batch, ShuttingDown("the gateway is shutting down")))
            raise
        except Exception as error:
            log.exception("batch of %s failed: this is a bug", spec.key)
            return _failures(batch, InferenceFailed(f"{type(error).__name__}: {error}"))
        total = sum(rows)
        self._curve.observe(total, finished - started, finished)
        waits_s = [started - item.queued_at for item in batch]
        count_run(self._stats, spec, requests, waits_s, total, started, joined, finished, split)
        return responses

    def _deliver(self, batch: Sequence[_Pending], outcomes: Sequence[_Outcome]) -> None:
        """Hand out answers: at once, or each in its turn where the order is to be kept."""
        line = self._line
        for item, outcome in zip(batch, outcomes, strict=False):  # none: they have theirs already
            if line is None:
                item.settle(outcome)
            else:
                item.outcome = outcome
        if line is not None:
            self._flush(line)

    def _flush(self, line: deque[_Pending]) -> None:
        """Let answers leave in the order in which the requests came, as far as they are there."""
        while line and (line[0].outcome is not None or line[0].reply.done()):
            item = line.popleft()
            if item.outcome is not None:
                item.settle(item.outcome)

    def _arm(self, due: float) -> None:
        # one that fires too early finds nothing to do and is set anew: cheaper than setting it
        # anew with every batch
        if due >= self._timer_at:
            return
        self._disarm()
        if due < math.inf:
            self._timer_at = due
            # uvloop's timers have whole milliseconds: one that fired in the middle of the due one
            # would find nothing to do, again and again until it has passed
            whole_ms = math.ceil((due - self._loop.time()) * 1e3 - 1e-6) / 1e3
            self._timer = self._loop.call_later(whole_ms, self._timer_fired)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_at = math.inf

    def _timer_fired(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        self._pump()
