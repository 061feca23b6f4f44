"""What this machine is and has: processor, memory, GPU, the runtimes that are installed."""

import functools
import importlib.util
import os
import platform
from pathlib import Path

from export.manifest import Machine


@functools.cache
def facts() -> Machine:
    """Processor, cores, memory; the first GPU and its driver where there is one."""
    gpu, driver, capability = _gpu()
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpu=gpu,
        driver=driver,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
    )


@functools.cache
def compute_capability() -> tuple[int, int] | None:
    """Of the first GPU; None without one."""
    return _gpu()[2]


def gpu_used_bytes() -> int:
    """Memory of the first GPU that is taken, by whomever."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


def no_cuda_provider() -> str | None:
    """Why ONNX Runtime cannot use a GPU here; None where it can."""
    if facts().gpu is None:
        return "there is no GPU here"
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA provider: pip install 'tidegate[gpu]'"
    return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@functools.cache
def _gpu() -> tuple[str | None, str | None, tuple[int, int] | None]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, None, None
    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(device)
        return (
            pynvml.nvmlDeviceGetName(device),
            pynvml.nvmlSystemGetDriverVersion(),
            (capability[0], capability[1]),
        )
    except pynvml.NVMLError:
        return None, None, None
    finally:
        pynvml.nvmlShutdown()
