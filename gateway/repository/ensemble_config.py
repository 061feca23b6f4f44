"""`ensemble_scheduling`: Triton's rules, within the configuration and across the members.

The texts are Triton's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tritonclient.grpc.model_config_pb2 import ModelConfig

from gateway.core import ModelKey, ModelSpec, TensorSpec
from gateway.ensemble import EnsembleStep, needed, written
from gateway.errors import RepositoryError

PLATFORM = "ensemble"


def is_ensemble(config: ModelConfig) -> bool:
    """Return whether the model is made of others."""
    return bool(config.platform == PLATFORM)


def steps(config: ModelConfig) -> tuple[EnsembleStep, ...]:
    """Return the steps of an ensemble; none of any other model."""
    scheduling = config.ensemble_scheduling
    return tuple(
        EnsembleStep(
            step.model_name,
            max(0, step.model_version),
            dict(step.input_map),
            dict(step.output_map),
            scheduling.max_inflight_requests,
        )
        for step in scheduling.step
    )


def check(config: ModelConfig) -> None:
    """Raise `RepositoryError` where the configuration of an ensemble contradicts itself."""
    name = config.name
    scheduled = config.HasField("ensemble_scheduling")
    if not is_ensemble(config):
        if scheduled:
            raise RepositoryError(
                f"ensemble scheduling cannot be set for model '{name}' whose platform is not "
                "ensemble"
            )
        return
    if config.backend:
        raise RepositoryError(
            f"Ensemble model '{name}' must have platform type 'ensemble' and empty backend type"
        )
    if not scheduled:
        raise RepositoryError(
            f"ensemble scheduling must be set for ensemble {name} whose platform is ensemble"
        )
    if config.instance_group:
        raise RepositoryError(f"instance group should not be specified for ensemble '{name}'")
    if config.HasField("optimization"):
        raise RepositoryError(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise RepositoryError(f"model_warmup can not be specified for ensemble '{name}'")
    _check_steps(config)
    _check_tensors(config)


def _check_steps(config: ModelConfig) -> None:
    name, scheduled = config.name, config.ensemble_scheduling.step
    if not scheduled:
        raise RepositoryError(f"must specify 'step' for ensemble '{name}'")
    given = {tensor.name for tensor in config.input}
    outputs: set[str] = set()
    for number, step in enumerate(scheduled):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise RepositoryError(
                    f"must specify '{field}' in step {number} of ensemble '{name}'"
                )
        if step.model_version == 0 or step.model_version < -1:
            raise RepositoryError(_no_version(name, step.model_name, step.model_version))
        for tensor, times in Counter(step.output_map.values()).items():
            if tensor in outputs or times > 1:
                raise RepositoryError(
                    f"ensemble tensor '{tensor}' can appear in an output map only once for "
                    f"ensemble '{name}' step {number}"
                )
            if tensor in given:  # Triton takes this, and never answers
                raise RepositoryError(
                    f"ensemble input '{tensor}' for ensemble '{name}' is written by step {number}"
                )
        outputs.update(step.output_map.values())


def _check_tensors(config: ModelConfig) -> None:
    """Raise where a tensor is never written, or of no use."""
    name, scheduled = config.name, steps(config)
    inputs = [tensor.name for tensor in config.input]
    outputs = [tensor.name for tensor in config.output]
    tensors = sorted(
        {each for step in scheduled for each in (*step.inputs.values(), *step.outputs.values())}
    )
    # Triton's own texts lack the first quotation mark
    for kind, declared in (("input", inputs), ("output", outputs)):
        for tensor in declared:
            if tensor not in tensors:
                raise RepositoryError(
                    f"ensemble {kind} '{tensor}' for ensemble {name}' is not used"
                )
    used = {
        tensor
        for index in needed(scheduled, outputs)
        for tensor in scheduled[index].inputs.values()
    }
    for tensor in tensors:
        if tensor not in used.union(inputs, outputs):
            raise RepositoryError(f"ensemble tensor '{tensor}' is unused in ensemble '{name}'")
    there = written(scheduled, inputs)
    for output in outputs:
        if output not in there:
            writers = [step for step in scheduled if output in step.outputs.values()]
            sources = [tensor for step in writers for tensor in step.inputs.values()]
            missing = next((each for each in sources if each not in there), output)
            raise RepositoryError(
                f"output '{output}' for ensemble '{name}' is not written: at least one of its "
                f"depending tensors, '{missing}', is not connected"
            )


def _no_version(ensemble: str, model: str, version: int) -> str:
    return (
        f"ensemble '{ensemble}' depends on '{model}' whose required version {version} is not "
        "loaded."
    )


def absent(ensemble: str, step: EnsembleStep, known: bool) -> RepositoryError:
    """Return what to raise where a step's model is not there, or not in the step's version."""
    if known:
        return RepositoryError(_no_version(ensemble, step.model, step.version))
    return RepositoryError(
        f"ensemble {ensemble} contains models that are not available or ambiguous: {step.model}"
    )


def broken(ensemble: str, member: ModelKey, reason: str) -> RepositoryError:
    """Return what to raise where a member cannot be made ready."""
    return RepositoryError(
        f"ensemble '{ensemble}' depends on '{member.name}' which has no loaded version. Model "
        f"'{member.name}' loading failed with error: version {member.version} is at UNAVAILABLE "
        f"state: {reason};"
    )


def circular(path: Sequence[str]) -> RepositoryError:
    """Return what to raise where an ensemble is, in the end, a member of itself."""
    first, last = path[0], path[-1]
    return RepositoryError(
        f"circular dependency between ensembles: {first} -> ... -> {last} -> {first}"
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one model says of an ensemble's tensor: who, and the dims without the batch's."""

    model: str
    batched: bool
    datatype: str
    dims: tuple[int, ...]

    @property
    def full_dims(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batched else self.dims


def joined(ensemble: ModelSpec, members: Sequence[ModelSpec]) -> ModelSpec:
    """Return an ensemble as its members, one for each step, make it.

    It is decoupled where one of them is; its steps know their inputs' ranks; an output without
    labels has those of the member that writes it. Raises `RepositoryError` where the members do
    not fit it or each other.
    """
    name = ensemble.key.name
    seen: dict[str, _Seen] = {}
    for tensor in (*ensemble.inputs, *ensemble.outputs):
        _note(name, seen, tensor.name, _seen(ensemble, tensor, tensor.model_dims))
    met = []
    labels = {}
    for step, member in zip(ensemble.steps, members, strict=True):
        if 0 < member.max_batch_size < ensemble.max_batch_size:
            raise RepositoryError(
                f"ensemble {name} allows maximum batch size {ensemble.max_batch_size}, but it "
                f"contains model {member.key.name} which only allows maximum batch size to be "
                f"{member.max_batch_size}"
            )
        _check_maps(name, step, member)
        for maps, tensors in ((step.inputs, member.inputs), (step.outputs, member.outputs)):
            for tensor in tensors:
                if tensor.name in maps:
                    _note(name, seen, maps[tensor.name], _seen(member, tensor, tensor.dims))
        batch = 1 if member.max_batch_size > 0 else 0
        ranks = {each.name: len(each.dims) + batch for each in member.inputs}
        met.append(replace(step, ranks=ranks))
        for output in member.labels.keys() & step.outputs.keys():
            labels[step.outputs[output]] = member.labels[output]
    own = {each.name: labels[each.name] for each in ensemble.outputs if each.name in labels}
    ensemble = replace(ensemble, steps=tuple(met), labels={**own, **ensemble.labels})
    if not any(member.decoupled for member in members):
        return ensemble
    config = ModelConfig.FromString(ensemble.config)
    config.model_transaction_policy.decoupled = True
    return replace(
        ensemble,
        decoupled=True,
        forwarded=True,  # only a Triton has decoupled models
        config=config.SerializeToString(deterministic=True),
    )


def _check_maps(ensemble: str, step: EnsembleStep, member: ModelSpec) -> None:
    inputs = {tensor.name: tensor for tensor in member.inputs}
    outputs = {tensor.name for tensor in member.outputs}
    for name, tensor in step.inputs.items():
        if name not in inputs:
            raise RepositoryError(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is mapping to non-existing "
                f"input {name} in model {step.model}"
            )
    for name, wanted in inputs.items():
        if name not in step.inputs and not wanted.optional:
            raise RepositoryError(
                f"in ensemble {ensemble}, input {name} in model {step.model} is not mapped to any "
                "ensemble tensors"
            )
    for name, tensor in step.outputs.items():
        if name not in outputs:
            raise RepositoryError(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is mapped from non-existing "
                f"output {name} in model {step.model}"
            )


def _seen(model: ModelSpec, tensor: TensorSpec, dims: tuple[int, ...]) -> _Seen:
    return _Seen(model.key.name, model.max_batch_size > 0, tensor.datatype, dims)


def _note(ensemble: str, seen: dict[str, _Seen], tensor: str, new: _Seen) -> None:
    """Hold what a model says of a tensor against what the first that named it has said."""
    old = seen.setdefault(tensor, new)
    where = f"in ensemble {ensemble}, ensemble tensor {tensor}: inconsistent"
    if old.datatype != new.datatype:
        raise RepositoryError(
            f"{where} data type: {_typed(old.datatype)} is inferred from model {old.model} while "
            f"{_typed(new.datatype)} is inferred from model {new.model}"
        )
    # a model without a batch dimension may take what one with it gives: the whole batch, or one row
    if not _agree(old.dims, new.dims) and not _agree(old.full_dims, new.full_dims):
        raise RepositoryError(
            f"{where} shape: {_listed(old.full_dims)} is inferred from model {old.model} while "
            f"{_listed(new.full_dims)} is inferred from model {new.model}"
        )


def _typed(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True)
    )


def _listed(dims: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"
