"""What the trained model answers: kept once, so that every format is held to the same answers.

Checks of random values cover the sizes that the exporter has not seen; checks of real values are
the spec's samples. Arrays lie in `.npz` files, inputs as "in:NAME", outputs as "out:NAME".
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from export import code, samples
from export.compare import at
from export.errors import SampleError, SourceError
from export.sample_data import Call, fitted, sizes_of
from export.samples import Arrays
from export.spec import ExportSpec, MetricSpec, Sizes
from export.tensors import BATCH

LABELS: Final = "labels"

Run = Callable[[Arrays, Sizes], Arrays]


class Check(BaseModel):
    """One call, its answer in `file`; `real`: the spec's own data."""

    file: str
    sizes: dict[str, int]
    real: bool


def make(spec: ExportSpec, calls: Sequence[Call], run: Run, folder: Path) -> tuple[Check, ...]:
    """Run every check once and keep what came out in `folder`."""
    drawn = [
        (samples.draw(spec, sizes, spec.seed + 1 + number), sizes, False)
        for number, sizes in enumerate(spec.checked_sizes())
    ]
    given = [(arrays, sizes_of(arrays, spec), True) for arrays in fitted(calls, spec)]
    checks = []
    for number, (arrays, sizes, real) in enumerate(drawn + given):
        check = Check(file=f"{number:03}.npz", sizes=dict(sizes), real=real)
        answers = run(arrays, sizes)
        _refuse_nan(answers, check)
        _write(folder / check.file, {"in": arrays, "out": answers})
        checks.append(check)
    return tuple(checks)


def _refuse_nan(answers: Arrays, check: Check) -> None:
    for name, array in answers.items():
        if array.dtype.kind == "f" and (count := int(np.isnan(array).sum())):
            values = "the samples" if check.real else "random inputs"
            raise SourceError(
                f"the trained model answers NaN: output {name!r}{at(check.sizes)}, {count} of "
                f"{array.size} values, for {values}",
                "give the inputs a range that the model is made for, or look at its weights",
            )


def read(path: Path) -> tuple[Arrays, Arrays]:
    """(inputs, outputs) of one check."""
    with np.load(path) as file:
        split: dict[str, Arrays] = {"in": {}, "out": {}}
        for key in file.files:
            side, _, name = key.partition(":")
            split[side][name] = file[key]
    return split["in"], split["out"]


def make_labelled(spec: ExportSpec, metric: MetricSpec, path: Path) -> None:
    """Keep the labelled set in `path`; raises `SampleError` where it is none."""
    given = code.call(metric.data)
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], dict)):
        raise SampleError(
            f"metric.data: {metric.data}() returned a {type(given).__name__}",
            "return (dict of input arrays, labels)",
        )
    arrays, labels = given[0], np.asarray(given[1])
    (whole,) = fitted([arrays, arrays], spec, "metric.data")[:1]  # twice: never cut
    _write(path, {"in": whole}, {LABELS: labels})


def score(spec: ExportSpec, metric: MetricSpec, path: Path, run: Run) -> float:
    """The score of `run` on the labelled set in `path`."""
    with np.load(path) as file:
        labels = file[LABELS]
        arrays = {key[3:]: file[key] for key in file.files if key.startswith("in:")}
    sizes = sizes_of(arrays, spec, "metric.data")
    rows = sizes.get(BATCH, 0)
    step = spec.batch_limit
    parts = []
    for begin in range(0, rows, step) if rows else [0]:
        part = {
            name: array[begin : begin + step] if rows else array for name, array in arrays.items()
        }
        parts.append(run(part, {**sizes, **({BATCH: min(step, rows - begin)} if rows else {})}))
    outputs = {
        tensor.name: np.concatenate([part[tensor.name] for part in parts])
        if rows
        else parts[0][tensor.name]
        for tensor in spec.outputs
    }
    return _scored(spec, metric, outputs, labels)


def _scored(spec: ExportSpec, metric: MetricSpec, outputs: Arrays, labels: NDArray[Any]) -> float:
    if metric.score != "accuracy":
        return float(code.call(metric.score, outputs, labels))
    name = metric.output or spec.outputs[0].name
    if name not in outputs:
        raise SampleError(f"metric.output: {name!r} is none of the outputs {list(outputs)}")
    guesses = outputs[name].argmax(-1)
    if guesses.shape != labels.shape:
        raise SampleError(
            f"metric.data: labels have shape {list(labels.shape)}; "
            f"{name!r} gives {list(guesses.shape)} classes"
        )
    return float((guesses == labels).mean())


def _write(path: Path, sides: dict[str, Arrays], other: Arrays | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"{side}:{name}": array for side, of in sides.items() for name, array in of.items()}
    np.savez(path, **named, **(other or {}))  # type: ignore[arg-type]
