"""What the serverless rows make of the calls that clients report."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from benchmarks import serverless
from benchmarks.serverless_client import OK, Calls
from benchmarks.serverless_kill import restarted_s
from benchmarks.serverless_overload import DEADLINE_S, goodput, normal_after_s


def calls(due_s: list[float], took_s: list[float], refused: Collection[int] = ()) -> Calls:
    """Calls of which those numbered in `refused` were refused; all others were answered."""
    due, took = np.array(due_s), np.array(took_s)
    right = np.array([index not in refused for index in range(len(due))])
    status = np.where(right, OK, "DEADLINE_EXCEEDED")
    return Calls(0.0, due, due, due + took, status, right)


def test_goodput_counts_answers_within_the_deadline_only() -> None:
    took_s = [0.1, DEADLINE_S + 0.01, 0.1, 0.1]
    assert goodput(calls([0.0, 0.5, 1.0, 2.5], took_s, {2}), 0.0, 2.0) == pytest.approx(0.5)


def test_latency_is_normal_again_where_two_windows_in_a_row_are_as_before() -> None:
    due_s = [number * 0.1 for number in range(200)]  # overload from 5 to 10 s
    took_s = [0.2 if 5.0 <= due < 11.0 else 0.01 for due in due_s]
    assert normal_after_s(calls(due_s, took_s), 10.0) == pytest.approx(1.0)
    assert normal_after_s(calls(due_s, took_s, {119}), 10.0) == pytest.approx(2.0)
    assert normal_after_s(calls(due_s, [0.01] * 50 + [0.2] * 150), 10.0) == float("inf")


def test_restart_ends_the_longest_silence_after_the_kill() -> None:
    due_s = [0.0, 1.0, 2.0, 2.1, 2.2]
    assert restarted_s(calls(due_s, [0.1, 0.1, 3.0, 2.9, 2.8]), 1.5) == pytest.approx(5.0)


def test_rows_are_chosen_by_name_and_unknown_ones_refused() -> None:
    assert {"cold", "start", "zipf", "hot", "kill", "only", "overload"} <= set(serverless.ROWS)
    with pytest.raises(SystemExit):
        serverless.main(["--rows", "zipf,nonsense"])
