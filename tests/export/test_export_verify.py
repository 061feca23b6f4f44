import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import source, to_onnx, verify
from export.dtypes import NUMPY
from export.errors import ParityError
from export.spec import ExportSpec, OutputSpec

MakeSpec = Callable[..., ExportSpec]


def output(**fields: Any) -> OutputSpec:
    return OutputSpec.model_validate({"name": "y", "dtype": "FP32", "dims": [2], **fields})


def compared(expected: Any, actual: Any, dtype: str = "FP32", **fields: Any) -> verify.Deviation:
    arrays = [np.array(values, NUMPY[dtype]) for values in (expected, actual)]
    return verify.compare(output(dtype=dtype, **fields), {"batch": 7}, *arrays)


def test_a_branch_on_the_batch_size_is_caught_at_another_size(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    loaded = source.load(make_spec(model="zoo.py:branch", name="branch"))
    converted = to_onnx.convert(loaded.model, tmp_path)

    with pytest.raises(ParityError) as error:
        verify.verify(loaded.model, converted.path)

    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == [
        f"output 'y' misses atol 1e-05, rtol 0.001 at batch size {n}" for n in (1, 2, 3)
    ]
    assert "|error| 10 where" in lines[0]
    assert "too much" in lines[0]
    assert "keeps the branch that the example took at batch size 4" in lines[-1]


def test_a_miss_names_output_tolerance_size_and_excess() -> None:
    miss = compared([[1.0, 2.0]], [[1.0, 2.5]], atol=0.1, rtol=0.05).miss

    assert miss is not None
    assert miss.startswith("output 'y' misses atol 0.1, rtol 0.05 at batch size 7: ")
    assert "|error| 0.5 where 0.2 is allowed, 0.3 too much, at index [0, 1]" in miss
    assert "(PyTorch 2, ONNX 2.5; 1 of 2 values miss)" in miss


def test_the_largest_errors_are_reported_within_the_tolerance() -> None:
    deviation = compared([1.0, 4.0], [1.001, 4.0], atol=0.01, rtol=0.0)

    assert deviation.miss is None
    assert deviation.max_abs == pytest.approx(0.001, rel=1e-3)
    assert deviation.max_rel == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("expected", "actual", "says"),
    [
        ([1.0, math.nan], [1.0, 2.0], "ONNX has 0 NaN, 0 inf, PyTorch 1 NaN, 0 inf"),
        ([1.0, 2.0], [1.0, math.inf], "ONNX has 0 NaN, 1 inf, PyTorch 0 NaN, 0 inf"),
        ([math.inf, 2.0], [-math.inf, 2.0], "NaN and infinity differ"),
        ([1.0, 2.0], [[1.0, 2.0]], r"ONNX gives shape \[1, 2\], PyTorch \[2\]"),
    ],
)
def test_what_no_tolerance_can_excuse_is_a_miss(expected: Any, actual: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert compared(expected, actual).miss is None


def test_equal_nan_and_infinity_are_parity() -> None:
    values = [math.nan, math.inf, -math.inf, 1.0]

    assert compared(values, values).miss is None


def test_another_dtype_is_a_miss() -> None:
    deviation = verify.compare(output(), {}, np.zeros(2, "float32"), np.zeros(2, "float64"))

    assert deviation.miss == "output 'y': ONNX gives float64, PyTorch float32"


def test_integers_and_booleans_have_to_be_equal() -> None:
    assert compared([2**60], [2**60 + 1], "INT64").miss is not None
    assert compared([True, False], [True, True], "BOOL").miss is not None
    assert compared([2**60], [2**60], "INT64").miss is None


def test_a_rank_0_or_empty_output_is_compared() -> None:
    assert compared(1.0, 1.0).miss is None
    assert compared(1.0, 2.0).miss is not None
    assert compared([], []).miss is None


def test_a_file_that_onnx_runtime_cannot_open_is_refused(
    make_spec: MakeSpec, tmp_path: Path
) -> None:
    loaded = source.load(make_spec())
    (tmp_path / "model.onnx").write_bytes(b"not a model")

    with pytest.raises(ParityError, match="ONNX Runtime cannot open the file"):
        verify.verify(loaded.model, tmp_path / "model.onnx")
