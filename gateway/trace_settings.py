"""Which requests are traced: Triton's trace settings, for all models and for each. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import InvalidRequest, NotSupported

LEVELS = ("TIMESTAMPS", "TENSORS")
QUEUE_SPANS, BATCH_SPANS, DELAY_MS = 2048, 512, 5000  # of the exporter; Triton's are the same
_OFF = "OFF"
_INTEGER = re.compile(r"\s*[+-]?\d{1,40}")


@dataclass(slots=True)
class TraceRule:
    """Traces every `rate`-th request, `count` more of them (-1: all); none without a level."""

    level: tuple[str, ...] = ()
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    seen: int = field(default=0, compare=False)

    def due(self, sampled_parent: bool | None) -> bool:
        """Say whether this request is traced.

        Where it is part of somebody's trace (`sampled_parent` is not None) that one decides.
        """
        if not self.level or not self.count:
            return False
        if sampled_parent is None:
            self.seen += 1
            sampled_parent = self.seen % self.rate == 0
        if sampled_parent and self.count > 0:
            self.count -= 1
        return sampled_parent


class TraceSettings:
    """The rule for all models, and those of models that have settings of their own.

    A model without any shares the rule of all, its counters included. Error texts are Triton's.
    """

    def __init__(self, endpoint: str, rate: int) -> None:
        self._endpoint = endpoint
        self._at_start = TraceRule(("TIMESTAMPS",) if endpoint else (), rate)
        self._all = replace(self._at_start)
        self._models: dict[str, TraceRule] = {}
        self._own: dict[str, set[str]] = {}  # which of a model's settings are its own

    def rule(self, model: str) -> TraceRule:
        """Return the rule for a model; "" is that of all without their own."""
        return self._models.get(model, self._all)

    def shown(self, model: str) -> dict[str, list[str]]:
        """Return a model's settings as TraceSetting shows them."""
        rule = self.rule(model)
        settings = {
            "trace_level": list(rule.level) or [_OFF],
            "trace_rate": [str(rule.rate)],
            "trace_count": [str(rule.count)],
        }
        if not self._endpoint:
            off = {"trace_mode": "triton", "trace_file": "", "log_frequency": rule.log_frequency}
            return settings | {name: [str(value)] for name, value in off.items()}
        otel = {
            "trace_mode": "opentelemetry",
            "url": _without_credentials(self._endpoint),
            "bsp_max_queue_size": QUEUE_SPANS,
            "bsp_max_export_batch_size": BATCH_SPANS,
            "bsp_schedule_delay": DELAY_MS,
        }
        return settings | {name: [str(value)] for name, value in otel.items()}

    def update(self, model: str, changes: Mapping[str, Sequence[str]]) -> None:
        """Change settings of a model, or with "" those of all without their own.

        An empty value takes a model's setting back to that of all, and that of all back to what it
        was at the start. Unknown settings mean nothing. Raises `InvalidRequest` and `NotSupported`
        before anything has changed.
        """
        if "trace_file" in changes:
            raise NotSupported("trace file location can not be updated through network protocol")
        given = {
            name: parse(values) if values else None
            for setting, (name, parse) in _SETTINGS.items()
            if (values := changes.get(setting)) is not None
        }
        if given.get("level") == _UNCHANGED:
            del given["level"]
        default = self._all if model else self._at_start
        taken = {
            name: getattr(default, name) if value is None else value
            for name, value in given.items()
        }
        changed = replace(self.rule(model), **taken)
        models = {}
        if not model:
            for name, rule in self._models.items():
                kept = {each: getattr(rule, each) for each in self._own[name]}
                models[name] = replace(changed, seen=rule.seen, **kept)
        for rule in (changed, *models.values()):
            self._check(rule)
        if model:
            own = self._own.get(model, set())
            own = own.union(given) - {name for name, value in given.items() if value is None}
            self._own[model], self._models[model] = own, changed
            if not own:
                del self._own[model], self._models[model]
        else:
            self._all, self._models = changed, models

    def _check(self, rule: TraceRule) -> None:
        refused = "Attempting to set invalid trace setting :"
        if rule.level and not self._endpoint:
            raise InvalidRequest(f"{refused}the gateway was started without --trace-endpoint")
        if rule.level and not rule.rate:
            raise InvalidRequest(f"{refused}sample rate must be non-zero")


_UNCHANGED = ("",)


def _level(values: Sequence[str]) -> tuple[str, ...]:
    if _OFF in values:
        if len(values) > 1:
            raise InvalidRequest("Expect only one trace level 'OFF' is specified")
        return ()
    # Triton ignores the levels that it does not know
    return tuple(level for level in LEVELS if level in values) or _UNCHANGED


def _unsigned(name: str) -> Callable[[Sequence[str]], int]:
    def parse(values: Sequence[str]) -> int:
        number = _number(name, values)
        if not 0 <= number < 2**32:
            raise InvalidRequest(
                f"Unable to parse '{name}', value is out of range [ 0, {2**32 - 1} ], "
                f"got: {values[0]}"
            )
        return number

    return parse


def _count(values: Sequence[str]) -> int:
    number = _number("trace_count", values)
    if number < -1:
        raise InvalidRequest(
            f"Unable to parse 'trace_count'. Expecting value >= -1, got: {values[0]}"
        )
    return number


def _number(name: str, values: Sequence[str]) -> int:
    if len(values) > 1:
        raise InvalidRequest(f"expect only 1 value for '{name}'")
    found = _INTEGER.match(values[0])
    if found is None:
        raise InvalidRequest(f"Unable to parse '{name}', got: {values[0]}")
    return int(found[0])


_SETTINGS: Mapping[str, tuple[str, Callable[[Sequence[str]], Any]]] = {
    "trace_level": ("level", _level),
    "trace_rate": ("rate", _unsigned("trace_rate")),
    "trace_count": ("count", _count),
    "log_frequency": ("log_frequency", _unsigned("log_frequency")),
}


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
