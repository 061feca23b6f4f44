"""Step "lower": the float32 file in another precision: fp16, int8 static, int8 dynamic.

Precision has to be in the graph: TensorRT 11 has no other way, and ONNX Runtime never had one.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from export import onnx_graph, reference
from export.errors import ConversionError, PointlessError
from export.samples import Arrays
from export.steps import base

MODEL: Final = "model.onnx"
# Operators with weights that gain from 8 bits without calibration. A convolution becomes eight
# times slower: ONNX Runtime has no fast kernel for one whose activations are scaled at run time.
DYNAMIC: Final = ("MatMul", "Gather", "LSTM", "Attention")
# Operators that are computed in 8 bits with fixed scales, and those between them that would
# otherwise cost a way to floats and back. Not embeddings, sums and normalisations: TensorRT refuses
# their constants, and they are where a transformer loses its accuracy.
STATIC: Final = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Relu",
    "Clip",
    "Reshape",
    "Flatten",
)


class Request(base.Request):
    """`source`: folder of the float32 file; `calibration`: files of real calls."""

    step: ClassVar[str] = "lower"
    source: Path
    format: Literal["onnx-fp16", "onnx-int8", "onnx-int8-dynamic"]
    calibration: tuple[Path, ...] = ()

    def artefacts(self) -> tuple[Path, ...]:
        """The file, its weights, the calibration data."""
        return (*onnx_graph.files_of(self.source / MODEL), *self.calibration)


class Report(base.Report):
    """What became of how many operators."""

    format: str
    lowered: int
    size_bytes: int

    def summary(self) -> str:
        """Counts, in one line."""
        return f"{self.lowered} operators, {self.size_bytes / 1000:,.1f} kB"


def run(request: Request, folder: Path) -> Report:
    """Write `folder/model.onnx`; raises `ConversionError`, `PointlessError`."""
    source, path = request.source / MODEL, folder / MODEL
    logging.disable(logging.WARNING)  # the quantiser's advice is followed already
    try:
        _LOWER[request.format](source, path, request.calibration)
    except PointlessError:
        raise
    except Exception as error:  # the tools raise whatever their parts raise
        words = str(error).strip() or type(error).__name__
        raise ConversionError(f"{request.format}: {type(error).__name__}: {words}") from error
    finally:
        logging.disable(logging.NOTSET)
    model = onnx.load(path, load_external_data=False)
    onnx_graph.restore(model, onnx.load(source, load_external_data=False))
    path.write_bytes(model.SerializeToString())
    onnx_graph.check(path)
    if not (lowered := _lowered(model)):
        raise _nothing_gains(DYNAMIC if request.format == "onnx-int8-dynamic" else STATIC[:4])
    size_bytes = sum(file.stat().st_size for file in onnx_graph.files_of(path))
    return Report(format=request.format, lowered=lowered, size_bytes=size_bytes)


def _fp16(source: Path, path: Path, calibration: Sequence[Path]) -> None:
    model = onnx.load(source)
    external = onnx_graph.is_external(onnx.load(source, load_external_data=False))
    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=external)
    OnnxModel(half).topological_sort()  # the casts of the inputs are appended behind their use
    _save(half, path, external)


def _int8(source: Path, path: Path, calibration: Sequence[Path]) -> None:
    """Static, as TensorRT takes it: Q/DQ pairs, symmetric, no quantised bias."""
    quantize_static(
        source,
        path,
        _Calls(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=list(STATIC),
        use_external_data_format=_is_large(source),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
        },
    )


def _int8_dynamic(source: Path, path: Path, calibration: Sequence[Path]) -> None:
    model = ONNXModel(onnx.load(source))
    model.replace_gemm_with_matmul()  # which has an 8-bit kernel, and Gemm has not
    present = [op for op in DYNAMIC if op in onnx_graph.operators(model.model)]
    if not present:
        raise _nothing_gains(DYNAMIC)
    quantize_dynamic(
        model.model,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=present,
        use_external_data_format=_is_large(source),
        extra_options={"MatMulConstBOnly": True},
    )


def _nothing_gains(operators: Sequence[str]) -> PointlessError:
    return PointlessError(f"nothing in this model gains: it has no {', '.join(operators)}")


_LOWER: Final[Mapping[str, Callable[[Path, Path, Sequence[Path]], None]]] = {
    "onnx-fp16": _fp16,
    "onnx-int8": _int8,
    "onnx-int8-dynamic": _int8_dynamic,
}


class _Calls(CalibrationDataReader):  # type: ignore[misc]
    """The real calls, one after another."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._calls: Iterator[Arrays] = (reference.read(file)[0] for file in files)

    def get_next(self) -> Arrays | None:
        """The next call; None after the last."""
        return next(self._calls, None)


def _is_large(source: Path) -> bool:
    return onnx_graph.is_external(onnx.load(source, load_external_data=False))


def _save(model: onnx.ModelProto, path: Path, external: bool) -> None:
    if external:
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(model, path)


def _lowered(model: onnx.ModelProto) -> int:
    """Operators that compute in the lower precision, as far as the graph says so."""
    ints = {"MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM", "DequantizeLinear"}
    counts = onnx_graph.operators(model)
    found = sum(n for name, n in counts.items() if name.rpartition(".")[2] in ints)
    halves = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    return found + sum(any(name in halves for name in node.input) for node in model.graph.node)
