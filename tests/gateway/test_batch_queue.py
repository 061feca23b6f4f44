"""The batching rules themselves: a queue, a time, and what is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.batch_queue import BatchQueue, Finish
from gateway.batching.lane import Item
from gateway.core import BatchPolicy, QueuePolicy, TimeoutAction
from gateway.errors import QueueFull
from tests.gateway.fakes import dynamic


@dataclass(slots=True, eq=False)
class Named(Item):
    name: str


def item(
    name: str = "",
    rows: int = 1,
    at: float = 0.0,
    level: int = 0,
    timeout_s: float = 0.0,
    deadline: float = math.inf,
    slo_s: float = math.inf,
) -> Named:
    bucket = name.partition("/")[0] if "/" in name else ""
    return Named(rows, bucket, at, deadline, level, timeout_s, min(deadline, at + slo_s), name)


def queue(policy: BatchPolicy, *items: Named) -> BatchQueue[Named]:
    made: BatchQueue[Named] = BatchQueue(policy)
    for one in items:
        made.push(one)
    return made


def names(batch: list[Named]) -> str:
    return " ".join(one.name for one in batch)


def takes(seconds: float, now: float = 0.0, each: float = 0.0) -> Finish:
    """A model whose batches take so long, and so much more for each row."""
    return lambda rows: now + seconds + each * rows


AT_ONCE = takes(-math.inf)  # whatever is sent is answered in time


def cut(waiting: BatchQueue[Named], now: float) -> list[Named]:
    return waiting.cut(now, AT_ONCE)


def ready_at(waiting: BatchQueue[Named], now: float) -> float:
    return waiting.ready_at(now, AT_ONCE)


def test_sizes_count_rows_and_nothing_is_skipped() -> None:
    waiting = queue(dynamic(8), item("a", 5), item("b", 4), item("c", 1))
    assert names(cut(waiting, 0)) == "a"  # b does not fit, so c may not overtake it
    assert names(cut(waiting, 0)) == "b c"
    assert cut(waiting, 0) == []


def test_largest_preferred_size_is_sent_while_the_delay_lasts() -> None:
    policy = dynamic(8, 1.0, 2, 4)
    waiting = queue(policy, *(item(name) for name in "abcde"))
    assert names(cut(waiting, 0.5)) == "a b c d"
    assert cut(waiting, 0.5) == []
    assert ready_at(waiting, 0.5) == 1.0
    assert names(cut(waiting, 1.0)) == "e"


def test_when_the_delay_has_passed_everything_goes_even_off_a_preferred_size() -> None:
    waiting = queue(dynamic(8, 1.0, 2, 4), *(item(name) for name in "abcde"))
    assert names(cut(waiting, 1.0)) == "a b c d e"


def test_without_delay_a_preferred_size_is_kept_and_the_rest_follows() -> None:
    waiting = queue(dynamic(8, 0.0, 4), *(item(name) for name in "abcde"))
    assert names(cut(waiting, 0)) == "a b c d"
    assert names(cut(waiting, 0)) == "e"


def test_batch_that_cannot_grow_does_not_wait() -> None:
    waiting = queue(dynamic(8, 1.0), item("a", 5), item("b", 4))
    assert ready_at(waiting, 0) == 0
    assert names(cut(waiting, 0)) == "a"
    assert ready_at(waiting, 0) == 1.0


def test_size_at_or_above_the_largest_preferred_one_does_not_wait() -> None:
    waiting = queue(dynamic(8, 1.0, 2), item("a", 3))
    assert names(cut(waiting, 0)) == "a"


def test_without_dynamic_batching_every_request_is_its_own_batch() -> None:
    waiting = queue(BatchPolicy(max_batch_size=8), item("a", 2), item("b", 2))
    assert names(cut(waiting, 0)) == "a"
    assert names(cut(waiting, 0)) == "b"


def test_buckets_wait_side_by_side_and_the_oldest_head_goes_first() -> None:
    waiting = queue(
        dynamic(2), item("x/1", at=0), item("y/1", at=1), item("x/2", at=2), item("y/2", at=3)
    )
    assert names(cut(waiting, 4)) == "x/1 x/2"
    assert names(cut(waiting, 4)) == "y/1 y/2"


def test_levels_are_walked_in_order_and_share_a_batch() -> None:
    policy = BatchPolicy(3, True, (3,), priority_levels=2, default_level=2)
    waiting = queue(policy, item("a", level=2), item("b", level=1), item("c", level=2))
    assert names(cut(waiting, 0)) == "b a c"


def test_expired_items_leave_or_go_behind_as_their_policy_says() -> None:
    delays = QueuePolicy(TimeoutAction.DELAY)
    policy = BatchPolicy(
        1, True, (1,), priority_levels=2, default_level=1, level_queues={2: delays}
    )
    waiting = queue(
        policy,
        item("rejected", timeout_s=1.0, level=1),
        item("delayed", timeout_s=1.0, level=2),
        item("behind", at=0.5, level=2),
    )
    assert waiting.next_expiry() == 1.0
    assert waiting.expire(0.99) == []
    assert names(waiting.expire(1.0)) == "rejected"
    assert len(waiting) == 2
    assert waiting.next_expiry() == math.inf
    assert waiting.expire(99) == []
    assert names(cut(waiting, 99)) == "behind"
    assert names(cut(waiting, 99)) == "delayed"


def test_bound_counts_the_requests_of_one_level_over_all_buckets() -> None:
    bounded = QueuePolicy(max_queue_size=2)
    policy = BatchPolicy(8, True, (8,), priority_levels=2, default_level=1, default_queue=bounded)
    first = item("x/1", level=1)
    waiting = queue(policy, first, item("y/1", level=1))
    with pytest.raises(QueueFull):
        waiting.push(item("z/1", level=1))
    waiting.push(item("z/1", level=2))
    waiting.discard(first)
    waiting.push(item("z/2", level=1))


def test_request_that_cannot_make_its_deadline_is_refused_before_it_costs_a_slot() -> None:
    waiting = queue(
        dynamic(2),
        item("late", deadline=1.0),
        item("a", deadline=9.0),
        item("too close", deadline=2.0),  # what is left of it is needed for the way back
        item("b", deadline=9.0),
        item("not looked at yet", deadline=1.0),
    )
    assert names(waiting.refuse(0.0, takes(2.0))) == "late too close"
    assert names(waiting.cut(0, takes(2.0))) == "a b"
    assert len(waiting) == 1


def test_nothing_is_refused_while_the_model_is_fast_enough() -> None:
    waiting = queue(dynamic(8), *(item(name, deadline=1.0) for name in "abc"))
    assert waiting.refuse(0.0, takes(0.9)) == []


def test_request_alone_in_its_batch_is_judged_by_its_own_rows() -> None:
    waiting = queue(
        BatchPolicy(max_batch_size=8), item("a", 2, deadline=0.5), item("b", 8, deadline=0.5)
    )
    assert waiting.refuse(0.0, takes(0.0, each=0.1)) == []
    assert names(cut(waiting, 0)) == "a"
    assert names(waiting.refuse(0.0, takes(0.0, each=0.1))) == "b"


def hopeless(waiting: BatchQueue[Named], deadline: float, runs: int = 1) -> bool:
    """Whether one that comes now is, where a batch takes 1 s and the last was cut 0.5 s ago."""
    return waiting.hopeless(item("new", at=10.0, deadline=deadline), 10.0, 9.5, 1.0, runs)


def test_request_behind_too_many_is_hopeless_before_it_waits() -> None:
    waiting = queue(dynamic(4), *(item(name) for name in "abcdefgh"))
    # what runs, two batches, its own, and one more than expected: 4.5 s
    assert hopeless(waiting, 14.4)
    assert not hopeless(waiting, 14.6)
    assert not hopeless(waiting, 14.4, runs=2)
    alone = queue(BatchPolicy(), item("a"), item("b"))
    assert hopeless(alone, 14.4)
    assert not hopeless(alone, 14.6)


def test_request_that_the_next_batch_may_hold_is_never_hopeless() -> None:
    assert not hopeless(queue(dynamic(4), *(item(name) for name in "abc")), 10.1)
    assert not hopeless(queue(dynamic(64), *(item(name) for name in "abc")), 14.4)


def test_deadline_as_short_as_a_few_batches_is_left_to_smaller_ones() -> None:
    assert not hopeless(queue(dynamic(1), *(item(name) for name in "abcdefgh")), 13.9)
    assert hopeless(queue(dynamic(1), *(item(name) for name in "abcdefgh")), 14.1)


def test_request_is_never_hopeless_where_it_may_overtake() -> None:
    full = [item(name) for name in "abcdefgh"]
    assert not hopeless(queue(BatchPolicy(4, True, (4,), slo_s=1.0), *full), 14.4)
    assert not hopeless(queue(BatchPolicy(4, True, (4,), priority_levels=2), *full), 14.4)


def slo(*preferred: int) -> BatchPolicy:
    return BatchPolicy(8, True, preferred or (8,), slo_s=1.0)


def test_with_an_objective_the_earliest_deadline_is_served_first() -> None:
    waiting = queue(
        slo(),
        item("a", 4, slo_s=1.0),
        item("b", 4, slo_s=1.0, deadline=0.5),
        item("c", 4, slo_s=1.0, deadline=0.7),
    )
    assert names(cut(waiting, 0)) == "b c"
    assert names(cut(waiting, 0)) == "a"


def test_with_an_objective_a_batch_grows_only_as_far_as_its_head_can_bear() -> None:
    later = (item(name, slo_s=9.0) for name in "bcdef")
    waiting = queue(slo(), item("a", slo_s=1.0), *later)
    finish = takes(0.0, each=0.3)
    assert waiting.refuse(0.0, finish) == []
    assert names(waiting.cut(0, finish)) == "a b c"  # 0.9 s; four would take 1.2 s


def test_with_an_objective_a_few_are_given_up_where_small_batches_would_fail_the_rest() -> None:
    # a batch takes 0.5 s whatever its size, and a little more for each row: one at a time would
    # save the first and fail most of the others
    others = [item(str(number), deadline=1.2, slo_s=1.2) for number in range(8)]
    waiting = queue(slo(), item("first", deadline=0.6, slo_s=0.6), *others)
    finish = takes(0.45, each=0.05)
    assert names(waiting.refuse(0.0, finish)) == "first"
    assert len(waiting.cut(0, finish)) == 8


def test_request_that_misses_the_objective_but_not_its_deadline_goes_behind_the_others() -> None:
    waiting = queue(slo(), item("missed", slo_s=1.0), item("a", at=0.6, slo_s=1.0))
    finish = takes(0.6, now=0.6)
    assert waiting.refuse(0.0, finish) == []
    assert names(waiting.cut(0.6, finish)) == "a missed"
    assert len(waiting) == 0


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.integers(1, 6),
            st.integers(0, 2),
            st.integers(1, 2),
            st.integers(0, 3),
        ),
        st.tuples(st.just("discard"), st.integers(0, 20)),
        st.tuples(st.just("cut"), st.floats(0, 3)),
    ),
    max_size=40,
)


class Plain:
    """The rules of docs and protocol, written down without a thought for speed."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.fresh: list[Named] = []
        self.delayed: list[Named] = []

    @property
    def waiting(self) -> list[Named]:
        return [*self.fresh, *self.delayed]

    def remove(self, one: Named) -> None:
        (self.fresh if one in self.fresh else self.delayed).remove(one)

    def expire(self, now: float) -> list[Named]:
        expired = [
            one for one in self.fresh if one.timeout_s and one.queued_at + one.timeout_s <= now
        ]
        expired.sort(key=lambda one: one.queued_at + one.timeout_s)
        rejected = []
        for one in expired:
            self.fresh.remove(one)
            if self.policy.queue(one.level).timeout_action is TimeoutAction.REJECT:
                rejected.append(one)
            else:
                self.delayed.append(one)
        return rejected

    def form(self, bucket: object, now: float) -> list[Named]:
        order = [
            one
            for level in (1, 2)
            for part in (self.fresh, self.delayed)
            for one in part
            if one.level == level and one.bucket == bucket
        ]
        batch: list[Named] = []
        largest_marked: list[Named] = []
        stopped = False
        for one in order:
            if sum(b.rows for b in batch) + one.rows > self.policy.max_batch_size:
                stopped = True
                break
            batch.append(one)
            if sum(b.rows for b in batch) in self.policy.preferred:
                largest_marked = list(batch)
        if not batch:
            return []
        delay = self.policy.max_delay_s
        exceeded = delay > 0 and now >= min(one.queued_at for one in batch) + delay
        if not exceeded and largest_marked:
            return largest_marked
        size = sum(b.rows for b in batch)
        if stopped or size >= max(self.policy.preferred) or delay == 0 or exceeded:
            return batch
        return []

    def cut(self, now: float) -> list[Named]:
        formed = [self.form(bucket, now) for bucket in {one.bucket for one in self.waiting}]
        ready = [batch for batch in formed if batch]
        best = min(ready, key=lambda b: (b[0].level, b[0].queued_at), default=[])
        for one in best:
            self.remove(one)
        return best


