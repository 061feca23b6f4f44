"""NVIDIA's parser and builder on a machine without a GPU: the extra `preflight`, TensorRT-RTX."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Final

from export import nvidia
from export.nvidia import Built, Options, Range

# Any that it can build for: what is asked is whether the file is taken at all.
CAPABILITY: Final = "SM89"
_MODULES: Final = ("tensorrt_rtx", "tensorrt_rtx_bindings")


def absent() -> str | None:
    """Why there is no pre-flight here; None where there is one."""
    if _module() is None:
        return "NVIDIA's CPU-side builder is not installed: pip install 'tidegate[preflight]'"
    return None


def check(onnx: Path, ranges: dict[str, Range]) -> Built:
    """Build an engine and throw it away; raises `ConversionError` in NVIDIA's words."""
    trt: Any = importlib.import_module(_module() or _MODULES[0])
    return nvidia.build(trt, onnx, Options(ranges, ahead_of_time=CAPABILITY))


def _module() -> str | None:
    return next((name for name in _MODULES if importlib.util.find_spec(name)), None)
