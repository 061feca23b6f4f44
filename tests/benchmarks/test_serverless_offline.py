"""The trace and the policies that the gateway's hit rate is held against."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np

from benchmarks.serverless_offline import belady_hits, lru_hits, poisson, popular_hits, zipf


def best_hits(trace: tuple[int, ...], slots: int) -> int:
    """Return the most hits that any choice of victims gives, by trying all."""

    @cache
    def best(index: int, held: frozenset[int]) -> int:
        if index == len(trace):
            return 0
        model = trace[index]
        if model in held:
            return 1 + best(index + 1, held)
        if len(held) < slots:
            return best(index + 1, held | {model})
        return max(best(index + 1, held - {victim} | {model}) for victim in held)

    return best(0, frozenset())


def test_no_choice_of_victims_hits_more_often_than_belady() -> None:
    for seed in range(30):
        trace = tuple(np.random.default_rng(seed).integers(0, 6, 14).tolist())
        assert belady_hits(trace, 3) == best_hits(trace, 3)


def test_who_was_used_longest_ago_makes_way() -> None:
    assert lru_hits([1, 2, 1, 3, 1, 2], 2) == 2  # the second and the third 1; 2 made way for 3
    assert lru_hits([1, 2, 3, 1, 2, 3], 2) == 0
    assert belady_hits([1, 2, 3, 1, 2, 3], 2) == 2


def test_with_room_for_all_each_model_misses_once() -> None:
    trace = zipf(50, 1000, 7).tolist()
    assert lru_hits(trace, 50) == belady_hits(trace, 50) == 1000 - len(set(trace))


def test_zipf_trace_asks_for_model_k_one_kth_as_often_as_for_the_first() -> None:
    counts = np.bincount(zipf(1000, 200_000, 3), minlength=1000)
    for k in (2, 4, 10):
        assert abs(counts[k - 1] * k / counts[0] - 1) < 0.1


def test_a_seed_gives_one_trace() -> None:
    assert np.array_equal(zipf(100, 500, 1), zipf(100, 500, 1))
    assert not np.array_equal(zipf(100, 500, 1), zipf(100, 500, 2))
    due_s = poisson(150.0, 9000, 1)
    assert all(before < after for before, after in itertools.pairwise(due_s))
    assert abs(due_s[-1] - 60) < 3


def test_to_know_the_popular_ones_beats_lru_and_not_belady() -> None:
    trace = zipf(1000, 9000, 5).tolist()
    assert lru_hits(trace, 20) < popular_hits(trace, 20) < belady_hits(trace, 20)
    assert popular_hits([0, 1, 5, 5, 6, 1, 5], 3) == 2  # the second 5, the second 1
