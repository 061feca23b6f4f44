"""Step "preflight": whether NVIDIA's parser and builder take a file, asked without a GPU."""

from pathlib import Path
from typing import ClassVar

from export import nvidia, onnx_graph, preflight
from export.spec import ExportSpec
from export.steps import base


class Request(base.Request):
    """`source`: folder of the ONNX file."""

    step: ClassVar[str] = "preflight"
    source: Path
    spec: ExportSpec

    def artefacts(self) -> tuple[Path, ...]:
        """The file and its weights."""
        return onnx_graph.files_of(self.source / "model.onnx")


class Report(base.Report):
    """What the builder made of it."""

    layers: int
    engine_bytes: int
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Layers and size of the engine that was thrown away."""
        return (
            f"NVIDIA's builder takes it: {self.layers} layers, {self.engine_bytes / 1000:,.0f} kB"
        )


def run(request: Request, folder: Path) -> Report:
    """Ask; raises `ConversionError`."""
    built = preflight.check(request.source / "model.onnx", nvidia.ranges(request.spec))
    return Report(layers=built.layers, engine_bytes=len(built.engine), warnings=built.warnings)
