"""The gateway's own parameters of a model, `tidegate.NAME`, in its `config.pbtxt`."""

from __future__ import annotations

import math

from tritonclient.grpc.model_config_pb2 import ModelConfig

from gateway.errors import RepositoryError
from gateway.placement import EngineKind, Placement

PREFIX = "tidegate."
PAD, SLO_MS, ENGINE = PREFIX + "pad", PREFIX + "slo_ms", PREFIX + "engine"
MIN_REPLICAS, MAX_REPLICAS = PREFIX + "min_replicas", PREFIX + "max_replicas"
IDLE_TIMEOUT_S, MEMORY_BYTES = PREFIX + "idle_timeout_s", PREFIX + "memory_bytes"
TARGET_CONCURRENCY = PREFIX + "target_concurrency"
KNOWN = (
    PAD,
    SLO_MS,
    ENGINE,
    MIN_REPLICAS,
    MAX_REPLICAS,
    IDLE_TIMEOUT_S,
    MEMORY_BYTES,
    TARGET_CONCURRENCY,
)


def check(config: ModelConfig) -> None:
    """Raise `RepositoryError` for a name that is none of ours, and for a value that cannot be."""
    for key in config.parameters:
        if key.startswith(PREFIX) and key not in KNOWN:
            raise RepositoryError(f"unknown parameter '{key}': there are {', '.join(KNOWN)}")
    pad_to(config)
    slo_s(config)
    placement(config)


def pad_to(config: ModelConfig) -> tuple[int, ...]:
    """Return the sizes, ascending, to which variable dims are padded: "16,32,64"."""
    if PAD not in config.parameters:
        return ()
    text = config.parameters[PAD].string_value
    sizes = [part.strip() for part in text.split(",")]
    if not all(size.isascii() and size.isdecimal() and 0 < int(size) < 2**31 for size in sizes):
        raise RepositoryError(
            f"parameter '{PAD}' is a list of sizes above 0 like \"16,32\", not '{text}'"
        )
    return tuple(sorted({int(size) for size in sizes}))


def slo_s(config: ModelConfig) -> float:
    """Return the model's latency objective, in seconds; 0 where it has none."""
    return (_number(config, SLO_MS, "milliseconds") or 0.0) / 1e3


def placement(config: ModelConfig) -> Placement:
    """Return how the model is to be kept."""
    return Placement(
        min_replicas=_count(config, MIN_REPLICAS, least=0),
        max_replicas=_count(config, MAX_REPLICAS, least=1),
        idle_timeout_s=_number(config, IDLE_TIMEOUT_S, "seconds"),
        target_concurrency=_number(config, TARGET_CONCURRENCY, "requests"),
        memory_bytes=_count(config, MEMORY_BYTES, least=1),
        engine=_engine(config),
    )


def _engine(config: ModelConfig) -> EngineKind | None:
    if ENGINE not in config.parameters:
        return None
    text = config.parameters[ENGINE].string_value
    try:
        return EngineKind(text)
    except ValueError:
        kinds = " or ".join(f"'{kind}'" for kind in EngineKind)
        raise RepositoryError(f"parameter '{ENGINE}' is {kinds}, not '{text}'") from None


def _count(config: ModelConfig, name: str, least: int) -> int | None:
    if name not in config.parameters:
        return None
    text = config.parameters[name].string_value
    if not (text.isascii() and text.isdecimal() and len(text) < 19 and int(text) >= least):
        raise RepositoryError(f"parameter '{name}' is a whole number from {least} on, not '{text}'")
    return int(text)


def _number(config: ModelConfig, name: str, unit: str) -> float | None:
    if name not in config.parameters:
        return None
    text = config.parameters[name].string_value
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise RepositoryError(f"parameter '{name}' is a number of {unit} above 0, not '{text}'")
    return value
