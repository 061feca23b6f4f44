"""The batching rules themselves: a queue, a time, and what is cut."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.batching.batch_queue import BatchQueue, Item
from gateway.core import BatchPolicy, QueuePolicy, TimeoutAction
from gateway.errors import QueueFull
from tests.gateway.fakes import dynamic


def item(
    name: str = "", rows: int = 1, at: float = 0.0, level: int = 0, timeout_s: float = 0.0
) -> Item[str]:
    bucket = name.partition("/")[0] if "/" in name else ""
    return Item(name, rows, bucket, at, math.inf, level, timeout_s)


def queue(policy: BatchPolicy, *items: Item[str]) -> BatchQueue[str]:
    made: BatchQueue[str] = BatchQueue(policy)
    for one in items:
        made.push(one)
    return made


def names(batch: list[Item[str]]) -> str:
    return " ".join(one.payload for one in batch)


def test_sizes_count_rows_and_nothing_is_skipped() -> None:
    waiting = queue(dynamic(8), item("a", 5), item("b", 4), item("c", 1))
    assert names(waiting.cut(0)) == "a"  # b does not fit, so c may not overtake it
    assert names(waiting.cut(0)) == "b c"
    assert waiting.cut(0) == []


def test_largest_preferred_size_is_sent_while_the_delay_lasts() -> None:
    policy = dynamic(8, 1.0, 2, 4)
    waiting = queue(policy, *(item(name) for name in "abcde"))
    assert names(waiting.cut(0.5)) == "a b c d"
    assert waiting.cut(0.5) == []
    assert waiting.ready_at(0.5) == 1.0
    assert names(waiting.cut(1.0)) == "e"


def test_when_the_delay_has_passed_everything_goes_even_off_a_preferred_size() -> None:
    waiting = queue(dynamic(8, 1.0, 2, 4), *(item(name) for name in "abcde"))
    assert names(waiting.cut(1.0)) == "a b c d e"


def test_without_delay_a_preferred_size_is_kept_and_the_rest_follows() -> None:
    waiting = queue(dynamic(8, 0.0, 4), *(item(name) for name in "abcde"))
    assert names(waiting.cut(0)) == "a b c d"
    assert names(waiting.cut(0)) == "e"


def test_batch_that_cannot_grow_does_not_wait() -> None:
    waiting = queue(dynamic(8, 1.0), item("a", 5), item("b", 4))
    assert waiting.ready_at(0) == 0
    assert names(waiting.cut(0)) == "a"
    assert waiting.ready_at(0) == 1.0


def test_size_at_or_above_the_largest_preferred_one_does_not_wait() -> None:
    waiting = queue(dynamic(8, 1.0, 2), item("a", 3))
    assert names(waiting.cut(0)) == "a"


def test_without_dynamic_batching_every_request_is_its_own_batch() -> None:
    waiting = queue(BatchPolicy(max_batch_size=8), item("a", 2), item("b", 2))
    assert names(waiting.cut(0)) == "a"
    assert names(waiting.cut(0)) == "b"


def test_buckets_wait_side_by_side_and_the_oldest_head_goes_first() -> None:
    waiting = queue(
        dynamic(2), item("x/1", at=0), item("y/1", at=1), item("x/2", at=2), item("y/2", at=3)
    )
    assert names(waiting.cut(4)) == "x/1 x/2"
    assert names(waiting.cut(4)) == "y/1 y/2"


def test_levels_are_walked_in_order_and_share_a_batch() -> None:
    policy = BatchPolicy(3, True, (3,), priority_levels=2, default_level=2)
    waiting = queue(policy, item("a", level=2), item("b", level=1), item("c", level=2))
    assert names(waiting.cut(0)) == "b a c"


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
    assert names(waiting.cut(99)) == "behind"
    assert names(waiting.cut(99)) == "delayed"


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


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 6), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("discard"), st.integers(0, 20)),
        st.tuples(st.just("cut"), st.floats(0, 3)),
    ),
    max_size=40,
)


@given(steps, st.sampled_from([0.0, 1.0]), st.sampled_from([(6,), (2, 4), (1,)]))
def test_every_item_leaves_exactly_once_and_no_batch_breaks_the_rules(
    story: list[tuple[object, ...]], delay_s: float, preferred: tuple[int, ...]
) -> None:
    policy = BatchPolicy(
        max_batch_size=6,
        dynamic=True,
        preferred=preferred,
        max_delay_s=delay_s,
        default_queue=QueuePolicy(TimeoutAction.DELAY),
    )
    waiting: BatchQueue[str] = BatchQueue(policy)
    inside: list[Item[str]] = []
    now = 0.0
    for step in story:
        match step:
            case ("push", int(rows), int(bucket), int(timeout_s)):
                one = item(f"{bucket}/x", rows, now, timeout_s=timeout_s)
                waiting.push(one)
                inside.append(one)
            case ("discard", int(index)) if inside:
                waiting.discard(inside.pop(index % len(inside)))
            case ("cut", float(later)):
                now += later
                assert waiting.expire(now) == []
                due = waiting.ready_at(now)
                batch = waiting.cut(now)
                # it says when there is something to do, and then there is
                assert bool(batch) == (due <= now)
                assert sum(one.rows for one in batch) <= 6
                assert len({one.bucket for one in batch}) <= 1
                for one in batch:
                    inside.remove(one)
        assert len(waiting) == len(inside)
    while inside:
        now += 10.0
        waiting.expire(now)
        batch = waiting.cut(now)
        assert batch, "nothing was cut though items wait and every delay has passed"
        for one in batch:
            inside.remove(one)
    assert len(waiting) == 0
    assert waiting.ready_at(now) == math.inf
