"""Which version a request goes to that asks for none: labels, weights, shadows. Pure."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import StartError

MAX_WEIGHT = 1e12  # sums of these stay numbers

_FROZEN = ConfigDict(frozen=True, extra="forbid")
_Version = Annotated[int, Field(gt=0, lt=2**63)]
_Name = Annotated[str, Field(min_length=1)]


class _Shadow(BaseModel):
    model_config = _FROZEN

    to: _Name | _Version
    percent: float = Field(100.0, gt=0, le=100)


class _Model(BaseModel):
    model_config = _FROZEN

    labels: dict[_Name, _Version] = {}
    split: dict[_Name, Annotated[float, Field(ge=0, le=MAX_WEIGHT)]] = {}
    shadow: _Shadow | None = None


class _File(BaseModel):
    model_config = _FROZEN

    models: dict[_Name, _Model] = {}


@dataclass(frozen=True, slots=True)
class Rule:
    """What is said of one model.

    `weights` are versions and their shares of the requests that ask for none; a copy of
    `shadow_percent` of these goes to version `shadow` as well (0: none).
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    weights: tuple[tuple[int, float], ...] = ()
    shadow: int = 0
    shadow_percent: float = 0.0

    def choose(self, draw: float, serves: Callable[[int], bool]) -> int | None:
        """Return the version for a request; None leaves it to the version policy.

        `draw` lies in [0, 1). The weight of versions that are not there goes to the others.
        """
        there = [
            (version, weight) for version, weight in self.weights if weight and serves(version)
        ]
        if not there:
            return None
        sums = list(accumulate(weight for _, weight in there))
        aim = draw * sums[-1]
        found = (version for (version, _), end in zip(there, sums, strict=True) if aim < end)
        return next(found, there[-1][0])  # the smallest floats round up to their sum

    def faults(self, serves: Callable[[int], bool]) -> Iterator[str]:
        """Yield what points to versions that are not there."""
        for label, version in self.labels.items():
            if not serves(version):
                yield f"label '{label}' is version {version}, which is not there"
        for version, _ in self.weights:
            if not serves(version):
                yield f"a share goes to version {version}, which is not there: the others have it"
        if self.shadow and not serves(self.shadow):
            yield f"the shadow is version {self.shadow}, which is not there"


Rules = Mapping[str, Rule]


def parse(text: str, file: str) -> Rules:
    """Return the rules of a traffic file. Raises `StartError` with the file, model and key."""
    try:
        told = _File.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StartError(f"{file}: {where}: {first['msg']}, got {first['input']!r}") from None
    except RecursionError:
        raise StartError(f"{file}: nested too deep") from None
    except ValueError as error:  # that of TOML, or of a number that Python does not convert
        raise StartError(f"{file}: {error}") from None
    return {name: _rule(model, f"{file}: models.{name}") for name, model in told.models.items()}


def drawn(model: str, key: Any) -> float:
    """Return a number in [0, 1) that is always the same for a model and a key."""
    digest = blake2b(f"{model}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # all 64 bits could round up to 1


def _rule(model: _Model, where: str) -> Rule:
    for label in model.labels:
        if label.lstrip("-").isdecimal():
            raise StartError(f"{where}.labels: '{label}' is a number, and so a version by itself")

    def version(name: str | int, key: str) -> int:
        if isinstance(name, int):
            return name
        if name in model.labels:
            return model.labels[name]
        # the length first: Python refuses to convert thousands of digits
        if name.isdecimal() and len(name) <= 19 and 0 < int(name) < 2**63:
            return int(name)
        raise StartError(f"{where}.{key}: '{name}' is neither a label of the model nor a version")

    weights: dict[int, float] = {}
    for name, weight in model.split.items():
        number = version(name, "split")
        weights[number] = weights.get(number, 0.0) + weight
    if weights and not any(weights.values()):
        raise StartError(f"{where}.split: every weight is 0")
    shadow = model.shadow
    return Rule(
        model.labels,
        tuple(sorted(weights.items())),
        version(shadow.to, "shadow") if shadow else 0,
        shadow.percent if shadow else 0.0,
    )
