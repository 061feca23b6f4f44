"""Step "verify": a file against the trained model's answers, at sizes the exporter has not seen.

An export can be wrong without an error: `if x.shape[0] > 3:` keeps the branch of the example. So
the sizes checked here are never the example's.
"""

from pathlib import Path
from typing import ClassVar, Final

from export import compare, onnx_session, reference
from export.compare import Deviation
from export.errors import ConversionError, ParityError
from export.manifest import Metric, OutputParity, Parity
from export.reference import Check
from export.spec import ExportSpec
from export.steps import base
from export.tensors import BATCH, OutputSpec

LISTED_MISSES: Final = 12


class Request(base.Request):
    """`model`: the file; `references`: folder of the answers; `labelled`: the metric's data."""

    step: ClassVar[str] = "verify"
    spec: ExportSpec
    model: Path
    precision: str
    references: Path
    checks: tuple[Check, ...]
    labelled: Path | None = None
    score: float | None = None
    provider: str = onnx_session.CPU

    def artefacts(self) -> tuple[Path, ...]:
        """The file's folder, the answers."""
        return (self.model.parent, self.references, *([self.labelled] if self.labelled else []))


class Report(base.Report):
    """Every comparison, and the metric where there is one."""

    parity: Parity
    metric: Metric | None = None

    def summary(self) -> str:
        """Sizes, the largest error of each output, the metric."""
        batches = [sizes[BATCH] for sizes in self.parity.sizes if BATCH in sizes]
        what = f"batch {', '.join(map(str, dict.fromkeys(batches)))}"
        what = what if batches else f"{self.parity.checks} draws"
        errors = ", ".join(
            f"{name} max |error| {worst.max_abs:.1e}" for name, worst in self.parity.outputs.items()
        )
        score = f"; {self.metric.name} {self.metric.value:.4g}" if self.metric else ""
        return f"{what}: {errors}{score}"


def run(request: Request, folder: Path) -> Report:
    """Compare at every check; raises `ParityError` with a line for each miss."""
    spec = request.spec
    try:
        session = onnx_session.opened(request.model, provider=request.provider, exact=True)
    except ConversionError as error:
        raise ParityError(str(error)) from error
    names = [tensor.name for tensor in spec.outputs]
    judged: list[Deviation] = []
    deviations: list[Deviation] = []
    for check in request.checks:
        inputs, expected = reference.read(request.references / check.file)
        try:
            results = session.run(names, inputs)
        except Exception as error:  # as above
            raise ParityError(
                f"ONNX Runtime fails{compare.at(check.sizes)}: {error}",
                "a size that the exporter made constant is the usual cause",
            ) from error
        found = [
            compare.compare(
                tensor, check.sizes, expected[tensor.name], result, request.precision, check.real
            )
            for tensor, result in zip(spec.outputs, results, strict=True)
        ]
        deviations += found
        # Random values are no measure of a file whose scales were chosen for real ones.
        judged += found if check.real or request.precision != "int8" else []
    by_output = {name: [d for d in judged if d.output == name] for name in names}
    misses = [d.miss for d in deviations if d.miss]
    misses += [
        miss for each in spec.outputs if (miss := _turned(each, by_output[each.name], request))
    ]
    _refuse(misses, request)
    parity = Parity(
        checks=len(request.checks),
        sizes=tuple(check.sizes for check in request.checks if not check.real),
        real_samples=sum(check.sizes.get(BATCH, 1) for check in request.checks if check.real),
        outputs={name: _worst(found) for name, found in by_output.items()},
    )
    return Report(parity=parity, metric=_metric(request, session))


def _turned(tensor: OutputSpec, found: list[Deviation], request: Request) -> str | None:
    """The sentence where an output points elsewhere, over all rows."""
    least, mean = tensor.tolerance(request.precision).cosine, compare.mean_cosine(found)
    if least is None or mean >= least:
        return None
    return (
        f"output {tensor.name!r}: mean cosine {mean:.4f} to PyTorch's, {least:g} is the least "
        "allowed"
    )


def _refuse(misses: list[str], request: Request) -> None:
    if not misses:
        return
    more = len(misses) - LISTED_MISSES
    lines = misses[:LISTED_MISSES] + ([f"and {more} more misses"] if more > 0 else [])
    if request.precision == "fp32":
        example = compare.at(request.spec.example_sizes())
        advice = (
            "a Python `if` on a shape or a value is the usual cause: the file keeps the branch "
            f"that the example took{example}. Write it with torch.where, or export each branch"
        )
    else:
        advice = f"leave this format out, or allow more with tolerances.{request.precision}"
    raise ParityError("\n".join(lines), advice)


def _worst(deviations: list[Deviation]) -> OutputParity:
    return OutputParity(
        max_abs=max(d.max_abs for d in deviations),
        max_rel=max(d.max_rel for d in deviations),
        cosine=compare.mean_cosine(deviations),
        least_cosine=min((c for d in deviations for c in d.cosines), default=1.0),
    )


def _metric(request: Request, session: onnx_session.Session) -> Metric | None:
    spec = request.spec
    if spec.metric is None or request.labelled is None or request.score is None:
        return None
    names = [tensor.name for tensor in spec.outputs]
    value = reference.score(
        spec,
        spec.metric,
        request.labelled,
        lambda inputs, sizes: dict(zip(names, session.run(names, inputs), strict=True)),
    )
    metric = Metric(
        name=str(spec.metric.score),
        reference=request.score,
        value=value,
        allowed_drop=spec.metric.allowed_drop,
    )
    if not metric.value >= metric.reference - metric.allowed_drop:  # NaN is no pass
        raise ParityError(
            f"{metric.name} falls from {metric.reference:.4g} to {metric.value:.4g}; "
            f"{metric.allowed_drop:g} is allowed",
            "more or better samples for calibration, or a larger metric.allowed_drop",
        )
    return metric
