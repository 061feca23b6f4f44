"""How far one answer is from the trained model's, and whether that is too far. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from export.spec import Sizes
from export.tensors import EXACT, OutputSpec, Tolerance

# A row of fewer values has hardly a direction: those of an output are taken together then.
SHORTEST_ROW: Final = 16
# Integers and booleans of a file in a lower precision (a class, a position) may flip where two
# scores are close: so large a share has to be equal.
EQUAL_SHARE: Final = 0.98


@dataclass(frozen=True)
class Deviation:
    """How far one output is from PyTorch's at one set of sizes."""

    output: str
    sizes: dict[str, int]
    max_abs: float
    max_rel: float
    cosines: tuple[float, ...] = ()  # of each row; () where the output has no direction
    miss: str | None = None  # the sentence, where the tolerance is missed


def compare(
    tensor: OutputSpec,
    sizes: Sizes,
    expected: NDArray[Any],
    actual: NDArray[Any],
    precision: str = "fp32",
    real: bool = True,
) -> Deviation:
    """How far `actual` (the file's answer) is from `expected` (PyTorch's).

    Shapes, dtypes, NaN and infinity are always judged. Random values (`real` false) say nothing
    of an int8 file, whose scales were chosen for real ones: only how far off it is.
    """
    if misfit := _misfit(expected, actual):
        miss = f"output {tensor.name!r}{at(sizes)}: {misfit}"
        return Deviation(tensor.name, dict(sizes), math.inf, math.inf, (), miss)
    expected, actual = np.atleast_1d(expected), np.atleast_1d(actual)
    if expected.size == 0:
        return Deviation(tensor.name, dict(sizes), 0.0, 0.0)
    finite = np.isfinite(expected)
    reference = np.where(finite, expected, 0).astype(np.float64)
    answer = np.where(finite, actual, 0).astype(np.float64)
    error = np.abs(answer - reference)
    # Beyond 2**53 different integers may be one float64.
    error[(error == 0) & (expected != actual) & finite] = 1.0
    relative = np.divide(error, np.abs(reference), out=np.zeros_like(error), where=reference != 0)
    directed = tensor.dtype in EXACT
    deviation = Deviation(
        tensor.name,
        dict(sizes),
        float(error.max()),
        float(relative.max()),
        _cosines(reference, answer) if directed else (),
    )
    if precision == "int8" and not real:
        return deviation
    tolerance = tensor.tolerance(precision)
    if precision != "fp32" and not directed and tolerance == Tolerance():
        return replace(deviation, miss=_flipped(tensor, sizes, error))
    return replace(
        deviation,
        miss=_strayed(tensor, sizes, tolerance, reference, answer, error)
        or _turned(tensor, sizes, tolerance, deviation.cosines),
    )


def at(sizes: Sizes) -> str:
    """Phrase for `sizes` in a message: " at batch size 3, seq 11"."""
    words = [f"{'batch size' if name == 'batch' else name} {n}" for name, n in sizes.items()]
    return " at " + ", ".join(words) if words else ""


def mean_cosine(deviations: Sequence[Deviation]) -> float:
    """Over all rows of all checks; 1.0 where an output has no direction."""
    cosines = [cosine for deviation in deviations for cosine in deviation.cosines]
    return float(np.mean(cosines)) if cosines else 1.0


def _cosines(reference: NDArray[Any], answer: NDArray[Any]) -> tuple[float, ...]:
    """Cosine of the angle between each two rows; rows of zeros only agree with each other."""
    rows = reference.shape[0] if reference.size // reference.shape[0] >= SHORTEST_ROW else 1
    a, b = reference.reshape(rows, -1), answer.reshape(rows, -1)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(lengths == 0, 1.0, lengths))
    return tuple(cosines.tolist())


def _strayed(
    tensor: OutputSpec,
    sizes: Sizes,
    tolerance: Tolerance,
    reference: NDArray[Any],
    answer: NDArray[Any],
    error: NDArray[Any],
) -> str | None:
    """The sentence where a single value is too far off."""
    if tolerance.atol is None and tolerance.rtol is None:
        return None
    atol, rtol = tolerance.atol or 0.0, tolerance.rtol or 0.0
    allowed = atol + rtol * np.abs(reference)
    excess = error - allowed
    if excess.max() <= 0:
        return None
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    return (
        f"output {tensor.name!r} misses atol {atol:g}, rtol {rtol:g}{at(sizes)}: "
        f"|error| {error[worst]:.3g} where {allowed[worst]:.3g} is allowed, "
        f"{excess[worst]:.3g} too much, at index {[int(i) for i in worst]} "
        f"(PyTorch {float(reference[worst]):.6g}, file {float(answer[worst]):.6g}; "
        f"{np.count_nonzero(excess > 0)} of {error.size} values miss)"
    )


def _turned(
    tensor: OutputSpec, sizes: Sizes, tolerance: Tolerance, cosines: Sequence[float]
) -> str | None:
    least = min(cosines, default=1.0)
    if tolerance.row_cosine is None or least >= tolerance.row_cosine:
        return None
    return (
        f"output {tensor.name!r}{at(sizes)}: a row has cosine {least:.4f} to PyTorch's, "
        f"{tolerance.row_cosine:g} is the least allowed"
    )


def _flipped(tensor: OutputSpec, sizes: Sizes, error: NDArray[Any]) -> str | None:
    equal = float((error == 0).mean())
    if equal >= EQUAL_SHARE:
        return None
    return (
        f"output {tensor.name!r}{at(sizes)}: {equal:.1%} of the values are PyTorch's, "
        f"{EQUAL_SHARE:.0%} is the least allowed"
    )


def _misfit(expected: NDArray[Any], actual: NDArray[Any]) -> str | None:
    """Why the two cannot be compared number by number, if they cannot."""
    if expected.dtype != actual.dtype:
        return f"the file gives {actual.dtype}, PyTorch {expected.dtype}"
    if expected.shape != actual.shape:
        return f"the file gives shape {list(actual.shape)}, PyTorch {list(expected.shape)}"
    want, got = (np.where(np.isfinite(values), 0, values) for values in (expected, actual))
    if not np.array_equal(want, got, equal_nan=expected.dtype.kind == "f"):
        return (
            f"NaN and infinity differ: the file has {_nonfinite(actual)}, "
            f"PyTorch {_nonfinite(expected)}"
        )
    return None


def _nonfinite(values: NDArray[Any]) -> str:
    return f"{np.count_nonzero(np.isnan(values))} NaN, {np.count_nonzero(np.isinf(values))} inf"
