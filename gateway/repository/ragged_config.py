"""`allow_ragged_batch`, `batch_input`, `batch_output` in `config.pbtxt`: check them, read them."""

from __future__ import annotations

from collections.abc import Iterator

from tritonclient.grpc.model_config_pb2 import BatchInput as BatchInputMessage
from tritonclient.grpc.model_config_pb2 import BatchOutput as BatchOutputMessage
from tritonclient.grpc.model_config_pb2 import ModelConfig

from gateway.core import TensorSpec
from gateway.errors import RepositoryError
from gateway.ragged import BatchInput, BatchInputKind, RaggedBatching
from gateway.repository import own_parameters
from gateway.repository.datatypes import NAMES


def check(config: ModelConfig) -> None:
    """Raise `RepositoryError` where they contradict themselves or the model: Triton's texts."""
    name = config.name
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for entry in config.batch_input:
        kind = _kind(entry)
        if len(entry.source_input) != 1:
            raise RepositoryError(
                f"batch input kind '{kind}' expects 1 source input, got "
                f"{len(entry.source_input)} for {name}"
            )
        if NAMES.get(entry.data_type) not in ("INT32", "FP32"):
            raise RepositoryError(
                f"batch input data type must be TYPE_INT32 or TYPE_FP32 for {name}"
            )
        if entry.source_input[0] not in inputs:
            raise RepositoryError(f"unknown source input name '{entry.source_input[0]}' for {name}")
        if len(entry.target_name) != 1:
            raise RepositoryError(f"batch input kind '{kind}' expects 1 target name for {name}")
    targets: set[str] = set()
    for output in config.batch_output:
        if output.kind != BatchOutputMessage.BATCH_SCATTER_WITH_INPUT_SHAPE:
            raise RepositoryError(f"unknown batch output kind '{output.kind}' for {name}")
        if len(output.source_input) != 1:
            raise RepositoryError(
                "batch output kind 'BATCH_SCATTER_WITH_INPUT_SHAPE' expects 1 source input, got "
                f"{len(output.source_input)} for {name}"
            )
        if output.source_input[0] not in inputs:
            raise RepositoryError(
                f"unknown source input name '{output.source_input[0]}' for {name}"
            )
        for target in output.target_name:
            if target not in outputs:
                raise RepositoryError(f"unknown target output name '{target}' for {name}")
            if target in targets:
                raise RepositoryError(
                    f"target output name '{target}' can only be specified once for {name}"
                )
            targets.add(target)
    ragged = any(tensor.allow_ragged_batch for tensor in config.input)
    if config.max_batch_size == 0 and (ragged or config.batch_input or config.batch_output):
        raise RepositoryError(f"ragged batches need a max_batch_size above 0 for {name}")
    if own_parameters.pad_to(config) and (ragged or config.batch_input or config.batch_output):
        # batch inputs would count the padding
        raise RepositoryError(f"'{own_parameters.PAD}' and ragged batches exclude each other")


def _kind(entry: BatchInputMessage) -> BatchInputKind:
    try:
        return BatchInputKind(BatchInputMessage.Kind.Name(entry.kind))
    except ValueError:
        raise RepositoryError(f"unknown batch input kind '{entry.kind}'") from None


def own_tensors(config: ModelConfig) -> Iterator[str]:
    """Yield the names of the inputs that are made for each batch."""
    for entry in config.batch_input:
        yield from entry.target_name


def ragged_batching(config: ModelConfig) -> RaggedBatching | None:
    """Return how requests of different shapes share a batch; None where they do not."""
    inputs = frozenset(tensor.name for tensor in config.input if tensor.allow_ragged_batch)
    if not (inputs or config.batch_input or config.batch_output):
        return None
    return RaggedBatching(
        inputs=inputs,
        batch_inputs=tuple(
            BatchInput(
                name=entry.target_name[0],
                kind=_kind(entry),
                datatype=NAMES[entry.data_type],
                source=entry.source_input[0],
            )
            for entry in config.batch_input
        ),
        scattered={
            target: output.source_input[0]
            for output in config.batch_output
            for target in output.target_name
        },
    )


def own_inputs(config: ModelConfig) -> Iterator[TensorSpec]:
    """Yield what a model takes of the gateway: their first dimension has no fixed size."""
    ranks = {tensor.name: len(tensor.dims) for tensor in config.input}
    for entry in config.batch_input:
        by_item = _kind(entry) is BatchInputKind.ITEM_SHAPE
        dims = (ranks[entry.source_input[0]],) if by_item else ()
        yield TensorSpec(entry.target_name[0], NAMES[entry.data_type], dims)
