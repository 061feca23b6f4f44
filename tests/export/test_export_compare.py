import math
from typing import Any

import numpy as np
import pytest

from export.compare import Deviation, compare
from export.dtypes import NUMPY
from export.tensors import OutputSpec


def output(**fields: Any) -> OutputSpec:
    return OutputSpec.model_validate({"name": "y", "dtype": "FP32", "dims": [2], **fields})


def compared(expected: Any, actual: Any, dtype: str = "FP32", **fields: Any) -> Deviation:
    want, got = (np.array(values, NUMPY[dtype]) for values in (expected, actual))
    return compare(output(dtype=dtype, **fields), {"batch": 7}, want, got)


def test_a_miss_names_output_tolerance_size_and_excess() -> None:
    miss = compared([[1.0, 2.0]], [[1.0, 2.5]], atol=0.1, rtol=0.05).miss

    assert miss is not None
    assert miss.startswith("output 'y' misses atol 0.1, rtol 0.05 at batch size 7: ")
    assert "|error| 0.5 where 0.2 is allowed, 0.3 too much, at index [0, 1]" in miss
    assert "(PyTorch 2, file 2.5; 1 of 2 values miss)" in miss


def test_the_largest_errors_are_reported_within_the_tolerance() -> None:
    deviation = compared([1.0, 4.0], [1.001, 4.0], atol=0.01, rtol=0.0)

    assert deviation.miss is None
    assert deviation.max_abs == pytest.approx(0.001, rel=1e-3)
    assert deviation.max_rel == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("expected", "actual", "says"),
    [
        ([1.0, math.nan], [1.0, 2.0], "the file has 0 NaN, 0 inf, PyTorch 1 NaN, 0 inf"),
        ([1.0, 2.0], [1.0, math.inf], "the file has 0 NaN, 1 inf, PyTorch 0 NaN, 0 inf"),
        ([math.inf, 2.0], [-math.inf, 2.0], "NaN and infinity differ"),
        ([1.0, 2.0], [[1.0, 2.0]], r"the file gives shape \[1, 2\], PyTorch \[2\]"),
    ],
)
def test_what_no_tolerance_can_excuse_is_a_miss(expected: Any, actual: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert compared(expected, actual).miss is None


def test_equal_nan_and_infinity_are_parity() -> None:
    values = [math.nan, math.inf, -math.inf, 1.0]

    assert compared(values, values).miss is None


def test_another_dtype_is_a_miss() -> None:
    deviation = compare(output(), {}, np.zeros(2, "float32"), np.zeros(2, "float64"))

    assert deviation.miss == "output 'y': the file gives float64, PyTorch float32"


def test_integers_and_booleans_have_to_be_equal() -> None:
    assert compared([2**60], [2**60 + 1], "INT64").miss is not None
    assert compared([True, False], [True, True], "BOOL").miss is not None
    assert compared([2**60], [2**60], "INT64").miss is None


def test_a_rank_0_or_empty_output_is_compared() -> None:
    assert compared(1.0, 1.0).miss is None
    assert compared(1.0, 2.0).miss is not None
    assert compared([], []).miss is None
