"""The export as a list of steps. Each returns a report; the repository changes in the last one."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from export import config_pbtxt, labels, publish, source, to_onnx, verify
from export.spec import ExportSpec


class Report(Protocol):
    """What a step has done."""

    def summary(self) -> str:
        """One line for the progress display."""
        ...


R = TypeVar("R", bound=Report)


class Runner(Protocol):
    """Runs the step `name`; a display may stand around it."""

    def __call__(self, name: str, step: Callable[[], R]) -> R:
        """Return `step()`."""
        ...


@dataclass(frozen=True)
class ExportReport:
    """The reports of all steps."""

    loaded: source.LoadReport
    labels: labels.LabelReport
    converted: to_onnx.ConvertReport
    verified: verify.VerifyReport
    published: publish.PublishReport


def quietly(name: str, step: Callable[[], R]) -> R:
    """Run a step with no display."""
    return step()


def export(
    spec: ExportSpec, run: Runner = quietly, *, replace_config: bool = False
) -> ExportReport:
    """Publish the next version of `spec`'s model; raises `ExportError` and changes nothing."""
    # Long work happens outside the repository; set TMPDIR for a model larger than /tmp.
    with tempfile.TemporaryDirectory(prefix="tidegate-export-") as folder:
        work = Path(folder)
        loaded = run("load", lambda: source.load(spec))
        labelled = run("labels", lambda: labels.read(spec))
        converted = run("convert", lambda: to_onnx.convert(loaded.model, work))
        verified = run("verify", lambda: verify.verify(loaded.model, converted.path))
        files = {publish.CONFIG: config_pbtxt.render(spec).encode(), **labelled.files}
        published = run(
            "publish",
            lambda: publish.publish(
                work,
                files,
                spec.repository,
                spec.name,
                changes=config_pbtxt.interface_changes,
                replace_config=replace_config,
            ),
        )
    return ExportReport(loaded, labelled, converted, verified, published)
