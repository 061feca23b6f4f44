"""What config.pbtxt asks for -> ONNX Runtime's providers and options; and what it asks in vain."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from gateway.core import Accelerator, DeviceKind, RuntimeOptions
from gateway.engine import cuda
from gateway.errors import RepositoryError

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# `optimization { graph { level } }` as Triton's ONNX Runtime backend has it; all others: all on.
GRAPH_LEVELS = {-1: "ORT_ENABLE_BASIC", 1: "ORT_ENABLE_EXTENDED", 2: "ORT_DISABLE_ALL"}

# `parameters` of that backend that would change nothing here, or something else than they say:
# threads are the whole process's, and instances always share one session.
_IGNORED = (
    "execution_mode",
    "inter_op_thread_count",
    "intra_op_thread_count",
    "session.use_device_allocator_for_initializers",
)

# that backend's names for options of the TensorRT provider; those with "trt_" are the provider's
_TENSORRT_OPTIONS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
_PRECISIONS = {
    "FP32": {},
    "FP16": {"trt_fp16_enable": "1"},
    "BF16": {"trt_bf16_enable": "1"},
    "INT8": {"trt_int8_enable": "1"},
}
# its `parameters` for the CUDA provider, the numbers as it counts them
_CUDA_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "do_copy_in_default_stream": (),
    "gpu_mem_limit": (),
}

Provider = tuple[str, dict[str, str]]


def ignored(runtime: RuntimeOptions) -> list[str]:
    """Return the parameters of Triton's backend that have no effect here."""
    return [name for name in _IGNORED if name in runtime.parameters]


def devices(runtime: RuntimeOptions, available: Collection[str]) -> tuple[int, ...]:
    """Return the GPUs that a model is to run on; empty means the CPU.

    `available` are the installed runtime's providers. Raises `RepositoryError` where the
    configuration asks for a GPU that is not there: that would be the CPU in disguise.
    """
    if runtime.device is DeviceKind.CPU:
        return ()
    wanted = runtime.gpus or (0,)
    try:
        if CUDA not in available:
            raise cuda.NoGpu(
                "this build of ONNX Runtime has no CUDA provider: uninstall onnxruntime, then "
                "pip install '.[gpu]'"
            )
        count = cuda.device_count()
    except cuda.NoGpu as reason:
        if runtime.device is DeviceKind.GPU:
            raise RepositoryError(f"instance_group asks for a GPU, but {reason}") from None
        if runtime.accelerators:
            names = ", ".join(one.name for one in runtime.accelerators)
            log.warning("GPU execution accelerators (%s) are left out: %s", names, reason)
        return ()
    if max(wanted) >= count or min(wanted) < 0:
        raise RepositoryError(f"instance_group names GPU {max(wanted)}; there are {count} (from 0)")
    return wanted


def on_gpu(runtime: RuntimeOptions, number: int, memory_limit_bytes: int) -> list[Provider]:
    """Return the providers for one GPU, first choice first.

    `memory_limit_bytes` bounds the CUDA provider's arena of each session; 0: no bound.
    """
    found: list[Provider] = []
    options: dict[str, str] = {}
    for name, words in _CUDA_PARAMETERS.items():
        if name in runtime.parameters:
            options[name] = _word(name, runtime.parameters[name], words)
    for accelerator in runtime.accelerators:
        if accelerator.name == "tensorrt":
            found.append((TENSORRT, {**_tensorrt(accelerator), "device_id": str(number)}))
        elif accelerator.name == "cuda":
            options.update(accelerator.parameters)
        else:
            raise RepositoryError(
                f"unknown Execution Accelerator '{accelerator.name}' is requested"
            )
    if memory_limit_bytes:
        own = options.get("gpu_mem_limit", "")
        limit = min(int(own), memory_limit_bytes) if own.isdecimal() else memory_limit_bytes
        options["gpu_mem_limit"] = str(limit)
    # what neither can run is the CPU's: shape arithmetic, strings
    return [*found, (CUDA, {**options, "device_id": str(number)}), (CPU, {})]


def check_took(wanted: list[Provider], taken: Collection[str], runtime: RuntimeOptions) -> None:
    """Raise `RepositoryError` where ONNX Runtime has left out a provider, as it does silently.

    A model that only prefers the GPU is told of in the log instead.
    """
    missing = [name for name, _ in wanted if name not in taken]
    if not missing:
        return
    reason = (
        f"{' and '.join(missing)} could not be initialised: its libraries (CUDA, cuDNN, TensorRT) "
        "are missing or of another version"
    )
    if runtime.device is DeviceKind.GPU:
        raise RepositoryError(f"instance_group asks for a GPU, but {reason}")
    log.warning("%s; the model runs on %s", reason, " and ".join(taken))


def _tensorrt(accelerator: Accelerator) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in accelerator.parameters.items():
        if name == "precision_mode":
            if value not in _PRECISIONS:
                raise RepositoryError(f"unsupported precision mode '{value}' is requested")
            options.update(_PRECISIONS[value])
        elif name in _TENSORRT_OPTIONS or name.startswith("trt_"):
            options[_TENSORRT_OPTIONS.get(name, name)] = value
        else:
            raise RepositoryError(
                f"unknown parameter '{name}' is provided for TensorRT Execution Accelerator"
            )
    return options


def _word(name: str, value: str, words: tuple[str, ...]) -> str:
    if not words:
        return value
    if not value.isdecimal() or int(value) >= len(words):
        raise RepositoryError(f"unsupported {name} value '{value}' is requested")
    return words[int(value)]
