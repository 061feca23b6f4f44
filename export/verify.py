"""Step "verify": the ONNX file against PyTorch, at sizes that the exporter has not seen.

An export can be wrong without an error: `if x.shape[0] > 3:` keeps the branch of the example. So
the sizes checked here are never the example's.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export import samples
from export.errors import ParityError
from export.spec import ExportSpec, OutputSpec
from export.trained import TrainedModel, at


@dataclass(frozen=True)
class Deviation:
    """How far one output is from PyTorch's at one set of sizes."""

    output: str
    sizes: dict[str, int]
    max_abs: float
    max_rel: float
    miss: str | None = None  # the sentence, where the tolerance is missed


@dataclass(frozen=True)
class VerifyReport:
    """Every comparison made."""

    deviations: tuple[Deviation, ...]

    def summary(self) -> str:
        """Number of checks and the largest error of each output, in one line."""
        worst: dict[str, float] = {}
        for d in self.deviations:
            worst[d.output] = max(d.max_abs, worst.get(d.output, 0.0))
        checks = len(self.deviations) // len(worst)
        errors = ", ".join(f"{name} max |error| {value:.1e}" for name, value in worst.items())
        sizes = [d.sizes["batch"] for d in self.deviations[:: len(worst)] if "batch" in d.sizes]
        what = f"batch {', '.join(map(str, sizes))}" if sizes else f"{checks} draws"
        return f"{what}: {errors}"


def verify(model: TrainedModel, path: Path) -> VerifyReport:
    """Compare at every checked size; raises `ParityError` with a line for each miss."""
    spec = model.spec
    try:
        session = onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class of its own
        raise ParityError(f"ONNX Runtime cannot open the file: {error}") from error
    deviations: list[Deviation] = []
    for check, sizes in enumerate(spec.checked_sizes()):
        inputs = samples.draw(spec, sizes, spec.seed + 1 + check)
        expected = model.run(inputs, sizes)
        try:
            results = session.run([tensor.name for tensor in spec.outputs], inputs)
        except Exception as error:
            raise ParityError(f"ONNX Runtime fails{at(sizes)}: {error}") from error
        deviations += [
            compare(tensor, sizes, expected[tensor.name], result)
            for tensor, result in zip(spec.outputs, results, strict=True)
        ]
    if misses := [d.miss for d in deviations if d.miss]:
        raise ParityError("\n".join([*misses, _cause(spec)]))
    return VerifyReport(tuple(deviations))


def _cause(spec: ExportSpec) -> str:
    return (
        "A Python `if` on a shape or a value is the usual cause: the file keeps the branch that "
        f"the example took{at(spec.example_sizes())}"
    )


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters comes back as an exception or a miss
    return options


def compare(
    tensor: OutputSpec, sizes: dict[str, int], expected: NDArray[Any], actual: NDArray[Any]
) -> Deviation:
    """How far `actual` (ONNX Runtime) is from `expected` (PyTorch), and whether it is too far."""
    if misfit := _misfit(expected, actual):
        miss = f"output {tensor.name!r}{at(sizes)}: {misfit}"
        return Deviation(tensor.name, sizes, math.inf, math.inf, miss)
    expected, actual = np.atleast_1d(expected), np.atleast_1d(actual)
    if expected.size == 0:
        return Deviation(tensor.name, sizes, 0.0, 0.0)
    finite = np.isfinite(expected)
    reference = np.where(finite, expected, 0).astype(np.float64)
    error = np.abs(np.where(finite, actual, 0).astype(np.float64) - reference)
    # Beyond 2**53 different integers may be one float64.
    error[(error == 0) & (expected != actual) & finite] = 1.0
    atol, rtol = tensor.tolerance
    allowed = atol + rtol * np.abs(reference)
    relative = np.divide(error, np.abs(reference), out=np.zeros_like(error), where=reference != 0)
    deviation = Deviation(tensor.name, sizes, float(error.max()), float(relative.max()))
    excess = error - allowed
    if excess.max() <= 0:
        return deviation
    worst = np.unravel_index(int(excess.argmax()), excess.shape)
    miss = (
        f"output {tensor.name!r} misses atol {atol:g}, rtol {rtol:g}{at(sizes)}: "
        f"|error| {error[worst]:.3g} where {allowed[worst]:.3g} is allowed, "
        f"{excess[worst]:.3g} too much, at index {[int(i) for i in worst]} "
        f"(PyTorch {float(expected[worst]):.6g}, ONNX {float(actual[worst]):.6g}; "
        f"{np.count_nonzero(excess > 0)} of {expected.size} values miss)"
    )
    return replace(deviation, miss=miss)


def _misfit(expected: NDArray[Any], actual: NDArray[Any]) -> str | None:
    """Why the two cannot be compared number by number, if they cannot."""
    if expected.dtype != actual.dtype:
        return f"ONNX gives {actual.dtype}, PyTorch {expected.dtype}"
    if expected.shape != actual.shape:
        return f"ONNX gives shape {list(actual.shape)}, PyTorch {list(expected.shape)}"
    want, got = (np.where(np.isfinite(values), 0, values) for values in (expected, actual))
    if not np.array_equal(want, got, equal_nan=expected.dtype.kind == "f"):
        return (
            f"NaN and infinity differ: ONNX has {_nonfinite(actual)}, "
            f"PyTorch {_nonfinite(expected)}"
        )
    return None


def _nonfinite(values: NDArray[Any]) -> str:
    return f"{np.count_nonzero(np.isnan(values))} NaN, {np.count_nonzero(np.isinf(values))} inf"
