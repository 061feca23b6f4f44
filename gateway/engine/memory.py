"""Memory that a model held goes back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable


def _malloc_trim() -> Callable[[int], int] | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


_TRIM = _malloc_trim()


def trim() -> None:
    """Hand freed memory back to the system: glibc by itself keeps most of it."""
    if _TRIM is not None:
        _TRIM(0)


def return_memory() -> None:
    """Free what is garbage and hand it back to the system."""
    gc.collect()
    trim()