@given(
    steps,
    st.sampled_from([0.0, 1.0]),
    st.sampled_from([(6,), (2, 4), (1,)]),
    st.sampled_from(TimeoutAction),
)
def test_every_item_leaves_once_and_every_batch_is_the_one_that_the_rules_make(
    story: list[tuple[object, ...]],
    delay_s: float,
    preferred: tuple[int, ...],
    action: TimeoutAction,
) -> None:
    policy = BatchPolicy(
        max_batch_size=6,
        dynamic=True,
        preferred=preferred,
        max_delay_s=delay_s,
        priority_levels=2,
        default_level=2,
        default_queue=QueuePolicy(action),
        level_queues={1: QueuePolicy(TimeoutAction.DELAY)},
    )
    waiting: BatchQueue[Named] = BatchQueue(policy)
    plain = Plain(policy)
    # times are whole quarters and no two items come at once: what is earlier is beyond doubt
    now = 0.0
    for step in story:
        match step:
            case ("push", int(rows), int(bucket), int(level), int(timeout_s)):
                now += 0.25
                one = item(f"{bucket}/x", rows, now, level, timeout_s)
                waiting.push(one)
                plain.fresh.append(one)
            case ("discard", int(index)) if plain.waiting:
                gone = plain.waiting[index % len(plain.waiting)]
                plain.remove(gone)
                waiting.discard(gone)
            case ("cut", float(later)):
                now += round(later * 4) / 4
                timeouts = [one.queued_at + one.timeout_s for one in plain.fresh if one.timeout_s]
                assert waiting.next_expiry() == min(timeouts, default=math.inf)
                assert waiting.expire(now) == plain.expire(now)
                due = ready_at(waiting, now)
                batch = cut(waiting, now)
                # it says when there is something to do, and then there is
                assert bool(batch) == (due <= now)
                assert batch == plain.cut(now)
                assert sum(one.rows for one in batch) <= 6
                assert len({one.bucket for one in batch}) <= 1
        assert len(waiting) == len(plain.waiting)
    while plain.waiting:
        now += 10.0
        assert waiting.expire(now) == plain.expire(now)
        batch = cut(waiting, now)
        assert batch == plain.cut(now)
        assert batch or not plain.waiting, "items wait though every delay has passed"
    assert len(waiting) == 0
    assert ready_at(waiting, now) == math.inf


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0.1, 3.0), st.floats(0.0, 1.0)), max_size=30),
    st.floats(0.01, 0.5),
)
def test_with_an_objective_no_batch_makes_a_member_miss_it(
    arrivals: list[tuple[int, float, float]], each: float
) -> None:
    policy = BatchPolicy(8, True, (8,), slo_s=1.0)
    waiting: BatchQueue[Named] = BatchQueue(policy)
    inside: set[Named] = set()
    now = 0.0
    for rows, deadline_s, later in arrivals:
        now += later
        one = item("x", rows, now, deadline=now + deadline_s, slo_s=1.0)
        waiting.push(one)
        inside.add(one)
    while inside:
        finish = takes(0.0, now, each)
        refused = waiting.refuse(now, finish)
        for one in refused:  # alone, or in the largest batch, for the sake of the others
            assert one.deadline - 0.1 * (one.deadline - one.queued_at) < finish(8) + 1e-9
        batch = waiting.cut(now, finish)
        assert batch or refused, "items wait and the instance is free"
        rows = sum(one.rows for one in batch)
        assert rows <= 8
        assert all(finish(rows) <= one.slo_at for one in batch if not one.delayed)
        times = [one.slo_at for one in batch if not one.delayed]
        assert times == sorted(times)
        inside -= {*batch, *refused}
        now += 0.05
    assert len(waiting) == 0
