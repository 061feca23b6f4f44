"""What an exporter says of a version, in its folder: `manifest.json`. Only what is used here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.core import BatchTime
from gateway.errors import RepositoryError

FILE = "manifest.json"
MEMORY = "memory_bytes"  # what one copy takes when it is loaded
PROFILE, CURVE = "profile", "curve"  # how long batches take: a list of points in the profile


@dataclass(frozen=True, slots=True)
class Told:
    """What is said; `batches` ascend by rows."""

    memory_bytes: int | None = None
    batches: tuple[BatchTime, ...] = ()


def read(version: Path) -> Told:
    """Return what a version's manifest says of it; nothing where there is none.

    Raises `RepositoryError` where a figure is no figure.
    """
    try:
        told = json.loads((version / FILE).read_text("utf-8"))
    except FileNotFoundError:
        return Told()
    except (OSError, ValueError, RecursionError) as error:
        raise RepositoryError(f"cannot read {FILE}: {error}") from None
    if not isinstance(told, dict):
        return Told()
    return Told(_memory_bytes(told), _batches(told))


def _memory_bytes(told: dict[str, Any]) -> int | None:
    size = told.get(MEMORY)
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise RepositoryError(f"{FILE}: '{MEMORY}' is no number of bytes: {size!r}")
    return size


def _batches(told: dict[str, Any]) -> tuple[BatchTime, ...]:
    profile = told.get(PROFILE)
    points = profile.get(CURVE) if isinstance(profile, dict) else None
    if points is None:
        return ()
    try:
        found = [
            BatchTime(int(each["batch"]), each["p50_ms"] / 1000, each["p99_ms"] / 1000)
            for each in points
        ]
    except (TypeError, KeyError, ValueError, OverflowError):
        found = []
    if not found or not all(_is_time(each) for each in found):
        raise RepositoryError(f"{FILE}: '{PROFILE}.{CURVE}' is no list of batches and their times")
    return tuple(sorted(found, key=lambda each: each.rows))


def _is_time(each: BatchTime) -> bool:
    return each.rows > 0 and 0 < each.median_s <= each.p99_s < math.inf
