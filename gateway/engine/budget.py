"""How much memory there is for models, and what a load takes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pynvml

SHARE = 0.8  # of what there is at the start; the rest is for requests and their answers
# A process grows by some megabytes for reasons of its own: what is below this is not believed.
RESOLUTION_BYTES = 16 << 20

_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
_PAGE = os.sysconf("SC_PAGE_SIZE")


class GpuMemory(Protocol):
    """What NVML says of a GPU's memory, in bytes."""

    free: int
    used: int


def host_budget_bytes(limits: tuple[str, ...] = _CGROUP_LIMITS) -> int:
    """Return what models may take of this machine's memory: a share of what is left of it.

    The memory is what the container may have (its cgroup's limit, version 2 or 1), else the
    machine's own. What this process takes already is taken off.
    """
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    for limit in limits:
        total = min(total, _limit(Path(limit)) or total)
    return max(1, int(SHARE * (total - resident_bytes())))


def gpu_budget_bytes() -> int | None:
    """Return what models may take of a GPU's memory, by NVML: a share of what is free.

    Of several GPUs the one with the least counts. None where there is no GPU, or no NVML.
    """
    free = [memory.free for memory in _gpu_memories()]
    return int(SHARE * min(free)) if free else None


def gpu_bytes_in_use() -> int:
    """Return what is in use on all GPUs together."""
    return sum(memory.used for memory in _gpu_memories())


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def own_bytes(pid: int | str = "self") -> int:
    """Return the resident memory that a process holds for itself alone.

    Mapped files are not counted: the system takes their pages back when it needs them.
    """
    _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * _PAGE


def family_bytes(pid: int) -> int:
    """Return what a process and its children hold for themselves alone."""
    try:
        own = own_bytes(pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return own + sum(family_bytes(int(child)) for child in children)


class Taken:
    """What a load took: what was expected, until it has been measured to be more."""

    def __init__(self, expected: int) -> None:
        self.bytes = expected


class Meter:
    """Measures loads by how much the memory in use grows over each.

    A measurement counts only where nothing else happened meanwhile that may take memory, and only
    upwards: pages that a load leaves untouched, or finds free from before, are needed in the end.
    """

    def __init__(self, in_use: Callable[[], int] = own_bytes) -> None:
        self._in_use = in_use
        self._under_way = 0
        self._disturbances = 0

    def disturb(self) -> None:
        """Say that something else takes memory now."""
        self._disturbances += 1

    @contextmanager
    def other(self) -> Iterator[None]:
        """Spoil the measurements that what is in here overlaps with."""
        self._disturbances += 1
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    @contextmanager
    def load(self, expected: int) -> Iterator[Taken]:
        """Measure what is in here: a load that is expected to take so many bytes."""
        taken = Taken(expected)
        with self.other():
            disturbances, alone = self._disturbances, self._under_way == 1
            before = self._in_use()
            yield taken
            if alone and disturbances == self._disturbances:
                grown = self._in_use() - before
                if grown > expected + RESOLUTION_BYTES:
                    taken.bytes = grown


def _limit(file: Path) -> int | None:
    """Return a cgroup's limit in bytes; None where it sets none or is not there."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max"


def _gpu_memories() -> list[GpuMemory]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, no permission: no GPU for us
        return []
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
