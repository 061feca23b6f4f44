"""The machine and the versions that a figure was measured with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path


def describe_machine() -> dict[str, str | int]:
    """Return CPU model, cores this process may use, operating system and kernel."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": cores or 1,
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
    }


def cpu_model() -> str:
    """Return the CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"


def describe_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return Python's version and those of the named distributions that are installed."""
    versions = {"python": platform.python_version()}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
