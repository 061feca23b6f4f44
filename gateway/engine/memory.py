"""Memory that a model held goes back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

# glibc raises its own threshold up to 32 MiB as blocks are freed, and then keeps twice as much at
# the top of each thread's heap, where `malloc_trim` does not reach: a load left its model's size
# behind. Requests' tensors are mostly smaller, and stay quick.
_LARGE_BYTES = 16 << 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def _malloc_trim() -> Callable[[int], int] | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


_TRIM = _malloc_trim()


def bound_leftovers() -> None:
    """Have large blocks go back to the system when they are freed, also those of other threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


def trim() -> None:
    """Hand freed memory back to the system: glibc by itself keeps most of it."""
    if _TRIM is not None:
        _TRIM(0)


def return_memory() -> None:
    """Free what is garbage and hand it back to the system."""
    gc.collect()
    trim()
