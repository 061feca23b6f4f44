"""`config.pbtxt`: parse it with the real protobuf, check it, read the gateway's nouns off it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from gateway.core import (
    Accelerator,
    BatchPolicy,
    DeviceKind,
    QueuePolicy,
    RuntimeOptions,
    TensorSpec,
    TimeoutAction,
    WarmUp,
    WarmUpData,
    WarmUpInput,
)
from gateway.errors import RepositoryError
from gateway.repository import ensemble_config, own_parameters, ragged_config, sequence_config
from gateway.repository.datatypes import NAMES

ModelConfig: TypeAlias = model_config_pb2.ModelConfig

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
DEFAULT_MODEL_FILE = "model.onnx"
PLAN_FILE = "model.plan"


def parse(text: str, file: Path) -> ModelConfig:
    """Return the message. Raises `RepositoryError` naming the line of what is wrong."""
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        # the parser begins its text with "line:column : "
        reason = str(error).split(" : ", 1)[-1]
        raise RepositoryError(f"{file.name} line {error.GetLine()}: {reason}") from None


def parse_json(text: str) -> ModelConfig:
    """Return the message that a client sent as JSON. Raises `RepositoryError`."""
    try:
        given = json.loads(text)
        if not isinstance(given, dict):
            raise ValueError("it is no object")
        json.dumps(given, ensure_ascii=False).encode()  # protobuf trips over lone surrogates
        return json_format.ParseDict(given, ModelConfig())
    # brackets within brackets, a thousand deep, are a RecursionError
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise RepositoryError(f"parameter 'config' is no ModelConfig: {error}") from None


def is_onnx(config: ModelConfig) -> bool:
    """Return whether ONNX Runtime serves the model, or nothing says what does."""
    return (config.platform or PLATFORM) == PLATFORM and (config.backend or BACKEND) == BACKEND


def is_plan(config: ModelConfig) -> bool:
    """Return whether the model is an engine that TensorRT has built."""
    return (config.platform or config.backend) in ("tensorrt_plan", "tensorrt")


def default_model_file(config: ModelConfig) -> str:
    """Return the name that a model's file has where the configuration gives it none."""
    return PLAN_FILE if is_plan(config) else DEFAULT_MODEL_FILE


def check_embedded(config: ModelConfig) -> None:
    """Raise `RepositoryError` where a configuration asks for what this process cannot run."""
    if config.model_transaction_policy.decoupled:
        raise RepositoryError(
            "the embedded engine serves no decoupled models: they need --triton or --spawn-triton"
        )
    sequence_config.check_embedded(config)
    if not is_onnx(config) and not is_plan(config) and not ensemble_config.is_ensemble(config):
        kind = "platform" if config.platform else "backend"
        raise RepositoryError(
            f"the embedded engine serves no models of {kind} '{config.platform or config.backend}'"
        )


def check(config: ModelConfig, folder_name: str) -> None:
    """Raise `RepositoryError` where a completed configuration contradicts itself."""
    name = folder_name
    if config.name != folder_name:
        raise RepositoryError(
            f"config.pbtxt names the model '{config.name}', its folder '{folder_name}'"
        )
    if config.max_batch_size < 0:
        raise RepositoryError(f"max_batch_size must not be negative for {name}")
    for tensor in (*config.input, *config.output):
        # proto3 enums are open: the parser takes any number
        if tensor.data_type not in NAMES or tensor.data_type == model_config_pb2.TYPE_INVALID:
            raise RepositoryError(f"tensor '{tensor.name}' has no valid data_type")
        if tensor.HasField("reshape"):
            _check_reshape(tensor)
        if any(dim == 0 or dim < -1 for dim in tensor.dims):
            raise RepositoryError(f"tensor '{tensor.name}' has a dim that is neither > 0 nor -1")
    own_parameters.check(config)
    ensemble_config.check(config)
    if config.response_cache.enable:
        _check_cacheable(config, name)
    sequence_config.check(config)
    ragged_config.check(config)
    if config.HasField("dynamic_batching"):
        _check_batching(config, name)


def _check_cacheable(config: ModelConfig, name: str) -> None:
    for stateful, how in (
        (config.HasField("sequence_batching"), "sequence batching scheduler"),
        (config.model_transaction_policy.decoupled, "'decoupled' transaction policy"),
    ):
        if stateful:
            raise RepositoryError(
                f"Response Cache does not currently support model {name} with {how}. Please "
                "disable the response cache."
            )


def _check_reshape(tensor: Any) -> None:
    outside, inside = list(tensor.dims), list(tensor.reshape.shape)
    fits = outside.count(-1) == inside.count(-1) <= 1
    # with one variable dim on each side the signs cancel: the fixed parts are compared
    if not fits or math.prod(outside) != math.prod(inside):
        raise RepositoryError(
            f"tensor '{tensor.name}' cannot be reshaped from {outside} to {inside}: they need the "
            "same number of elements, with at most one variable dim each"
        )


