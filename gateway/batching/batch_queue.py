"""When a batch is cut and of what: Triton's dynamic batching, as a function of the queue and `now`.

Pure: time comes in, items come out. The rules are those of Triton's dynamic batcher; requests of
different shapes wait side by side in buckets, so that none closes another's batch. A model with a
latency objective (`BatchPolicy.slo_s`) is served earliest deadline first instead, in batches that
are as large as their heads can bear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic

from gateway.batching.due_times import EPSILON_S, DueTimes
from gateway.batching.lane import EarliestDeadlineFirst, Fifo, Item, ItemT, Lane
from gateway.core import BatchPolicy, TimeoutAction
from gateway.errors import QueueFull

# A client counts from when it meant to send, and its answer has a way to go yet: the last tenth
# of the time that it allows, at most 5 ms, is left for that.
MARGIN = 0.1
MAX_MARGIN_S = 0.005
# How many largest batches ahead an objective looks: what is further will be looked at in its turn.
WINDOW = 4
# Below so many full batches a deadline calls for smaller ones rather than for a shorter queue.
FEW = 4

Finish = Callable[[int], float]
"""When a batch of so many rows would be answered, were it sent now (absolute seconds)."""


class _Bucket(Generic[ItemT]):
    """Requests that may share a batch: a lane for each priority level, in ascending order."""

    __slots__ = ("lanes", "rows")

    def __init__(self) -> None:
        self.lanes: dict[int, Lane[ItemT]] = {}
        self.rows = 0

    def __iter__(self) -> Iterator[ItemT]:
        for lane in self.lanes.values():
            yield from lane


class BatchQueue(Generic[ItemT]):
    """The requests of one model that wait for an instance. `len()` counts requests."""

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._buckets: dict[object, _Bucket[ItemT]] = {}
        self._level_sizes: dict[int, int] = {}
        self._timeouts: DueTimes[ItemT] = DueTimes(lambda item: item.waiting and not item.delayed)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, item: ItemT) -> None:
        """Append an item to its level. Raises `QueueFull` where the level's policy bounds it."""
        level = item.level
        size = self._level_sizes.get(level, 0)
        if 0 < self._policy.queue(level).max_queue_size <= size:
            raise QueueFull("Exceeds maximum queue size")
        bucket = self._buckets.get(item.bucket)
        if bucket is None:
            bucket = self._buckets[item.bucket] = _Bucket()
        lane = bucket.lanes.get(level)
        if lane is None:
            lane = EarliestDeadlineFirst() if self._policy.slo_s else Fifo()
            bucket.lanes[level] = lane
            if len(bucket.lanes) > 1:  # levels are walked in this order: 1 is served before 2
                bucket.lanes = dict(sorted(bucket.lanes.items()))
        lane.add(item)
        bucket.rows += item.rows
        item.waiting = True
        self._level_sizes[level] = size + 1
        self._size += 1
        if item.timeout_s:
            self._timeouts.add(item.queued_at + item.timeout_s, item)

    def hopeless(self, item: ItemT, now: float, last_cut: float, batch_s: float, runs: int) -> bool:
        """Whether, behind all that wait already, an item would be answered after its deadline.

        A full batch takes `batch_s`, `runs` of them run at a time, the last since `last_cut`. Says
        so only where it is known who goes before whom, and never of an item that the next batch may
        hold: `refuse` looks at that, and makes batches smaller where a deadline is as short as a
        few full ones. One batch more is counted, for those that take longer than expected: who is
        let in should not be refused in the end.
        """
        policy = self._policy
        if policy.slo_s or policy.priority_levels or item.deadline < now + FEW * batch_s:
            return False
        rows = sum(bucket.rows for bucket in self._buckets.values())
        before = rows // policy.max_batch_size if policy.dynamic else self._size
        end = max(now, last_cut + batch_s) + (before / max(1, runs) + 2) * batch_s
        return before > 0 and end > _latest(item, item.deadline)

    def discard(self, item: ItemT) -> None:
        """Take out an item whose caller has gone. Does nothing if it has left already."""
        if item.waiting:
            self._leave(item)

    def clear(self) -> list[ItemT]:
        """Take out and return every item."""
        items = [item for bucket in self._buckets.values() for item in bucket]
        for item in items:
            self._leave(item)
        return items

    def expire(self, now: float) -> list[ItemT]:
        """Take out and return the items whose queue timeout has passed and whose policy rejects.

        Items whose policy delays move behind the unexpired ones of their level, once.
        """
        rejected: list[ItemT] = []
        for item in self._timeouts.pop_due(now):
            if self._policy.queue(item.level).timeout_action is TimeoutAction.REJECT:
                self._leave(item)
                rejected.append(item)
            else:
                self._lane(item).delay(item)
        return rejected

    def next_expiry(self) -> float:
        """Return when `expire` next has something to do; or inf."""
        return self._timeouts.next()

    def refuse(self, now: float, finish: Finish) -> list[ItemT]:
        """Take out and return the items that cannot make their deadlines any more.

        Looked at are those that the next batch would hold, and those that move up for them. With a
        latency objective, items that miss it, but not their deadline, go behind the others.
        """
        refused: list[ItemT] = []
        for bucket in list(self._buckets.values()):
            while late := self._late(bucket, now, finish):
                for item, needed in late:
                    if item.delayed or _latest(item, item.deadline) < needed:
                        self._leave(item)
                        refused.append(item)
                    else:
                        self._lane(item).delay(item)
                if not bucket.lanes:
                    break
        return refused

    def _late(
        self, bucket: _Bucket[ItemT], now: float, finish: Finish
    ) -> list[tuple[ItemT, float]]:
        """Return members of the next batch for which it is too slow, and when it would end.

        As few as can be: each that leaves makes the batch of the others faster. One that is alone
        in its batch, or whose batch will be as small as it must, is held against its own rows.
        """
        policy = self._policy
        batch: list[ItemT] = []
        rows = 0
        for item in bucket:
            batch.append(item)
            rows += item.rows
            if rows >= policy.max_batch_size or not policy.dynamic:
                break
        if not policy.dynamic or (policy.slo_s and not self._crowded(bucket, now, finish)):
            return [(one, end) for one in batch if _must_end(one) < (end := finish(one.rows))]
        late: list[tuple[ItemT, float]] = []
        left = bucket.rows
        for item in sorted(batch, key=_must_end):
            end = finish(min(left, policy.max_batch_size))
            if _must_end(item) >= end:
                break
            late.append((item, end))
            left -= item.rows
        return late

    def _crowded(self, bucket: _Bucket[ItemT], now: float, finish: Finish) -> bool:
        """Whether batches that the head can bear would be too slow for those behind it.

        Then a few are given up rather than all (the early drop of Nexus, SOSP 2019).
        """
        most = self._policy.max_batch_size
        window = [item for item in islice(bucket, WINDOW * most) if not item.delayed]
        window = [item for item in window if _must_end(item) >= finish(item.rows)]
        if not window:
            return False
        limit, borne = _must_end(window[0]), 0
        for item in window:
            if borne and finish(borne + item.rows) > limit:
                break
            borne += item.rows
        behind = sum(item.rows for item in window) / borne
        drained_at = now + behind * (finish(borne) - now)
        return borne < min(bucket.rows, most) and drained_at > _must_end(window[-1])

    def cut(self, now: float, finish: Finish) -> list[ItemT]:
        """Take out and return the batch to send now; empty when it is better to wait.

        Of several buckets with a batch to send, the one whose head has the highest priority goes
        first, then the one whose head has waited longest.
        """
        best: list[ItemT] = []
        best_rank = (math.inf, math.inf)
        for bucket in self._buckets.values():
            batch = self._form(bucket, now, finish)
            if batch and (rank := (batch[0].level, batch[0].queued_at)) < best_rank:
                best, best_rank = batch, rank
        for item in best:
            self._leave(item)
        return best

    def ready_at(self, now: float, finish: Finish) -> float:
        """Return when `cut` or `expire` next has something to do, if nothing arrives; or inf."""
        due = self.next_expiry()
        for bucket in self._buckets.values():
            if self._form(bucket, now, finish):
                return now
            oldest = min(item.queued_at for item in bucket)
            due = min(due, oldest + self._policy.max_delay_s)
        return due

    def _form(self, bucket: _Bucket[ItemT], now: float, finish: Finish) -> list[ItemT]:
        if not self._policy.dynamic:
            return [next(iter(bucket))]
        if self._policy.slo_s:
            return self._form_in_time(bucket, finish)
        return self._form_by_rules(bucket, now)

    def _form_by_rules(self, bucket: _Bucket[ItemT], now: float) -> list[ItemT]:
        """Walk one bucket from its head by Triton's rules; return what to send, or nothing yet."""
        policy = self._policy
        batch: list[ItemT] = []
        rows = marked = 0
        oldest = math.inf
        stopped = False
        for item in bucket:
            if batch and rows + item.rows > policy.max_batch_size:
                stopped = True
                break
            batch.append(item)
            rows += item.rows
            if item.queued_at < oldest:
                oldest = item.queued_at
            if rows in policy.preferred:
                marked = len(batch)
        delay = policy.max_delay_s
        exceeded = delay > 0.0 and now >= oldest + delay - EPSILON_S
        if marked and not exceeded:
            return batch[:marked]
        if stopped or rows >= policy.preferred[-1] or delay == 0.0 or exceeded:
            return batch
        return []

    def _form_in_time(self, bucket: _Bucket[ItemT], finish: Finish) -> list[ItemT]:
        """Return the largest batch with which no member misses the objective for the others."""
        batch: list[ItemT] = []
        rows = 0
        limit = math.inf
        for item in bucket:
            grown = rows + item.rows
            if batch and (grown > self._policy.max_batch_size or finish(grown) > limit):
                break
            batch.append(item)
            rows = grown
            if not item.delayed:
                limit = min(limit, _must_end(item))
        return batch

    def _lane(self, item: ItemT) -> Lane[ItemT]:
        return self._buckets[item.bucket].lanes[item.level]

    def _leave(self, item: ItemT) -> None:
        item.waiting = False
        self._size -= 1
        self._level_sizes[item.level] -= 1
        bucket = self._buckets[item.bucket]
        bucket.rows -= item.rows
        lane = bucket.lanes[item.level]
        lane.remove(item)
        if not len(lane):
            del bucket.lanes[item.level]
            if not bucket.lanes:
                del self._buckets[item.bucket]


def _must_end(item: Item) -> float:
    """Return when a batch with this item must end: by its objective, or once missed, deadline."""
    return _latest(item, item.deadline if item.delayed else item.slo_at)


def _latest(item: Item, due: float) -> float:
    """Return when the model must answer, for the client to have it by `due`."""
    return due - min(MAX_MARGIN_S, MARGIN * (due - item.queued_at))
