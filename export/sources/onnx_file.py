"""An existing ONNX file as a source: it is its own reference, run as it was written."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import onnx
import onnxruntime

from export import onnx_graph
from export.dtypes import KSERVE
from export.errors import ConversionError, SourceError
from export.onnx_session import CPU
from export.samples import Arrays
from export.spec import ExportSpec, Sizes
from export.tensors import InputSpec


class OnnxModel:
    """An ONNX file in ONNX Runtime with every optimisation off."""

    kind = "onnx"
    dim_sizes: Mapping[str, tuple[int, ...]] = {}

    def __init__(self, path: Path, session: onnxruntime.InferenceSession, spec: ExportSpec) -> None:
        self._path = path
        self._session = session
        self._spec = spec
        graph = onnx.load(path, load_external_data=False)
        self.files = onnx_graph.files_of(path)
        self.weight_count = sum(_count(tensor) for tensor in graph.graph.initializer)
        self.parameters = tuple(value.name for value in session.get_inputs())
        self.inputs: tuple[InputSpec, ...] = _inputs(session, spec)

    def of(self, spec: ExportSpec) -> Self:
        """The same file under another spec."""
        return type(self)(self._path, self._session, spec)

    def raw(self, inputs: Arrays, sizes: Sizes) -> dict[str, Any]:
        """All outputs by name."""
        names = [value.name for value in self._session.get_outputs()]
        return dict(zip(names, self._run(names, inputs), strict=True))

    def run(self, inputs: Arrays, sizes: Sizes) -> Arrays:
        """The spec's outputs by name."""
        names = [tensor.name for tensor in self._spec.outputs]
        return dict(zip(names, self._run(names, inputs), strict=True))

    def _run(self, names: list[str], inputs: Arrays) -> list[Any]:
        try:
            return list(self._session.run(names, inputs))
        except Exception as error:  # ONNX Runtime's errors share no base class of its own
            raise SourceError(f"{self._path.name} fails: {error}") from error

    def convert(self, folder: Path) -> str:
        """Copy the file with its weights; raises `ConversionError` where it is not valid."""
        for file in self.files:
            shutil.copyfile(file, folder / ("model.onnx" if file == self._path else file.name))
        onnx_graph.check(folder / "model.onnx")
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
        opset = next((o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")), 0)
        return f"opset {opset}, {len(graph.graph.node)} nodes"

    def convert_bf16(self, folder: Path) -> str:
        """Raise `ConversionError`: the types of a file are what they are."""
        raise ConversionError("an ONNX file has no bfloat16 form", "export from PyTorch")


def open_model(spec: ExportSpec, trust_pickle: bool) -> OnnxModel:
    """Open the spec's file; raises `SourceError`."""
    assert isinstance(spec.model, Path), "the caller has looked: this is a bug"
    if not spec.model.is_file():
        raise SourceError(f"model: there is no file {spec.model}")
    try:
        session = onnxruntime.InferenceSession(spec.model, _unchanged(), providers=[CPU])
    except Exception as error:  # ONNX Runtime's errors share no base class of its own
        raise SourceError(f"ONNX Runtime cannot open {spec.model.name}: {error}") from error
    return OnnxModel(spec.model, session, spec)


def _unchanged() -> onnxruntime.SessionOptions:
    """As the file was written: no optimisation may hide what it says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _inputs(session: onnxruntime.InferenceSession, spec: ExportSpec) -> tuple[InputSpec, ...]:
    """Inputs as the file has them; empty where it needs help (an unknown range of integers)."""
    skip = 0 if spec.max_batch_size == 0 else 1
    found = []
    for value in session.get_inputs():
        dtype = _DTYPES.get(value.type)
        if dtype is None or (skip and not value.shape):
            return ()
        dims = tuple(
            dim if isinstance(dim, int) else onnx_graph.dim_name(dim, f"{value.name}_dim_{axis}")
            for axis, dim in enumerate(value.shape[skip:], skip)
        )
        if dtype.startswith(("INT", "UINT")):
            return ()
        found.append(InputSpec(name=value.name, dtype=dtype, dims=dims))
    return tuple(found)


_NUMPY = {"float": "float32", "double": "float64"}
_DTYPES = {f"tensor({name})": KSERVE[name] for name in KSERVE if name not in _NUMPY.values()} | {
    f"tensor({name})": KSERVE[numpy] for name, numpy in _NUMPY.items()
}


def _count(tensor: onnx.TensorProto) -> int:
    count = 1
    for dim in tensor.dims:
        count *= dim
    return count
