"""TensorRT proper: engines for Triton's `tensorrt` backend. It needs a GPU."""

import ctypes
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from export.spec import ENGINE_OF_A_GPU

PLAN: Final = "model.plan"


@functools.cache
def absent() -> str | None:
    """Why TensorRT cannot be used here; None where it can.

    Asks the driver before anything else: `import tensorrt` without one can crash the process.
    """
    if why := _no_driver():
        return why
    if importlib.util.find_spec("tensorrt") is None:
        return "TensorRT is not installed: pip install tensorrt"
    return None


def _no_driver() -> str | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver here (libcuda.so.1)"
    if (code := driver.cuInit(0)) != 0:
        return f"the NVIDIA driver finds no GPU (cuInit: {code})"
    return None


def by_capability(files: Iterable[Path]) -> dict[str, str]:
    """`cc_model_filenames` of a version with engines for several GPUs.

    model_cc89.plan is for compute capability 8.9, model_cc120.plan for 12.0.
    """
    found = {}
    for file in sorted(files):
        if match := ENGINE_OF_A_GPU.fullmatch(file.name):
            found[f"{match[1]}.{match[2]}"] = file.name
    return found


def named_for(capability: tuple[int, int]) -> str:
    """File name of the engine for a compute capability."""
    return f"model_cc{capability[0]}{capability[1]}.plan"
