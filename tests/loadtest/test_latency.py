import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.latency import Latencies

durations = st.lists(st.floats(1e-6, 3600.0), min_size=1, max_size=200)


def recorded(values: list[float]) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.record(value)
    return latencies


@given(durations, st.floats(0.01, 1.0))
def test_a_percentile_is_the_nearest_rank_within_a_quarter_percent(
    values: list[float], fraction: float
) -> None:
    exact = sorted(values)[max(1, math.ceil(round(fraction * len(values), 9))) - 1]
    assert recorded(values).percentile(fraction) == pytest.approx(exact, rel=0.0026)


def test_p50_of_3_2_ms_is_3_2_and_not_3() -> None:
    assert recorded([0.0032] * 9 + [0.1]).summary_ms()["p50"] == pytest.approx(3.2, abs=0.01)


def test_p99_of_a_hundred_is_the_99th_and_not_the_greatest() -> None:
    values = [0.001] * 99 + [1.0]
    assert recorded(values).percentile(0.99) == pytest.approx(0.001, rel=0.003)
    assert recorded(values).percentile(1.0) == 1.0


def test_no_data_is_no_percentile() -> None:
    assert math.isnan(Latencies().percentile(0.5))
    assert Latencies().summary_ms() == {}


def test_memory_does_not_grow_with_the_number_of_durations() -> None:
    latencies = recorded([0.001 * (1 + (n % 1000) / 1000) for n in range(20_000)])
    assert latencies.count == 20_000
    assert len(latencies.buckets) < 150
