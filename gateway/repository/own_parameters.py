"""The gateway's own parameters of a model, `tidegate.NAME`, in its `config.pbtxt`."""

from __future__ import annotations

import math

from tritonclient.grpc.model_config_pb2 import ModelConfig

from gateway.errors import RepositoryError

PREFIX = "tidegate."
PAD, SLO_MS = PREFIX + "pad", PREFIX + "slo_ms"
KNOWN = (PAD, SLO_MS)


def check(config: ModelConfig) -> None:
    """Raise `RepositoryError` for a name that is none of ours, and for a value that cannot be."""
    for key in config.parameters:
        if key.startswith(PREFIX) and key not in KNOWN:
            raise RepositoryError(f"unknown parameter '{key}': there are {', '.join(KNOWN)}")
    pad_to(config)
    slo_s(config)


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
    if SLO_MS not in config.parameters:
        return 0.0
    text = config.parameters[SLO_MS].string_value
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise RepositoryError(
            f"parameter '{SLO_MS}' is a number of milliseconds above 0, not '{text}'"
        )
    return value / 1e3
