"""Which version a request goes to: what the rules of a traffic file promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import StartError
from gateway.traffic import Rule, drawn, parse

versions = st.integers(1, 9)
draws = st.floats(0, 1, exclude_max=True)
weights = st.dictionaries(versions, st.floats(0, 100), min_size=1).map(
    lambda each: tuple(sorted(each.items()))
)


def text(rest: str) -> str:
    return f"[models.m]\nlabels = {{ stable = 3, canary = 4 }}\n{rest}\n"


@given(weights, st.sets(versions), draws)
def test_a_request_goes_to_a_version_that_is_there_and_has_a_share(
    shares: tuple[tuple[int, float], ...], there: set[int], draw: float
) -> None:
    chosen = Rule(weights=shares).choose(draw, there.__contains__)
    if any(weight for version, weight in shares if version in there):
        assert chosen in there
        assert dict(shares)[chosen] > 0
    else:
        assert chosen is None


def test_shares_are_as_the_weights_say() -> None:
    rule = Rule(weights=((1, 90.0), (2, 10.0)))
    chosen = [rule.choose(number / 1000, lambda _: True) for number in range(1000)]
    assert chosen.count(1) == 900
    assert [rule.choose(number / 10, {2}.__contains__) for number in range(10)] == [2] * 10


def test_equal_keys_are_drawn_alike_and_different_ones_evenly() -> None:
    found = [drawn("m", key) for key in range(2000)]
    assert found == [drawn("m", key) for key in range(2000)]
    assert all(0 <= each < 1 for each in found)
    assert 900 < sum(each < 0.5 for each in found) < 1100
    assert drawn("m", 1) != drawn("n", 1)


@pytest.mark.parametrize("weight", [5e-324, 1e12])
def test_a_draw_as_high_as_can_be_finds_a_version(weight: float) -> None:
    assert Rule(weights=((1, weight), (2, weight), (3, 0.0))).choose(1 - 2**-53, bool) == 2


def test_labels_and_numbers_name_versions() -> None:
    rules = parse(text('split = { stable = 1, "7" = 1 }\nshadow = { to = "canary" }'), "t.toml")
    rule = rules["m"]
    assert (rule.weights, rule.shadow, rule.shadow_percent) == (((3, 1.0), (7, 1.0)), 4, 100.0)
    assert [fault.split()[0] for fault in rule.faults({3}.__contains__)] == ["label", "a", "the"]


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("split = { blue = 1 }", "t.toml: models.m.split: 'blue' is neither"),
        ("split = { stable = 0 }", "t.toml: models.m.split: every weight is 0"),
        ("split = { stable = -1 }", "t.toml: models.m.split.stable: .* got -1"),
        ('split = { stable = 1e308, "7" = 1e308 }', "t.toml: models.m.split.stable: .* got 1e.308"),
        ("shadow = { to = 0 }", "t.toml: models.m.shadow.to"),
        ('shadow = { to = "canary", percent = 101 }', "t.toml: models.m.shadow.percent: .* 101"),
        ("colour = 1", "t.toml: models.m.colour: .* not permitted"),
        (f"split = {{ {'1' * 5000} = 1 }}", "t.toml: models.m.split: .* neither"),
        (f"shadow = {{ to = {'1' * 5000} }}", "t.toml: .* digits"),
        (f"a = {'[' * 100_000}", "t.toml: nested too deep"),
        ("[", "t.toml: .*line 3"),
    ],
)
def test_faults_name_the_file_the_model_and_the_key(rest: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        parse(text(rest), "t.toml")


def test_a_label_is_no_number() -> None:
    for label in ("7", "-7"):
        with pytest.raises(StartError, match=f"'{label}' is a number"):
            parse(f"[models.m]\nlabels = {{ {label} = 3 }}", "t.toml")
