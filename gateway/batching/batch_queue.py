"""When a batch is cut and of what: Triton's dynamic batching, as a function of the queue and `now`.

Pure: time comes in, items come out. The rules are those of Triton's dynamic batcher; requests of
different shapes wait side by side in buckets, so that none closes another's batch.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gateway.core import BatchPolicy, TimeoutAction
from gateway.errors import QueueFull

T = TypeVar("T")

# A time that is due by less than this is due: sums of floats miss each other by less.
EPSILON_S = 1e-6


@dataclass(slots=True, eq=False)
class Item(Generic[T]):
    """A request in the queue. Times are absolute, in seconds of one clock.

    `rows` is its first dimension. `bucket` is equal for requests that may share a batch. `payload`
    belongs to the caller: the queue never looks at it.
    """

    payload: T
    rows: int
    bucket: Hashable
    queued_at: float
    deadline: float
    level: int = 0
    timeout_s: float = 0.0
    waiting: bool = field(default=False, init=False)
    delayed: bool = field(default=False, init=False)

    @property
    def expires_at(self) -> float:
        """When the queue policy's timeout passes; never for a delayed item."""
        if self.delayed or self.timeout_s == 0.0:
            return math.inf
        return self.queued_at + self.timeout_s


class _Lane(Generic[T]):
    """One priority level of one bucket: first in first out, the delayed behind the others."""

    __slots__ = ("delayed", "fresh")

    def __init__(self) -> None:
        # ordered, and any item leaves in constant time: clients go from the middle, too
        self.fresh: OrderedDict[Item[T], None] = OrderedDict()
        self.delayed: OrderedDict[Item[T], None] = OrderedDict()

    def __iter__(self) -> Iterator[Item[T]]:
        yield from self.fresh
        yield from self.delayed

    def __bool__(self) -> bool:
        return bool(self.fresh or self.delayed)

    def oldest(self) -> float:
        """When the longest waiting item came; inf where none waits."""
        # the fresh are in the order of arrival, the delayed in that of their timeouts
        first = next(iter(self.fresh), None)
        come = [item.queued_at for item in self.delayed]
        return min([*come, first.queued_at] if first is not None else come, default=math.inf)

    def delay(self, item: Item[T]) -> None:
        """Move an item behind all unexpired ones."""
        del self.fresh[item]
        item.delayed = True
        self.delayed[item] = None

    def remove(self, item: Item[T]) -> None:
        """Take an item out."""
        del (self.delayed if item.delayed else self.fresh)[item]


class BatchQueue(Generic[T]):
    """The requests of one model that wait for an instance. `len()` counts requests."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._buckets: dict[Hashable, dict[int, _Lane[T]]] = {}
        self._level_sizes: dict[int, int] = {}
        self._timed: set[Item[T]] = set()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, item: Item[T]) -> None:
        """Append an item to its level. Raises `QueueFull` where the level's policy bounds it."""
        size = self._level_sizes.get(item.level, 0)
        bound = self._policy.queue(item.level).max_queue_size
        if 0 < bound <= size:
            raise QueueFull("Exceeds maximum queue size")
        lanes = self._buckets.setdefault(item.bucket, {})
        if item.level not in lanes:
            lanes[item.level] = _Lane()
            # Levels are walked in this order: 1 is served before 2.
            self._buckets[item.bucket] = lanes = dict(sorted(lanes.items()))
        lanes[item.level].fresh[item] = None
        item.waiting = True
        self._level_sizes[item.level] = size + 1
        self._size += 1
        if item.expires_at < math.inf:
            self._timed.add(item)

    def discard(self, item: Item[T]) -> None:
        """Take out an item whose caller has gone. Does nothing if it has left already."""
        if item.waiting:
            self._leave(item)

    def expire(self, now: float) -> list[Item[T]]:
        """Take out and return the items whose queue timeout has passed and whose policy rejects.

        Items whose policy delays move behind the unexpired ones of their level, once.
        """
        rejected: list[Item[T]] = []
        passed = sorted(
            (item for item in self._timed if item.expires_at <= now + EPSILON_S),
            key=lambda item: (item.expires_at, item.queued_at),
        )
        for item in passed:
            self._timed.discard(item)
            if self._policy.queue(item.level).timeout_action is TimeoutAction.REJECT:
                self._leave(item)
                rejected.append(item)
            else:
                self._buckets[item.bucket][item.level].delay(item)
        return rejected

    def cut(self, now: float) -> list[Item[T]]:
        """Take out and return the batch to send now; empty when it is better to wait.

        Of several buckets with a batch to send, the one whose head has the highest priority goes
        first, then the one whose head has waited longest.
        """
        best: list[Item[T]] = []
        best_rank = (math.inf, math.inf)
        for lanes in self._buckets.values():
            batch = self._form(lanes, now)
            if batch and (rank := (batch[0].level, batch[0].queued_at)) < best_rank:
                best, best_rank = batch, rank
        for item in best:
            self._leave(item)
        return best

    def ready_at(self, now: float) -> float:
        """Return when `cut` or `expire` next has something to do, if nothing arrives; or inf."""
        due = self.next_expiry()
        for lanes in self._buckets.values():
            if self._form(lanes, now):
                return now
            oldest = min((lane.oldest() for lane in lanes.values()), default=math.inf)
            due = min(due, oldest + self._policy.max_delay_s)
        return due

    def next_expiry(self) -> float:
        """Return when `expire` next has something to do; or inf."""
        return min((item.expires_at for item in self._timed), default=math.inf)

    def _form(self, lanes: dict[int, _Lane[T]], now: float) -> list[Item[T]]:
        """Walk one bucket from its head by the rules; return what to send, or nothing yet."""
        policy = self._policy
        batch: list[Item[T]] = []
        rows = marked = 0
        oldest = math.inf
        stopped = False
        for lane in lanes.values():
            for item in lane:
                if batch and (not policy.dynamic or rows + item.rows > policy.max_batch_size):
                    stopped = True
                    break
                batch.append(item)
                rows += item.rows
                oldest = min(oldest, item.queued_at)
                if rows in policy.preferred:
                    marked = len(batch)
            if stopped:
                break
        if not batch or not policy.dynamic:
            return batch
        delay = policy.max_delay_s
        exceeded = delay > 0.0 and now >= oldest + delay - EPSILON_S
        if marked and not exceeded:
            return batch[:marked]
        if stopped or rows >= policy.preferred[-1] or delay == 0.0 or exceeded:
            return batch
        return []

    def _leave(self, item: Item[T]) -> None:
        item.waiting = False
        self._size -= 1
        self._level_sizes[item.level] -= 1
        self._timed.discard(item)
        lanes = self._buckets[item.bucket]
        lane = lanes[item.level]
        lane.remove(item)
        if not lane:
            del lanes[item.level]
            if not lanes:
                del self._buckets[item.bucket]
