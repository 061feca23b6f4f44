"""`config.pbtxt`: Triton's description of a model, written from a spec and compared."""

from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.errors import PublishError
from export.spec import ExportSpec, TensorSpec


def render(spec: ExportSpec) -> str:
    """Text of `config.pbtxt` for an ONNX version of `spec`."""
    config = pb.ModelConfig(
        input=[pb.ModelInput(**_tensor(tensor)) for tensor in spec.inputs],
        output=[
            pb.ModelOutput(
                **_tensor(tensor), label_filename=tensor.labels.name if tensor.labels else ""
            )
            for tensor in spec.outputs
        ],
    )
    if batching := spec.dynamic_batching:
        config.dynamic_batching.SetInParent()  # an empty block is a statement too
        config.dynamic_batching.preferred_batch_size.extend(batching.preferred_batch_size)
        config.dynamic_batching.max_queue_delay_microseconds = batching.max_queue_delay_microseconds
    # Written by hand because MessageToString drops `max_batch_size: 0`, which means something.
    head = f'name: "{spec.name}"\nbackend: "onnxruntime"\nmax_batch_size: {spec.max_batch_size}\n'
    return head + text_format.MessageToString(config)


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": tensor.name,
        "data_type": pb.DataType.Value(f"TYPE_{tensor.dtype}"),
        "dims": [dim if isinstance(dim, int) else -1 for dim in tensor.dims],
    }
    if not tensor.dims:  # Triton knows no empty dims: clients send one element, the model gets none
        fields["dims"] = [1]
        fields["reshape"] = pb.ModelTensorReshape(shape=[])
    return fields


def interface_changes(existing: str, new: str) -> list[str]:
    """What a client of `existing` would notice under `new`; empty if the two are compatible.

    What `existing` leaves for the server to complete counts as equal.
    """
    try:
        old = text_format.Parse(existing, pb.ModelConfig())
    except text_format.ParseError as error:
        raise PublishError(f"the model's present config.pbtxt is not valid: {error}") from None
    config = text_format.Parse(new, pb.ModelConfig())
    changes = []
    runtime = old.backend or old.platform.partition("_")[0]  # platform: onnxruntime_onnx
    if runtime not in ("", config.backend):
        changes.append(f"backend is {runtime}, would become {config.backend}")
    if old.input and old.max_batch_size != config.max_batch_size:
        changes.append(
            f"max_batch_size is {old.max_batch_size}, would become {config.max_batch_size}"
        )
    for kind, before, after in (
        ("inputs", old.input, config.input),
        ("outputs", old.output, config.output),
    ):
        if before and (was := _described(before)) != (becomes := _described(after)):
            changes.append(f"{kind} are {', '.join(was)}, would become {', '.join(becomes)}")
    return changes


def _described(tensors: Any) -> list[str]:
    return sorted(
        f"{t.name} {pb.DataType.Name(t.data_type).removeprefix('TYPE_')} {list(t.dims)}"
        + (f" reshaped to {list(t.reshape.shape)}" if t.HasField("reshape") else "")
        for t in tensors
    )
