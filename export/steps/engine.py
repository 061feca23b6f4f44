"""Step "engine": an ONNX file -> a TensorRT engine for this machine's GPU."""

import importlib
from pathlib import Path
from typing import Any, ClassVar

from export import machine, nvidia, onnx_graph, tensorrt_engine
from export.errors import AbsentError
from export.nvidia import Options
from export.spec import ExportSpec
from export.steps import base


class Request(base.Request):
    """`source`: folder of the ONNX file; `timing_cache`: what earlier builds have measured."""

    step: ClassVar[str] = "engine"
    source: Path
    spec: ExportSpec
    timing_cache: Path

    def artefacts(self) -> tuple[Path, ...]:
        """The file and its weights."""
        return onnx_graph.files_of(self.source / "model.onnx")


class Report(base.Report):
    """What the engine needs to be loaded: this version of TensorRT, and unless it says so, GPU."""

    file: str
    tensorrt: str
    layers: int
    size_bytes: int
    warnings: tuple[str, ...]

    def summary(self) -> str:
        """Version and size."""
        return f"TensorRT {self.tensorrt}, {self.layers} layers, {self.size_bytes / 1000:,.0f} kB"


def run(request: Request, folder: Path) -> Report:
    """Write `folder/model.plan`, or one named by this GPU where the spec has others beside it.

    Raises `ConversionError`, `AbsentError`.
    """
    if why := tensorrt_engine.absent():
        raise AbsentError(why)
    trt: Any = importlib.import_module("tensorrt")
    asked = request.spec.tensorrt
    options = Options(
        nvidia.ranges(request.spec),
        version_compatible=asked.version_compatible,
        hardware_compatible=asked.hardware_compatible,
        workspace_bytes=asked.workspace_bytes,
        timing_cache=request.timing_cache,
    )
    built = nvidia.build(trt, request.source / "model.onnx", options)
    capability = machine.compute_capability()
    name = tensorrt_engine.PLAN
    if asked.engines and capability:
        name = tensorrt_engine.named_for(capability)
    (folder / name).write_bytes(built.engine)
    return Report(
        file=name,
        tensorrt=str(trt.__version__),
        layers=built.layers,
        size_bytes=len(built.engine),
        warnings=built.warnings,
    )
