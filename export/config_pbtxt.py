"""`config.pbtxt`: Triton's description of a model, written from a spec and compared."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from export.choose import Batching
from export.errors import PublishError
from export.samples import Arrays
from export.spec import ExportSpec, SequenceBatching
from export.tensors import TensorSpec


@dataclass(frozen=True)
class WarmUp:
    """One call that a fresh copy runs before it answers: arrays by input, without the batch."""

    batch: int
    arrays: Arrays

    def files(self) -> dict[str, bytes]:
        """Raw content by the name that `config.pbtxt` gives it: an input may be called "a/b"."""
        return {_file_name(name): array.tobytes() for name, array in self.arrays.items()}


def render(
    spec: ExportSpec,
    batching: Batching,
    *,
    backend: str = "onnxruntime",
    on_gpu: bool = False,
    warm_up: WarmUp | None = None,
    cc_files: Mapping[str, str] | None = None,
) -> str:
    """Text of `config.pbtxt` for a version of `spec`; `cc_files`: engine by compute capability."""
    sequence = spec.sequence_batching
    hidden = _hidden(sequence)
    config = pb.ModelConfig(
        input=[pb.ModelInput(**_tensor(t)) for t in spec.inputs if t.name not in hidden],
        output=[
            pb.ModelOutput(**_tensor(t), label_filename=t.labels.name if t.labels else "")
            for t in spec.outputs
            if t.name not in hidden
        ],
        cc_model_filenames=cc_files or {},
    )
    if dynamic := batching.dynamic:
        config.dynamic_batching.SetInParent()  # an empty block is a statement too
        config.dynamic_batching.preferred_batch_size.extend(dynamic.preferred_batch_size)
        config.dynamic_batching.max_queue_delay_microseconds = dynamic.max_queue_delay_microseconds
    if sequence:
        _write_sequence(config.sequence_batching, sequence, spec)
    if batching.instances > 1:
        group = config.instance_group.add(count=batching.instances)
        group.kind = group.KIND_GPU if on_gpu else group.KIND_CPU
    if warm_up and not sequence:
        _write_warm_up(config, warm_up, spec)
    # Written by hand because MessageToString drops `max_batch_size: 0`, which means something.
    head = f'name: "{spec.name}"\nbackend: "{backend}"\nmax_batch_size: {batching.max_batch_size}\n'
    return head + text_format.MessageToString(config)


def _hidden(sequence: SequenceBatching | None) -> set[str]:
    """Inputs and outputs that clients do not see: the server's own."""
    if sequence is None:
        return set()
    control = {sequence.start} if sequence.start else set()
    return {*sequence.states.keys(), *sequence.states.values(), *control}


def _write_sequence(block: Any, sequence: SequenceBatching, spec: ExportSpec) -> None:
    block.max_sequence_idle_microseconds = sequence.max_idle_us
    inputs = {tensor.name: tensor for tensor in spec.inputs}
    if sequence.start:
        control = block.control_input.add(name=sequence.start)
        kind = pb.ModelSequenceBatching.Control.CONTROL_SEQUENCE_START
        control.control.add(kind=kind, fp32_false_true=[0, 1])
    for before, after in sequence.states.items():
        data_type = pb.DataType.Value(f"TYPE_{inputs[before].dtype}")
        dims = [dim if isinstance(dim, int) else -1 for dim in inputs[before].dims]
        state = block.state.add(
            input_name=before, output_name=after, data_type=data_type, dims=dims
        )
        state.initial_state.add(data_type=data_type, dims=dims, zero_data=True, name=f"{before}_0")


def _write_warm_up(config: Any, warm_up: WarmUp, spec: ExportSpec) -> None:
    sample = config.model_warmup.add(name="sample", batch_size=warm_up.batch)
    for tensor in spec.inputs:
        entry = sample.inputs[tensor.name]
        entry.data_type = pb.DataType.Value(f"TYPE_{tensor.dtype}")
        entry.dims.extend(warm_up.arrays[tensor.name].shape or (1,))
        entry.input_data_file = _file_name(tensor.name)


def _file_name(tensor: str) -> str:
    return re.sub(r"[^\w.-]", "_", tensor)


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
