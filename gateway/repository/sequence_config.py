"""`sequence_batching` in `config.pbtxt`: check it by Triton's rules, read the nouns off it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelSequenceBatching

from gateway import wire
from gateway.core import DTYPES, BatchPolicy, TensorSpec
from gateway.errors import RepositoryError
from gateway.repository import own_parameters
from gateway.repository.datatypes import NAMES
from gateway.sequence import Control, ControlKind, SequenceBatching, State

DEFAULT_IDLE_US = 1_000_000
INITIAL_STATE_FOLDER = "initial_state"  # of the model, beside its versions

_Kind = ModelSequenceBatching.Control.Kind
_CHOICES = {"int32_false_true": "INT32", "fp32_false_true": "FP32", "bool_false_true": "BOOL"}
_CORRID = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")


def check(config: ModelConfig) -> None:
    """Raise `RepositoryError` where the sequence batching contradicts itself or the model."""
    if not config.HasField("sequence_batching"):
        return
    name, batching = config.name, config.sequence_batching
    _check_controls(batching, name)
    for size in batching.oldest.preferred_batch_size:
        if size <= 0:
            raise RepositoryError(
                f"sequence batching preferred batch size must be positive for {name}"
            )
        if size > max(1, config.max_batch_size):
            raise RepositoryError(
                f"sequence batching preferred batch size must be <= max batch size for {name}"
            )
    if not 0.0 <= batching.direct.minimum_slot_utilization <= 1.0:
        raise RepositoryError(
            "sequence batching minimum slot utilization must be in range (0.0, 1.0] for " + name
        )
    seen: set[str] = {tensor.name for tensor in config.input}
    for tensor in (*batching.control_input, *batching.state):
        own = getattr(tensor, "input_name", "") or getattr(tensor, "name", "")
        if own in seen:
            raise RepositoryError(
                f"tensor '{own}' is more than one of: an input, a control input, a state"
            )
        seen.add(own)
    for state in batching.state:
        _check_state(state)


def check_embedded(config: ModelConfig) -> None:
    """Raise `RepositoryError` for what this process cannot do."""
    if config.sequence_batching.iterative_sequence:
        raise RepositoryError(
            "the embedded engine serves no iterative sequences: an ONNX model answers a request "
            "once, and asks for no other run of it"
        )
    if config.HasField("sequence_batching") and own_parameters.pad_to(config):
        raise RepositoryError(f"'{own_parameters.PAD}' and sequence_batching exclude each other")


def _check_controls(batching: ModelSequenceBatching, name: str) -> None:
    seen_names: set[str] = set()
    seen_kinds: set[int] = set()
    for control_input in batching.control_input:
        if not control_input.name:
            raise RepositoryError(f"sequence batching control tensor must have a name for {name}")
        if control_input.name in seen_names:
            raise RepositoryError(
                f"sequence batching control tensor '{control_input.name}' is specified for "
                f"multiple control kinds for {name}"
            )
        seen_names.add(control_input.name)
        for control in control_input.control:
            kind = _Kind.Name(control.kind)
            if control.kind in seen_kinds:
                raise RepositoryError(
                    f"sequence batching specifies multiple {kind} tensors for {name}"
                )
            seen_kinds.add(control.kind)
            if kind == ControlKind.CORRID:
                _check_corrid(control, name)
            else:
                _check_boolean(control, kind, name)
        if len(control_input.control) != 1:
            raise RepositoryError(
                f"sequence batching control tensor '{control_input.name}' must have one control "
                f"for {name}"
            )


def _check_corrid(control: Any, name: str) -> None:
    if any(getattr(control, choice) for choice in _CHOICES):
        raise RepositoryError(
            "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or "
            f"'bool_false_true' for {ControlKind.CORRID} for {name}"
        )
    if NAMES.get(control.data_type) not in _CORRID:
        raise RepositoryError(
            f"unexpected data type for control {ControlKind.CORRID} for {name}. Allowed data types "
            "are TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
        )


def _check_boolean(control: Any, kind: str, name: str) -> None:
    chosen = [choice for choice in _CHOICES if getattr(control, choice)]
    if not chosen:
        raise RepositoryError(
            "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or "
            f"'bool_false_true' for {kind} for {name}"
        )
    if len(chosen) > 1:
        raise RepositoryError(
            "sequence batching specifies more than one from 'int32_false_true', "
            f"'fp32_false_true' and 'bool_false_true' for {kind} for {name}"
        )
    if len(getattr(control, chosen[0])) != 2:
        raise RepositoryError(
            f"sequence batching control '{chosen[0]}' must have exactly 2 entries for {kind} for "
            f"{name}"
        )


def _check_state(state: Any) -> None:
    name = state.input_name
    if NAMES.get(state.data_type, "INVALID") == "INVALID" or not name or not state.output_name:
        raise RepositoryError(f"state '{name}' needs an input_name, an output_name and a data_type")
    if any(dim == 0 or dim < -1 for dim in state.dims):
        raise RepositoryError(f"state '{name}' has a dim that is neither > 0 nor -1")
    if len(state.initial_state) > 1:
        raise RepositoryError(
            f"initial_state field for state input '{name}' must contain exactly one or zero "
            f"element. Found '{len(state.initial_state)}' elements."
        )
    for initial in state.initial_state:
        _check_initial(initial, state)


def _check_initial(initial: Any, state: Any) -> None:
    name = state.input_name
    if initial.data_type != state.data_type:
        raise RepositoryError(
            f"The data type used for 'initial_state' field of state '{name}' does not match the "
            "state data type."
        )
    if not initial.name:
        raise RepositoryError(
            f"Field 'name' must be set when using initial_state for state input '{name}'."
        )
    if len(initial.dims) != len(state.dims):
        raise RepositoryError(
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions "
            f"for state input '{name}'. {len(initial.dims)} != {len(state.dims)}"
        )
    for dim, declared in zip(initial.dims, state.dims, strict=True):
        if dim < 0:
            raise RepositoryError(
                f"'initial_state' field for state input name '{name}' contains variable dimensions."
            )
        if declared not in (-1, dim):
            raise RepositoryError(
                f"'initial_state' dim for input name '{name}' doesn't match 'state' dim "
                f"description. {dim} != {declared}"
            )
    if initial.WhichOneof("state_data") is None:
        raise RepositoryError(f"initial_state setting expects state'{name}' to have state_data set")


def spell_out(config: ModelConfig) -> None:
    """Write down, in place, what Triton takes absent fields to mean."""
    if not config.HasField("sequence_batching"):
        return
    batching = config.sequence_batching
    batching.max_sequence_idle_microseconds = (
        batching.max_sequence_idle_microseconds or DEFAULT_IDLE_US
    )
    oldest = batching.HasField("oldest") and config.max_batch_size > 0
    if oldest and not batching.oldest.preferred_batch_size:
        batching.oldest.preferred_batch_size.append(config.max_batch_size)


def own_tensors(config: ModelConfig) -> Iterator[str]:
    """Yield the names of the inputs and outputs of a model that clients know nothing of."""
    for control_input in config.sequence_batching.control_input:
        yield control_input.name
    for state in config.sequence_batching.state:
        yield state.input_name
        yield state.output_name


def batch_policy(config: ModelConfig) -> BatchPolicy:
    """Return how steps of different sequences become batches.

    Direct: the steps that are there go once they fill `minimum_slot_utilization` of a batch, or
    the oldest has waited `max_queue_delay`. Oldest: the rules of dynamic batching. Where Triton
    gives every slot a place in the batch, filled or not, these batches hold what is there: an ONNX
    model keeps nothing between two runs that would depend on the place.
    """
    batching, most = config.sequence_batching, config.max_batch_size
    slo_s = own_parameters.slo_s(config)
    if not most:
        return BatchPolicy(slo_s=slo_s)
    if batching.HasField("oldest"):
        delay_us = batching.oldest.max_queue_delay_microseconds
        preferred = tuple(sorted(set(batching.oldest.preferred_batch_size))) or (most,)
    else:
        enough = math.ceil(batching.direct.minimum_slot_utilization * most)
        delay_us = batching.direct.max_queue_delay_microseconds if enough else 0
        preferred = tuple(range(max(1, enough), most + 1)) if delay_us else (most,)
    return BatchPolicy(
        max_batch_size=most,
        dynamic=True,
        preferred=preferred,
        max_delay_s=delay_us / 1e6,
        slo_s=slo_s,
    )


def sequence_batching(config: ModelConfig, folder: Path | None) -> SequenceBatching | None:
    """Return the sequence batching of a checked configuration.

    `folder` is the model's, where this process needs the data of initial states.
    """
    if not config.HasField("sequence_batching"):
        return None
    batching = config.sequence_batching
    candidates = batching.oldest.max_candidate_sequences if batching.HasField("oldest") else 0
    return SequenceBatching(
        max_idle_s=(batching.max_sequence_idle_microseconds or DEFAULT_IDLE_US) / 1e6,
        slots=candidates or max(1, config.max_batch_size),
        controls=tuple(_control(each) for each in batching.control_input),
        states=tuple(_state(each, folder) for each in batching.state),
    )


def own_inputs(sequence: SequenceBatching | None) -> Iterator[TensorSpec]:
    """Yield what a model takes of the gateway: a control has one element for each row."""
    if sequence is None:
        return
    for control in sequence.controls:
        yield TensorSpec(control.name, control.datatype, (1,))
    for state in sequence.states:
        yield TensorSpec(state.input_name, state.datatype, state.dims)


def own_outputs(sequence: SequenceBatching | None) -> Iterator[TensorSpec]:
    """Yield what a model gives back of it."""
    for state in sequence.states if sequence is not None else ():
        yield TensorSpec(state.output_name, state.datatype, state.dims)


def _control(control_input: Any) -> Control:
    (control,) = control_input.control
    kind = ControlKind(_Kind.Name(control.kind))
    if kind is ControlKind.CORRID:
        return Control(kind, control_input.name, NAMES[control.data_type])
    choice = next(choice for choice in _CHOICES if getattr(control, choice))
    false, true = getattr(control, choice)
    return Control(kind, control_input.name, _CHOICES[choice], false, true)


def _state(state: Any, folder: Path | None) -> State:
    datatype = NAMES[state.data_type]
    dims, data = tuple(abs(dim) for dim in state.dims), b""  # to begin with, -1 is 1
    for initial in state.initial_state:
        dims = tuple(initial.dims)
        if folder is not None and initial.data_file:
            data = _initial_data(folder / INITIAL_STATE_FOLDER, initial.data_file, datatype, dims)
    return State(state.input_name, state.output_name, datatype, tuple(state.dims), dims, data)


def _initial_data(folder: Path, name: str, datatype: str, dims: tuple[int, ...]) -> bytes:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise RepositoryError(f"data_file '{name}' is outside the folder '{folder.name}'")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RepositoryError(f"cannot read '{folder.name}/{name}': {error.strerror}") from None
    if datatype != "BYTES":  # what a file holds beyond its tensor says nothing
        data = data[: math.prod(dims) * DTYPES[datatype].itemsize]
    try:
        wire.array(datatype, dims, data)
    except ValueError:
        raise RepositoryError(
            f"'{folder.name}/{name}' does not hold {math.prod(dims)} elements of {datatype}"
        ) from None
    return data
