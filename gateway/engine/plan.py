"""TensorRT plans (`model.plan`), run by TensorRT's own runtime where it is installed.

Written against the API of TensorRT 10 and 11; the checks that need a GPU are in tests/gpu.
"""

from __future__ import annotations

import importlib
import threading
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from gateway.core import DTYPES, DeviceKind, ModelSpec, Tensor, TensorSpec
from gateway.engine import cuda
from gateway.engine.model import OpenModel, Replicas, Run
from gateway.errors import InferenceFailed, RepositoryError

_KSERVE = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "BF16": "BF16",
    "INT8": "INT8",
    "UINT8": "UINT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
}


def is_plan(spec: ModelSpec) -> bool:
    """Return whether a model is a TensorRT plan."""
    return spec.platform in ("tensorrt_plan", "tensorrt")


def open_plan(spec: ModelSpec) -> OpenModel:
    """Return a plan, ready on its GPUs. Raises `RepositoryError`. Blocks.

    A plan is code that TensorRT runs: it is as trusted as the model repository.
    """
    if spec.runtime.device is DeviceKind.CPU:
        raise RepositoryError(
            "a TensorRT plan runs on a GPU only, but instance_group says KIND_CPU"
        )
    file = spec.path / spec.model_file
    try:
        # before the import: without a driver, importing tensorrt can end the process
        count = cuda.device_count()
        tensorrt = importlib.import_module("tensorrt")
    except cuda.NoGpu as reason:
        raise RepositoryError(f"a TensorRT plan needs a GPU, but {reason}") from None
    except ImportError as error:
        raise RepositoryError(
            "a TensorRT plan needs TensorRT's Python package, of the version that built the plan "
            f"(pip install tensorrt-cu13 or tensorrt-cu12): {error}"
        ) from None
    numbers = spec.runtime.gpus or (0,)
    if max(numbers) >= count:
        raise RepositoryError(
            f"instance_group names GPU {max(numbers)}; there are {count} (from 0)"
        )
    try:
        blob = file.read_bytes()
        each = max(1, spec.instances // len(numbers))
        plans = [Plan(tensorrt, spec.inside, blob, number, each) for number in numbers]
    except OSError as error:
        raise RepositoryError(f"cannot read '{spec.model_file}': {error.strerror}") from None
    except RuntimeError as error:
        raise RepositoryError(f"cannot open '{spec.model_file}': {error}") from error
    return plans[0] if len(plans) == 1 else Replicas(plans)


class Plan:
    """A plan on one GPU. Each run has an execution context of its own from a pool.

    Every input is copied once to the device and every output once from it, into memory that is
    taken for the run: sizes vary, and the driver's allocator caches nothing but is exact.
    """

    def __init__(
        self, tensorrt: Any, spec: ModelSpec, blob: bytes, number: int, contexts: int
    ) -> None:
        self._spec = spec
        self._contexts = contexts
        self._device = cuda.Device(number)
        try:
            with self._device.current():
                self._logger, self._runtime, self._engine = _deserialize(tensorrt, blob)
                _check_signature(tensorrt, spec, self._engine)
                self._idle = deque(self._engine.create_execution_context() for _ in range(contexts))
        except BaseException:
            self._device.release()
            raise
        self._free = threading.Semaphore(contexts)

    def is_quick(self, inputs: Sequence[Tensor]) -> bool:
        """Return False: a GPU is waited for in a worker thread."""
        return False

    def new_run(self) -> Run:
        """Return a switch that is looked at before the run starts: a GPU cannot be interrupted."""
        return SimpleNamespace(terminate=False)

    def abort(self) -> None:
        """Do nothing: what the GPU has begun it ends."""

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: Run) -> list[Tensor]:
        """Return the named outputs. Safe in any thread."""
        with self._free:
            if self._engine is None:
                raise InferenceFailed("the plan is closed")
            context = self._idle.popleft()
            try:
                if run.terminate:
                    raise InferenceFailed("the run was cancelled before it started")
                with self._device.current():
                    return self._run(context, inputs, outputs)
            except RuntimeError as error:
                raise InferenceFailed(f"TensorRT: {error}") from error
            finally:
                self._idle.append(context)

    def _run(self, context: Any, inputs: Sequence[Tensor], outputs: Sequence[str]) -> list[Tensor]:
        device, taken = self._device, list[int]()
        stream = device.new_stream()
        try:
            for tensor in inputs:
                data = np.ascontiguousarray(self._inside(tensor))
                if not context.set_input_shape(tensor.name, data.shape):
                    raise InferenceFailed(
                        f"input '{tensor.name}' has the shape {list(data.shape)}, which is outside "
                        "the plan's optimization profile"
                    )
                address = device.allocate(data.nbytes)
                taken.append(address)
                device.upload(address, data.ctypes.data, data.nbytes)
                context.set_tensor_address(tensor.name, address)
            results = {}
            for spec in self._spec.outputs:  # the plan writes all of them, asked for or not
                shape = tuple(context.get_tensor_shape(spec.name))
                if min(shape, default=0) < 0:
                    raise InferenceFailed(f"the size of output '{spec.name}' depends on its data")
                result = np.empty(shape, DTYPES[spec.datatype])
                results[spec.name] = (result, device.allocate(result.nbytes))
                taken.append(results[spec.name][1])
                context.set_tensor_address(spec.name, results[spec.name][1])
            if not context.execute_async_v3(stream):
                raise InferenceFailed("TensorRT could not start the run")
            device.wait(stream)
            for name in outputs:
                result, address = results[name]
                device.download(result.ctypes.data, address, result.nbytes)
            return [self._outside(name, results[name][0]) for name in outputs]
        finally:
            for address in taken:
                device.free(address)
            device.end_stream(stream)

    def _inside(self, tensor: Tensor) -> Any:
        spec = next(one for one in self._spec.inputs if one.name == tensor.name)
        return self._reshaped(tensor.data, spec.reshape)

    def _outside(self, name: str, data: Any) -> Tensor:
        spec = next(one for one in self._spec.outputs if one.name == name)
        dims = None if spec.reshape is None else spec.dims
        return Tensor(name, spec.datatype, self._reshaped(data, dims))

    def _reshaped(self, data: Any, dims: tuple[int, ...] | None) -> Any:
        if dims is None:
            return data
        batch = data.shape[: 1 if self._spec.max_batch_size > 0 else 0]
        return data.reshape(batch + dims)

    def close(self) -> None:
        """Free contexts, engine and the hold on the device, in that order, after the last run."""
        for _ in range(self._contexts):
            self._free.acquire()
        with self._device.current():
            self._idle.clear()
            self._engine = self._runtime = None
        self._device.release()
        self._free.release(self._contexts)  # whoever came too late is told


