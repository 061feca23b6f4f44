"""The asynchronous shell of the batch queue: requests in, batches to the engine, replies out."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from gateway.batching import tensors
from gateway.batching.batch_queue import BatchQueue, Item
from gateway.core import InferRequest, InferResponse, ModelSpec
from gateway.engine.base import Engine
from gateway.errors import (
    DeadlineExceeded,
    InferenceFailed,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
    TidegateError,
)
from gateway.metrics import ModelStats

log = logging.getLogger(__name__)

# gRPC hands requests over about one a turn of the event loop, also when dozens have arrived: a cut
# at the first makes batches of one. At 64 concurrent requests 8 turns give twice the throughput
# of 1, 16 a little more, 40 no more than these; one that brings nothing costs under 1 us.
# (benchmarks/results/request-path-experiments-2026-11-23.json)
QUIET_TURNS = 16


class _Waiter:
    """A request and where its answer goes."""

    __slots__ = ("arrived", "reply", "request")

    def __init__(self, request: InferRequest, reply: asyncio.Future[InferResponse]) -> None:
        self.request = request
        self.reply = reply
        # Durations are measured, not scheduled: uvloop's own clock has whole milliseconds.
        self.arrived = time.perf_counter()

    def fail(self, error: TidegateError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


class Batcher:
    """Serves one ready model version. A batch is cut when an instance is free, not before.

    So a busy engine makes the batch. One that is free gets its work as soon as the event loop has
    brought nothing new for `QUIET_TURNS` turns, or a full batch is there.
    """

    def __init__(
        self, spec: ModelSpec, engine: Engine, tasks: asyncio.TaskGroup, stats: ModelStats
    ) -> None:
        self._spec = spec
        self._engine = engine
        self._tasks = tasks
        self._stats = stats
        self._queue: BatchQueue[_Waiter] = BatchQueue(spec.batching)
        self._uniform = tensors.uniform(spec)
        self._free = spec.instances
        self._batch_done = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._pump_due = False
        self._quiet_turns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._queue and not self.running

    @property
    def running(self) -> int:
        """Batches in the engine. One may outlive every request that it was cut for."""
        return self._spec.instances - self._free

    @property
    def queued(self) -> int:
        """Requests that wait for an instance."""
        return len(self._queue)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Return the request's share of the batch that it went in.

        Cancelling the caller takes the request out of the queue; one that already runs is answered
        to nobody, and its batch-mates do not notice.
        """
        policy = self._spec.batching
        level = policy.level(request.priority)
        waiter = _Waiter(request, self._loop.create_future())
        item = Item(
            waiter,
            rows=tensors.rows_of(request, self._spec),
            bucket=() if self._uniform else tensors.bucket_of(request),
            queued_at=self._loop.time(),
            deadline=request.deadline,
            level=level,
            timeout_s=self._timeout_s(request, level),
        )
        try:
            self._queue.push(item)
        except QueueFull as error:
            raise QueueFull(f"{request.label}{error}") from None
        self._poke()
        try:
            return await waiter.reply
        finally:
            self._queue.discard(item)

    async def drained(self) -> None:
        """Return when nothing waits and nothing runs."""
        while not self.idle:
            self._batch_done.clear()
            await self._batch_done.wait()

    def close(self) -> None:
        """Stop the timer. Raises AssertionError where requests are left."""
        assert self.idle, f"batcher of {self._spec.key} closed with requests left: this is a bug"
        self._disarm()

    def _timeout_s(self, request: InferRequest, level: int) -> float:
        queue = self._spec.batching.queue(level)
        timeout = queue.default_timeout_s
        if queue.allow_timeout_override and request.timeout_us:
            # a request may shorten the model's timeout, never lengthen it
            timeout = min(timeout, request.timeout_us / 1e6)
        return timeout

    def _poke(self) -> None:
        """Pump once it is quiet."""
        self._quiet_turns = 0
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump_when_quiet)

    def _pump_when_quiet(self) -> None:
        self._quiet_turns += 1
        policy = self._spec.batching
        growing = policy.dynamic and len(self._queue) < policy.max_batch_size
        if growing and self._free and self._quiet_turns < QUIET_TURNS:
            self._loop.call_soon(self._pump_when_quiet)
        else:
            self._pump_due = False
            self._pump()

    def _pump(self) -> None:
        """Reject what expired, cut while an instance is free, set the timer for the rest."""
        now = self._loop.time()
        for item in self._queue.expire(now):
            item.payload.fail(QueueTimeout("Request timeout expired"))
        while self._free and (batch := self._queue.cut(now)):
            if batch := [item for item in batch if not self._late(item, now)]:
                self._free -= 1
                self._tasks.create_task(self._run(batch), name=f"batch {self._spec.key}")
        self._arm(self._queue.ready_at(now) if self._free else self._queue.next_expiry())

    def _late(self, item: Item[_Waiter], now: float) -> bool:
        if now < item.deadline:
            return False
        item.payload.fail(DeadlineExceeded("the deadline passed in the batch queue"))
        return True

    async def _run(self, batch: list[Item[_Waiter]]) -> None:
        """Occupy an instance with one batch.

        Where the engine refuses it, its members run again alone: one of them may be at fault, and
        the others are not to suffer for it.
        """
        try:
            if not await self._answer(batch, retry=len(batch) > 1):
                for item in batch:
                    if not item.payload.reply.done():
                        await self._answer([item], retry=False)
        finally:
            self._free += 1
            self._batch_done.set()
            if self._queue:
                self._poke()

    async def _answer(self, batch: list[Item[_Waiter]], retry: bool) -> bool:
        """Hand out a batch's answers, or its error; False where the engine failed and may retry."""
        spec = self._spec
        waiters = [item.payload for item in batch]
        requests = [waiter.request for waiter in waiters]
        rows = [item.rows for item in batch]
        started = time.perf_counter()
        try:
            try:
                outputs = await self._engine.infer(
                    spec.key, tensors.stack(requests), tensors.wanted(requests, spec)
                )
            except InferenceFailed:
                if retry:
                    return False
                raise
            finished = time.perf_counter()
            responses = tensors.split(outputs, requests, rows, spec)
        except TidegateError as error:
            self._fail(waiters, error)
        except asyncio.CancelledError:
            self._fail(waiters, ShuttingDown("the gateway is shutting down"))
            raise
        except Exception as error:
            log.exception("batch of %s failed: this is a bug", spec.key)
            self._fail(waiters, InferenceFailed(f"{type(error).__name__}: {error}"))
        else:
            stats = self._stats
            stats.executions += 1
            stats.inferences += sum(rows)
            stats.batch_rows.observe(sum(rows))
            stats.compute_s += (finished - started) * len(batch)
            for waiter, response in zip(waiters, responses, strict=True):
                stats.queue_s += started - waiter.arrived
                if not waiter.reply.done():
                    waiter.reply.set_result(response)
        return True

    def _fail(self, waiters: list[_Waiter], error: TidegateError) -> None:
        for waiter in waiters:
            # each caller gets an exception of its own: a shared one would grow every traceback
            waiter.fail(type(error)(*error.args))

    def _arm(self, due: float) -> None:
        if self._timer is not None and self._timer_at == due:
            return
        self._disarm()
        if due < math.inf:
            self._timer_at = due
            # uvloop's timers and clock have whole milliseconds: one that fired in the middle of
            # the due one would find nothing to do, again and again until it has passed
            whole_ms = math.ceil(due * 1e3 - 1e-6) / 1e3
            self._timer = self._loop.call_at(whole_ms, self._timer_fired)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timer_fired(self) -> None:
        self._timer = None
        self._pump()
