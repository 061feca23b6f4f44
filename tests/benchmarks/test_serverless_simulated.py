"""The simulated rows measure what they say."""

from __future__ import annotations

import math
from itertools import pairwise

from benchmarks import serverless_day, serverless_decision
from gateway.core import ModelState


def test_a_days_requests_are_spread_as_the_paper_has_them() -> None:
    requests = serverless_day.trace()
    assert all(before <= after for before, after in pairwise(requests))
    assert requests[-1][0] < serverless_day.DAY_S
    counts = sorted(
        sum(1 for _, model in requests if model == each) for each in range(serverless_day.MODELS)
    )
    for share, daily in ((0.45, 24), (0.81, 1440)):
        below = sum(count <= daily for count in counts) / len(counts)
        assert math.isclose(below, share, abs_tol=0.12)


def test_fewest_cold_starts_keep_the_shortest_gaps() -> None:
    requests = [(0.0, 0), (10.0, 0), (15.0, 1), (20.0, 1), (110.0, 0)]
    fewest = serverless_day.fewest_for
    assert [fewest(requests, model_s) for model_s in (0, 5, 15, 114, 115)] == [5, 4, 3, 3, 2]


def test_the_table_of_a_decision_is_full_and_asked_for() -> None:
    snapshot = serverless_decision.table(1000)
    ready = [row for row in snapshot.models if row.state is ModelState.READY]
    assert (len(snapshot.models), len(snapshot.engines), len(ready)) == (1000, 10, 200)
    assert sum(row.waiting > 0 for row in snapshot.models) == 10
    middle, slowest = serverless_decision.decision_ms(1000)
    assert 0 < middle <= slowest
