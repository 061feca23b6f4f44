"""Complete a partial configuration from the model file, as Triton does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from gateway.errors import RepositoryError
from gateway.repository import ragged_config, sequence_config
from gateway.repository.config_pbtxt import (
    BACKEND,
    DEFAULT_MODEL_FILE,
    PLATFORM,
    ModelConfig,
    is_onnx,
)
from gateway.repository.datatypes import NUMBERS
from gateway.repository.ensemble_config import is_ensemble

DEFAULT_MAX_BATCH_SIZE = 4

_KSERVE: dict[int, str] = {
    onnx.TensorProto.BOOL: "BOOL",
    onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.UINT16: "UINT16",
    onnx.TensorProto.UINT32: "UINT32",
    onnx.TensorProto.UINT64: "UINT64",
    onnx.TensorProto.INT8: "INT8",
    onnx.TensorProto.INT16: "INT16",
    onnx.TensorProto.INT32: "INT32",
    onnx.TensorProto.INT64: "INT64",
    onnx.TensorProto.FLOAT16: "FP16",
    onnx.TensorProto.FLOAT: "FP32",
    onnx.TensorProto.DOUBLE: "FP64",
    onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.STRING: "BYTES",
}


def needs_model(config: ModelConfig) -> bool:
    """Return whether the configuration leaves something for the model file to say."""
    return not config.input or not config.output


def complete(config: ModelConfig, name: str, model_file: Path | None) -> None:
    """Fill in, in place, what the configuration leaves open.

    Names, types and dims come from the model's graph. `max_batch_size` becomes 4 where no tensor
    is declared and every input and output has a dynamic first dimension; dynamic batching is then
    on. Raises `RepositoryError` where the file cannot be read.
    """
    config.name = config.name or name
    if not config.platform and not config.backend:
        config.platform, config.backend = PLATFORM, BACKEND
    if model_file is None:
        return
    graph = _read(model_file).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    outputs = list(graph.output)
    own = {*sequence_config.own_tensors(config), *ragged_config.own_tensors(config)}
    undeclared = not config.input and not config.output
    if undeclared and config.max_batch_size == 0 and all(map(_dynamic_first, inputs + outputs)):
        config.max_batch_size = DEFAULT_MAX_BATCH_SIZE
        if config.WhichOneof("scheduling_choice") is None:
            config.dynamic_batching.SetInParent()
    for values, declared in ((inputs, config.input), (outputs, config.output)):
        if not declared:
            for value in values:
                if value.name in own:
                    continue
                _describe(value, declared.add(), batched=config.max_batch_size > 0)


def spell_out(config: ModelConfig) -> None:
    """Write down, in place, what Triton takes absent fields to mean, as its own ModelConfig does.

    Not the instances: how many there are and on which device is for the engine to say.
    """
    if is_onnx(config):
        config.platform, config.backend = PLATFORM, BACKEND
        config.default_model_filename = config.default_model_filename or DEFAULT_MODEL_FILE
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    if is_ensemble(config):
        config.model_transaction_policy.SetInParent()
    sequence_config.spell_out(config)
    batching = config.dynamic_batching
    batched = config.HasField("dynamic_batching") and config.max_batch_size > 0
    if batched and not batching.preferred_batch_size:
        batching.preferred_batch_size.append(config.max_batch_size)


def _read(file: Path) -> onnx.ModelProto:
    try:
        # the format by name: onnx would guess it from the file's suffix
        return onnx.load(file, format="protobuf", load_external_data=False)
    except (OSError, DecodeError) as error:
        raise RepositoryError(f"cannot read '{file.name}' as an ONNX model: {error}") from None


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [
        dim.dim_value if dim.HasField("dim_value") else -1
        for dim in value.type.tensor_type.shape.dim
    ]


def _dynamic_first(value: onnx.ValueInfoProto) -> bool:
    return _dims(value)[:1] == [-1]


def _describe(value: onnx.ValueInfoProto, tensor: Any, batched: bool) -> None:
    """Write a graph value into a ModelInput or ModelOutput."""
    datatype = _KSERVE.get(value.type.tensor_type.elem_type)
    if datatype is None:
        raise RepositoryError(f"the model's tensor '{value.name}' has a type that KServe has not")
    tensor.name = value.name
    tensor.data_type = NUMBERS[datatype]
    tensor.dims.extend(_dims(value)[1:] if batched else _dims(value))
