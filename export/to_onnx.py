"""Step "convert": PyTorch module -> a checked ONNX file with the requested dynamic dims."""

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import onnx.shape_inference
import torch

from export import onnx_graph, samples
from export.code import is_users
from export.dtypes import NUMPY
from export.errors import ConversionError
from export.spec import ExportSpec
from export.tensors import TensorSpec
from export.trained import TrainedModel

# The newest that ONNX Runtime's Attention and NVIDIA's builder both take (23 and up fail).
OPSET: Final = 20
# A protobuf ends at 2 GiB; the margin is for the graph beside the weights.
INLINE_LIMIT_BYTES: Final = 2**31 - 2**26
_OUTPUT: Final = "tidegate.output."  # no exporter's name for a value


@dataclass(frozen=True)
class ConvertReport:
    """The ONNX file, with `model.onnx.data` beside it where the weights are large."""

    path: Path
    nodes: int
    size_bytes: int

    def summary(self) -> str:
        """What was written, in one line."""
        return f"opset {OPSET}, {self.nodes} nodes, {self.size_bytes / 1000:,.1f} kB"


def convert(
    model: TrainedModel, folder: Path, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> ConvertReport:
    """Write `folder/model.onnx`; raises `ConversionError` with PyTorch's reason."""
    path = folder / "model.onnx"
    module = model.opened.module
    weights = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    with _quiet_exporter():
        try:
            if model.opened.scripted:
                _export_script(model, path)
            else:
                program = _export(model)
                program.save(path, external_data=weights > inline_limit_bytes)
        except Exception as error:
            raise ConversionError(
                f"torch.onnx.export failed: {_reason(error, model.spec)}", _advice(error)
            ) from error
    graph = onnx.load(path, load_external_data=False)
    onnx_graph.strip(graph)
    # The exporter names values inside as it likes, an embedding's "embedding" among them.
    onnx_graph.rename(graph, {_OUTPUT + tensor.name: tensor.name for tensor in model.spec.outputs})
    graph = _with_declared_dims(graph, model.spec)
    path.write_bytes(graph.SerializeToString())
    onnx_graph.check(path)
    size_bytes = sum(file.stat().st_size for file in folder.iterdir())
    return ConvertReport(path, len(graph.graph.node), size_bytes)


def _export(model: TrainedModel) -> torch.onnx.ONNXProgram:
    spec = model.spec
    program = torch.onnx.export(
        model.flat,
        model.arguments(_example(spec)),
        dynamo=True,
        opset_version=OPSET,
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=[_OUTPUT + tensor.name for tensor in spec.outputs],
        # Names, not Dim objects: a Dim may become static without a word, a name raises. The outer
        # tuple is forward()'s one parameter, *tensors.
        dynamic_shapes=(tuple(_dynamic(spec, tensor) for tensor in spec.inputs),),
        verbose=False,
    )
    assert program is not None, "dynamo=True returns a program"
    return program


def _export_script(model: TrainedModel, path: Path) -> None:
    """By PyTorch's older exporter, the only one that takes TorchScript."""
    spec = model.spec
    # Opset 20 is its last, and it has no decomposition of what TorchScript may hold.
    torch.onnx.export(
        model.opened.module,
        model.arguments(_example(spec)),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=[_OUTPUT + tensor.name for tensor in spec.outputs],
        dynamic_axes={
            **{t.name: _dynamic(spec, t) for t in spec.inputs},
            **{_OUTPUT + t.name: _dynamic(spec, t) for t in spec.outputs},
        },
    )


def _example(spec: ExportSpec) -> samples.Arrays:
    return samples.draw(spec, spec.example_sizes(), spec.seed)


def _dynamic(spec: ExportSpec, tensor: TensorSpec) -> dict[int, str]:
    return {i: dim for i, dim in enumerate(spec.symbolic_shape(tensor)) if isinstance(dim, str)}


def _with_declared_dims(model: onnx.ModelProto, spec: ExportSpec) -> onnx.ModelProto:
    """`model` with every dim that the spec names symbolic; raises `ConversionError` on a loss."""
    _check_names(model, spec)
    for tensor, value in zip(spec.inputs, model.graph.input, strict=True):
        for want, got in zip(spec.symbolic_shape(tensor), _dims(value), strict=True):
            if want == got:
                continue
            if isinstance(want, str) and isinstance(got, str):
                raise ConversionError(
                    f"input {tensor.name!r}: dims {want!r} and {got!r} are always equal in this "
                    "model; give them one name"
                )
            raise ConversionError(f"input {tensor.name!r}: dim {want!r} became {got!r} in the file")
    if lost := _lost_output_dims(model, spec):
        # torch leaves stale sizes on the outputs of an LSTM: forget them, and infer anew.
        model = _reinferred(model, lost)
        for name, index, dim in _lost_output_dims(model, spec):
            raise ConversionError(
                f"output {name!r}: dim {dim!r} became a constant in the file (dimension {index})"
            )
    return model


def _check_names(model: onnx.ModelProto, spec: ExportSpec) -> None:
    for kind, tensors, values in (
        ("inputs", spec.inputs, model.graph.input),
        ("outputs", spec.outputs, model.graph.output),
    ):
        declared = [(tensor.name, NUMPY[tensor.dtype]) for tensor in tensors]
        written = [
            (v.name, onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type))
            for v in values
        ]
        if declared != written:
            raise ConversionError(
                f"the file's {kind} are {[f'{name} {dtype}' for name, dtype in written]}; "
                f"the spec says {[f'{name} {dtype}' for name, dtype in declared]}"
            )