def _check_batching(config: ModelConfig, name: str) -> None:
    """Triton's own rules and texts (ValidateModelConfig)."""
    batching = config.dynamic_batching
    levels = batching.priority_levels
    for size in batching.preferred_batch_size:
        if size <= 0:
            raise RepositoryError(f"dynamic batching preferred size must be positive for {name}")
        if size > max(1, config.max_batch_size):
            raise RepositoryError(
                f"dynamic batching preferred size must be <= max batch size for {name}"
            )
    if levels and not 1 <= batching.default_priority_level <= levels:
        raise RepositoryError(f"default priority level must be in range [1, {levels}] for {name}")
    if any(not 1 <= level <= levels for level in batching.priority_queue_policy):
        raise RepositoryError(
            f"priority queue policy must have priority level in range [1, {levels}] for {name}"
        )
    if batching.preserve_ordering:
        if levels > 1:
            raise RepositoryError(
                f"Only one priority level is allowed when 'preserve_ordering' is true for {name}"
            )
        policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
        if any(policy.timeout_action == policy.DELAY for policy in policies):
            raise RepositoryError(
                "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is "
                f"true for {name}"
            )


def tensor_specs(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    """Return the gateway's view of `config.input` or `config.output`."""
    return tuple(
        TensorSpec(
            name=tensor.name,
            datatype=NAMES[tensor.data_type],
            dims=tuple(tensor.dims),
            optional=getattr(tensor, "optional", False),
            reshape=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
            ragged=getattr(tensor, "allow_ragged_batch", False),
        )
        for tensor in tensors
    )


def batch_policy(config: ModelConfig) -> BatchPolicy:
    """Return how the model's requests become batches."""
    if config.HasField("sequence_batching"):
        return sequence_config.batch_policy(config)
    if config.max_batch_size == 0 or not config.HasField("dynamic_batching"):
        return BatchPolicy(
            max_batch_size=max(1, config.max_batch_size),
            slo_s=own_parameters.slo_s(config),
            pad_to=own_parameters.pad_to(config),
        )
    batching = config.dynamic_batching
    return BatchPolicy(
        max_batch_size=config.max_batch_size,
        dynamic=True,
        preferred=tuple(sorted(set(batching.preferred_batch_size))) or (config.max_batch_size,),
        max_delay_s=batching.max_queue_delay_microseconds / 1e6,
        preserve_ordering=batching.preserve_ordering,
        slo_s=own_parameters.slo_s(config),
        pad_to=own_parameters.pad_to(config),
        priority_levels=batching.priority_levels,
        default_level=batching.default_priority_level,
        default_queue=_queue_policy(batching.default_queue_policy),
        level_queues={
            level: _queue_policy(policy) for level, policy in batching.priority_queue_policy.items()
        },
    )


def _queue_policy(policy: model_config_pb2.ModelQueuePolicy) -> QueuePolicy:
    delay = policy.timeout_action == policy.DELAY
    return QueuePolicy(
        timeout_action=TimeoutAction.DELAY if delay else TimeoutAction.REJECT,
        default_timeout_s=policy.default_timeout_microseconds / 1e6,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def instances(config: ModelConfig) -> int:
    """Return how many batches may run at once: the sum of the instance groups, at least 1.

    A group that names GPUs has its count on each of them.
    """
    groups = config.instance_group
    return max(1, sum((group.count or 1) * max(1, len(group.gpus)) for group in groups))


def runtime_options(config: ModelConfig) -> RuntimeOptions:
    """Return what the configuration asks of the runtime that opens the model."""
    groups, optimization = config.instance_group, config.optimization
    kinds = {group.kind for group in groups}
    device = DeviceKind.AUTO
    if model_config_pb2.ModelInstanceGroup.KIND_GPU in kinds:
        device = DeviceKind.GPU
    elif kinds == {model_config_pb2.ModelInstanceGroup.KIND_CPU}:
        device = DeviceKind.CPU
    return RuntimeOptions(
        device=device,
        gpus=tuple(sorted({gpu for group in groups for gpu in group.gpus})),
        accelerators=tuple(
            Accelerator(one.name, dict(one.parameters))
            for one in optimization.execution_accelerators.gpu_execution_accelerator
        ),
        graph_level=optimization.graph.level,
        parameters={name: value.string_value for name, value in config.parameters.items()},
        warm_up=tuple(_warm_up(sample) for sample in config.model_warmup),
    )


def _warm_up(sample: model_config_pb2.ModelWarmup) -> WarmUp:
    sources = {"random_data": WarmUpData.RANDOM, "input_data_file": WarmUpData.FILE}
    return WarmUp(
        name=sample.name,
        batch_size=sample.batch_size,
        # 0 is Triton's way of saying once
        count=max(1, sample.count),
        inputs=tuple(
            WarmUpInput(
                name=name,
                datatype=NAMES.get(tensor.data_type, "INVALID"),
                dims=tuple(tensor.dims),
                data=sources.get(tensor.WhichOneof("input_data_type"), WarmUpData.ZEROS),
                file=tensor.input_data_file,
            )
            for name, tensor in sorted(sample.inputs.items())
        ),
    )
