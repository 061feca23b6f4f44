"""Step "capture": the trained model -> an ONNX file, and the answers that it has to give.

The only step that runs PyTorch (for an ONNX source: none does), so that it is imported once.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from export import code, reference, samples
from export.errors import SourceError
from export.fingerprint import sha256
from export.interface import has_batch, inputs_of, outputs_of
from export.manifest import FileFacts
from export.reference import Check, Run
from export.sample_data import Call, read
from export.spec import ExportSpec
from export.steps import base
from export.tensors import TensorSpec

MODEL: Final = "model.onnx"
LABELLED: Final = "labelled.npz"


class Request(base.Request):
    """`spec` as it was written. `describe`: stop when inputs and outputs are known.

    `bf16`: a file that computes in bfloat16, without answers (those of float32 are the measure).
    """

    step: ClassVar[str] = "capture"
    spec: ExportSpec
    trust_pickle: bool = False
    describe: bool = False
    bf16: bool = False

    def artefacts(self) -> tuple[Path, ...]:
        """Weights, model files, sample arrays; the user's code is found when it is imported."""
        spec = self.spec
        return tuple(p for p in (spec.weights, spec.model, spec.samples) if isinstance(p, Path))


class Report(base.Report):
    """`spec` with its inputs and outputs; the files are in the step's folder."""

    spec: ExportSpec
    kind: str
    files: dict[str, FileFacts]
    weight_count: int
    named: bool  # the spec says what the inputs are
    inferred: bool  # they come from calls that were seen: somebody should confirm them
    checks: tuple[Check, ...] = ()
    score: float | None = None
    converted: str = ""
    seconds: Mapping[str, float] = {}

    def summary(self) -> str:
        """What was loaded and written, in one line."""
        origin = (
            str(self.spec.model) if self.kind == "callable" else Path(str(self.spec.model)).name
        )
        if self.spec.weights:
            origin += f" with {self.spec.weights.name}"
        said = f"{origin}, {self.weight_count:,} parameters; {self.converted}"
        if self.named:
            return said
        inputs = (f"{t.name} {t.dtype} {_shape(self.spec, t)}" for t in self.spec.inputs)
        return f"{said}; inputs {', '.join(inputs)}"


def run(request: Request, folder: Path) -> Report:
    """Capture; raises `SourceError`, `SampleError`, `ConversionError`."""
    clock, reading = _Clock(), code.Reading()
    spec = request.spec
    if isinstance(spec.model, Path) and spec.model.suffix == ".onnx":
        from export.sources import onnx_file as source
    else:
        from export.sources import pytorch as source  # type: ignore[no-redef]
    model = clock.timed("load", lambda: source.open_model(spec, request.trust_pickle))
    calls = read(spec.samples) if spec.samples else []
    spec, inferred = _with_inputs(spec, calls, model)
    model = model.of(spec)
    if not spec.outputs:
        spec = spec.model_copy(update={"outputs": _outputs(spec, model.raw)})
        spec = ExportSpec.model_validate(spec.model_dump())
        model = model.of(spec)
    report = Report(
        spec=spec,
        kind=model.kind,
        files={f.name: FileFacts(sha256=sha256(f), bytes=f.stat().st_size) for f in model.files},
        weight_count=model.weight_count,
        named=bool(request.spec.inputs),
        inferred=inferred,
    )
    if request.describe:
        return report
    if request.bf16:
        return report.model_copy(update={"converted": model.convert_bf16(folder)})
    sizes = spec.example_sizes()
    model.run(
        samples.draw(spec, sizes, spec.seed), sizes
    )  # says what is wrong before a long export
    converted = clock.timed("convert", lambda: model.convert(folder))
    checks, score = clock.timed("reference", lambda: _references(spec, calls, model.run, folder))
    return report.model_copy(
        update={
            "checks": checks,
            "score": score,
            "converted": converted,
            "seconds": clock.seconds,
            "depends": reading.files(without=folder),
        }
    )


def _shape(spec: ExportSpec, tensor: TensorSpec) -> str:
    return f"[{', '.join(map(str, spec.symbolic_shape(tensor)))}]"


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - begun
        return result


def _with_inputs(spec: ExportSpec, calls: list[Call], model: Any) -> tuple[ExportSpec, bool]:
    """The spec with inputs, and whether they were inferred from calls."""
    if spec.inputs:
        return spec, False
    update: dict[str, Any] = {}
    if model.inputs:
        inputs = model.inputs
        update["dim_sizes"] = {**model.dim_sizes, **spec.dim_sizes}
    elif calls:
        inputs = inputs_of(calls, model.parameters, spec.max_batch_size)
        if spec.max_batch_size is None and not has_batch(calls, None):
            update["max_batch_size"] = 0
    else:
        raise SourceError(
            "nothing says what the inputs are",
            "give [[inputs]], or samples: a .npz file or a callable that yields example calls",
        )
    update["inputs"] = [tensor.model_dump() for tensor in inputs]
    # Validated anew: what the spec says of its dims has to fit the inputs that it has now.
    return ExportSpec.model_validate({**spec.model_dump(), **update}), not model.inputs


def _outputs(spec: ExportSpec, raw: Callable[..., Any]) -> Any:
    """From runs at sizes that differ in every dynamic dim."""
    checked = spec.checked_sizes()
    return outputs_of(
        [
            (sizes, raw(samples.draw(spec, sizes, spec.seed + number), sizes))
            for number, sizes in enumerate((spec.example_sizes(), checked[0], checked[-1]))
        ],
        spec,
    )


def _references(
    spec: ExportSpec, calls: list[Call], run: Run, folder: Path
) -> tuple[tuple[Check, ...], float | None]:
    checks = reference.make(spec, calls, run, folder / "reference")
    if spec.metric is None:
        return checks, None
    labelled = folder / LABELLED
    reference.make_labelled(spec, spec.metric, labelled)
    return checks, reference.score(spec, spec.metric, labelled, run)