def _lost_output_dims(model: onnx.ModelProto, spec: ExportSpec) -> list[tuple[str, int, str]]:
    return [
        (tensor.name, index, want)
        for tensor, value in zip(spec.outputs, model.graph.output, strict=True)
        for index, (want, got) in enumerate(
            zip(spec.symbolic_shape(tensor), _dims(value), strict=True)
        )
        if isinstance(want, str) and isinstance(got, int)
    ]


def _reinferred(model: onnx.ModelProto, lost: list[tuple[str, int, str]]) -> onnx.ModelProto:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(model)
    del fresh.graph.value_info[:]
    outputs = {value.name: value.type.tensor_type.shape.dim for value in fresh.graph.output}
    for name, index, dim in lost:
        # A name yields to a constant if inference still finds one.
        outputs[name][index].dim_param = dim
    return onnx.shape_inference.infer_shapes(fresh, check_type=True, data_prop=True)


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        for dim in value.type.tensor_type.shape.dim
    ]


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep torch's notes about its own insides away from the user; errors stay."""
    loggers = [logging.getLogger("torch.onnx"), logging.getLogger("torch.fx")]
    levels = [logger.level for logger in loggers]
    with (
        warnings.catch_warnings(),
        # On failure torch prints whole graphs.
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        # Deprecations are torch's own homework, raised from copyreg and generated code too.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
        # Said of every LSTM and GRU, whose flat weights are rebuilt on each call.
        warnings.filterwarnings("ignore", r"The tensor attributes? self\..*_flat_weights")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _reason(error: BaseException, spec: ExportSpec) -> str:
    """PyTorch's own words for what it could not do, without colours and advertisements."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(_root(error)))
    head, _, tail = text.partition("The following call raised this error:")
    lines = [line.strip() for line in head.splitlines()]
    noise = (
        "For more",
        "For extended logs",
        "If you suspect",
        "For C++",
        "Suggested fixes",
        "def ",
    )
    said = [line for line in lines if line and not line.startswith(noise)]
    place = [line.strip() for line in tail.splitlines() if line.strip()][:2]
    reason = "\n".join([*said[:6], *place]) or type(error).__name__
    # The user's inputs have names; to the exporter they are places in one tuple.
    for number, tensor in enumerate(spec.inputs):
        reason = reason.replace(f"inputs['tensors'][{number}]", f"inputs[{tensor.name!r}]")
    return reason if place else reason + _place(error)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _place(error: BaseException) -> str:
    """Where in the user's code it arose, as far as the chain of errors knows."""
    chain: BaseException | None = error
    while chain is not None:
        frames = [f for f in traceback.extract_tb(chain.__traceback__) if is_users(f.filename)]
        frames = [f for f in frames if not f.filename.startswith("<")]
        if frames:
            return (
                f"\n{Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}"
            )
        chain = chain.__cause__ or chain.__context__
    return ""


_ADVICE: Final = {
    "data-dependent": "choose by value with torch.where, or export the branch that is served",
    "static shape": "forward() fixes this dim: use x.shape instead of the number, or give the "
    "number in dims",
    "No ONNX function found": "write it with operators that ONNX has, or leave it to the client",
    "Unsupported": "write it with operators that ONNX has, or leave it to the client",
}


def _advice(error: BaseException) -> str:
    text = str(_root(error))
    return next((advice for words, advice in _ADVICE.items() if words in text), "")
