"""A completed configuration -> what the gateway needs to know of one model version."""

from __future__ import annotations

from pathlib import Path

from gateway.core import ModelKey, ModelSpec, Override
from gateway.placement import EngineKind
from gateway.repository import (
    config_pbtxt,
    ensemble_config,
    own_parameters,
    ragged_config,
    sequence_config,
)


def model_spec(
    config: config_pbtxt.ModelConfig,
    version: int,
    path: Path,
    file_bytes: int = 0,
    modified_ns: int = 0,
    kind: EngineKind = EngineKind.TRITON,
    override: Override | None = None,
) -> ModelSpec:
    """Return one version of a model whose configuration is complete and checked.

    `kind` is the kind of engine that runs it.
    """
    embedded = kind is EngineKind.EMBEDDED
    inputs = config_pbtxt.tensor_specs(config.input)
    outputs = config_pbtxt.tensor_specs(config.output)
    sequence = sequence_config.sequence_batching(config, path.parent if embedded else None)
    ragged = ragged_config.ragged_batching(config)
    # a ragged batch cannot be put into one request to a Triton server
    scheduled_by_triton = sequence or ragged or config.model_transaction_policy.decoupled
    return ModelSpec(
        key=ModelKey(config.name, version),
        path=path,
        model_file=model_file(config),
        platform=config.platform or config.backend,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        batching=config_pbtxt.batch_policy(config),
        instances=config_pbtxt.instances(config),
        file_bytes=file_bytes,
        modified_ns=modified_ns,
        config=config.SerializeToString(deterministic=True),
        utf8_only=embedded,  # ONNX Runtime's Python API takes no other text
        runtime=config_pbtxt.runtime_options(config),
        steps=ensemble_config.steps(config),
        sequence=sequence,
        ragged=ragged,
        own_inputs=(*sequence_config.own_inputs(sequence), *ragged_config.own_inputs(config)),
        own_outputs=tuple(
            own
            for own in sequence_config.own_outputs(sequence)
            # what is declared as an output, too, clients may look at
            if own.name not in {output.name for output in outputs}
        ),
        decoupled=config.model_transaction_policy.decoupled,
        forwarded=bool(scheduled_by_triton) and not embedded,
        parametric=not embedded,
        cached=config.response_cache.enable,
        override=override,
        metric_tags=dict(config.metric_tags),
        kind=kind,
        placement=own_parameters.placement(config),
    )


def model_file(config: config_pbtxt.ModelConfig) -> str:
    """Return the name of the model's file in a version folder."""
    return config.default_model_filename or config_pbtxt.default_model_file(config)