def _deserialize(tensorrt: Any, blob: bytes) -> tuple[Any, Any, Any]:
    """Return logger, runtime and engine; each must outlive the next. Raises RuntimeError."""
    complaints: list[str] = []

    class Logger(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.ILogger.INTERNAL_ERROR, tensorrt.ILogger.ERROR):
                complaints.append(message)

    logger = Logger()
    runtime = tensorrt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(blob)
    if engine is None:
        said = complaints[-1] if complaints else "it gave no reason"
        raise RuntimeError(f"TensorRT {tensorrt.__version__} refuses the plan: {said}")
    return logger, runtime, engine


def _check_signature(tensorrt: Any, spec: ModelSpec, engine: Any) -> None:
    """Raise `RepositoryError` where the configuration contradicts the plan."""
    found: dict[str, tuple[str, list[int], bool]] = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        datatype = str(engine.get_tensor_dtype(name)).rpartition(".")[2]
        is_input = engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT
        shape = list(engine.get_tensor_shape(name))
        found[name] = (_KSERVE.get(datatype, datatype), shape, is_input)
    for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            _check_tensor(kind, tensor, found.pop(tensor.name, None), spec.max_batch_size > 0)
    if found:
        raise RepositoryError(f"config.pbtxt does not name the plan's tensor '{min(found)}'")


def _check_tensor(
    kind: str, tensor: TensorSpec, found: tuple[str, list[int], bool] | None, batched: bool
) -> None:
    if found is None or found[2] != (kind == "input"):
        raise RepositoryError(f"config.pbtxt names {kind} '{tensor.name}', which the plan has not")
    datatype, shape, _ = found
    if datatype != tensor.datatype:
        raise RepositoryError(
            f"config.pbtxt gives {kind} '{tensor.name}' the data type {tensor.datatype}, "
            f"the plan {datatype}"
        )
    declared = [-1, *tensor.model_dims] if batched else [*tensor.model_dims]
    fits = len(shape) == len(declared) and all(
        a == -1 or d in (a, -1) for a, d in zip(shape, declared, strict=True)
    )
    if not fits:
        raise RepositoryError(
            f"config.pbtxt gives {kind} '{tensor.name}' the dims {declared}"
            f"{' (batch first)' if batched else ''}, the plan {shape}"
        )
