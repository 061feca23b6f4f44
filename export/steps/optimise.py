"""Step "optimise": the captured graph with constants folded and what nobody needs left out.

ONNX Runtime's basic rewrites only: they hold for every machine and keep to standard operators, so
that NVIDIA's parser takes the result. Those of a machine's own happen when a gateway loads it.
"""

from pathlib import Path
from typing import ClassVar, Final

import onnx
import onnxruntime

from export import onnx_graph
from export.errors import ConversionError
from export.steps import base

MODEL: Final = "model.onnx"
DATA: Final = "model.onnx.data"


class Request(base.Request):
    """`source` is the folder of the captured file."""

    step: ClassVar[str] = "optimise"
    source: Path

    def artefacts(self) -> tuple[Path, ...]:
        """The file and its weights."""
        return onnx_graph.files_of(self.source / MODEL)


class Report(base.Report):
    """How many operators there were, and are."""

    before: int
    after: int

    def summary(self) -> str:
        """The counts, in one line."""
        return f"{self.before} nodes -> {self.after}"


def run(request: Request, folder: Path) -> Report:
    """Write `folder/model.onnx`; raises `ConversionError`."""
    path, source = folder / MODEL, request.source / MODEL
    before = onnx.load(source, load_external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    if onnx_graph.is_external(before):
        entry = options.add_session_config_entry
        entry("session.optimized_model_external_initializers_file_name", DATA)
        entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class of its own
        raise ConversionError(f"ONNX Runtime cannot open the file: {error}") from error
    after = onnx.load(path, load_external_data=False)
    onnx_graph.restore(after, before)
    path.write_bytes(after.SerializeToString())
    onnx_graph.check(path)
    return Report(before=len(before.graph.node), after=len(after.graph.node))
