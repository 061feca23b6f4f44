"""Questions and repairs that several steps have for an ONNX graph."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx.checker
import onnx.shape_inference
from google.protobuf.message import DecodeError, Message

from export.errors import ConversionError
from export.tensors import BATCH


def files_of(path: Path) -> tuple[Path, ...]:
    """The file and those that its weights lie in; raises `ConversionError`."""
    if path.suffix != ".onnx":
        return (path,)
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ConversionError(f"{path} is no ONNX file: {error}") from None
    return (path, *(path.parent / name for name in sorted(set(_locations(model)))))


def is_external(model: onnx.ModelProto) -> bool:
    """Whether weights lie beside the file."""
    return any(_locations(model))


def _locations(model: onnx.ModelProto) -> Iterator[str]:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                yield entry.value


def dim_name(written: object, otherwise: str) -> str:
    """A file's name of a dim where a spec could have it, else one made of `otherwise`."""
    text = str(written or "")
    if text.isidentifier() and text != BATCH:
        return text
    return re.sub(r"\W", "_", otherwise)


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def restore(model: onnx.ModelProto, origin: onnx.ModelProto) -> None:
    """Give `model` the inputs and outputs of `origin`, in place, and no notes of its maker.

    Tools infer them anew and lose the names of dims.
    """
    for mine, theirs in (
        (model.graph.input, origin.graph.input),
        (model.graph.output, origin.graph.output),
    ):
        del mine[:]
        mine.extend(theirs)
    # Domains that no node is of: some runtimes refuse a file for one that they do not know.
    used = {node.domain or "ai.onnx" for node in model.graph.node} | {"ai.onnx"}
    used |= {function.domain for function in model.functions}
    kept = [each for each in model.opset_import if (each.domain or "ai.onnx") in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    strip(model)


def rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Give values other names, in place; one that has such a name already gets a number behind."""
    used = _values(model.graph)
    final = dict(names)
    for name in names.values():
        if name in used and name not in names:
            number = next(n for n in itertools.count(2) if f"{name}_{n}" not in used)
            final[name] = f"{name}_{number}"
    _rename(model.graph, final)


def _values(graph: onnx.GraphProto) -> set[str]:
    given = [value.name for value in (*graph.input, *graph.output)]
    given += [tensor.name for tensor in graph.initializer]
    return {*given} | {name for node in graph.node for name in node.output}


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.name = names.get(value.name, value.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):  # the branches and bodies see the values outside
                _rename(attribute.g, names)


def strip(message: Message) -> None:
    """Remove what exporters note for debugging: source paths and stack traces, per node."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if isinstance(value, Message) else value:
                strip(child)


def check(path: Path) -> None:
    """Raise `ConversionError` where the file is not valid, types and shapes included."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the ONNX file is not valid: {error}") from error
