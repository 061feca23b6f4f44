"""When a bar passes, is missed, or says nothing."""

from benchmarks.bars import Bar, Outcome

AT_LEAST_TWICE = Bar("a / fastest", "a", ("b", "c"), 2.0)


def test_the_ratio_is_taken_round_by_round() -> None:
    # The machine was half as fast in the second round: both lost, the ratio did not.
    rounds = {"a": [600.0, 300.0, 500.0], "b": [1000.0, 500.0, 1000.0]}
    outcome = Bar("a / b", "a", ("b",), 0.6).judge("row", rounds, {})
    assert (outcome.measured, outcome.verdict) == (0.6, "passed")


def test_the_hardest_of_several_counts() -> None:
    rounds = {"a": [30.0], "b": [10.0], "c": [20.0]}
    outcome = AT_LEAST_TWICE.judge("row", rounds, {})
    assert (outcome.measured, outcome.verdict) == (1.5, "missed")


def test_a_bar_with_an_absent_peer_never_passes_and_says_why() -> None:
    outcome = AT_LEAST_TWICE.judge("row", {"a": [30.0], "b": [10.0]}, {"c": "not installed"})
    assert outcome.verdict == "not measured"
    assert outcome.note == "c: not installed"


def test_a_bar_that_is_missed_already_is_missed_whoever_is_absent() -> None:
    outcome = AT_LEAST_TWICE.judge("row", {"a": [15.0], "b": [10.0]}, {"c": "not installed"})
    assert outcome.verdict == "missed"


def test_a_latency_may_be_at_most_the_limit() -> None:
    bar = Bar("p50", "a", ("b",), 1.6, at_least=False)
    assert bar.judge("row", {"a": [1.5], "b": [1.0]}, {}).verdict == "passed"
    assert bar.judge("row", {"a": [1.7], "b": [1.0]}, {}).verdict == "missed"


def test_a_gateway_without_a_valid_run_misses_its_bar() -> None:
    outcome = Outcome("row", "claim", 1.0, True, None, "an answer was wrong", broken=True)
    assert outcome.verdict == "missed"
