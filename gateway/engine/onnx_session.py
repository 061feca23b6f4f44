"""One open ONNX Runtime session: tensors in, tensors out."""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gateway.core import Array, ModelSpec, Tensor
from gateway.engine.memory import return_memory, trim
from gateway.engine.model import Run
from gateway.errors import InferenceFailed

# A thread switch there and back costs about 100 us on two cores: what takes less than a few of
# those runs on the event loop itself.
QUICK_S = 0.0003
# ONNX Runtime's own log goes straight to stderr, past this gateway's: what it has to say of a
# failure is in the exception too.
FATAL = 4
_ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class OnnxSession:
    """An open session, on the CPU or on one GPU.

    Where a batch is copied on the CPU: nowhere. `session.run` wraps contiguous input arrays, and
    the arrays that it returns own the runtime's own buffers (100 MB in: 0.01 ms; 100 MB out:
    no slower than a binding that leaves the result where it is). I/O binding gains nothing
    there and costs Python time (digits at batch 8: 40 us against 13), so it is kept for GPUs.

    There each input is copied once to the device and each output once from it. BF16, which NumPy
    does not know, is copied once on its way in and once on its way out; BYTES become `str`
    objects and back.
    """

    def __init__(self, ort: Any, session: Any, spec: ModelSpec, on_gpu: bool = False) -> None:
        self._ort = ort
        self._quick_elements = 0
        self._running: set[Run] = set()
        self._session = session
        self._closing = threading.Lock()
        self._on_gpu = on_gpu
        spec = spec.inside
        self._datatypes = {output.name: output.datatype for output in spec.outputs}
        self._batch_dims = 1 if spec.max_batch_size > 0 else 0
        # what the model sees and clients see, for the few tensors where these differ
        self._inside = {t.name: t.model_dims for t in spec.inputs if t.reshape is not None}
        self._outside = {t.name: t.dims for t in spec.outputs if t.reshape is not None}
        # Only OrtValues carry the 16 bits that NumPy has no type for; they carry no strings.
        datatypes = {tensor.datatype for tensor in (*spec.inputs, *spec.outputs)}
        self._by_value = "BF16" in datatypes or (on_gpu and "BYTES" not in datatypes)

    def is_quick(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch no smaller than this one has run in less than `QUICK_S`."""
        return sum(tensor.data.size for tensor in inputs) <= self._quick_elements

    def new_run(self) -> Run:
        """Return a run's options. ONNX Runtime looks at `terminate` between two operators."""
        options: Run = self._ort.RunOptions()
        options.log_severity_level = FATAL  # type: ignore[attr-defined]
        return options

    def abort(self) -> None:
        """Have every run under way end with an error soon."""
        for run in tuple(self._running):
            run.terminate = True

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: Run) -> list[Tensor]:
        """Return the named outputs. Safe in any thread."""
        self._running.add(run)
        started = time.perf_counter()
        try:
            inputs = [self._reshaped(tensor, self._inside) for tensor in inputs]
            if self._by_value:
                arrays = self._run_values(inputs, outputs, run)
            else:
                feed = {tensor.name: _to_onnx(tensor) for tensor in inputs}
                arrays = self._session.run(outputs, feed, run)
        except Exception as error:
            raise InferenceFailed(f"ONNX Runtime: {first_line(error)}") from error
        finally:
            self._running.discard(run)
            if self._session is None and not self._running:
                return_memory()  # closed meanwhile: this run was the last to hold the model
        self._learn(sum(tensor.data.size for tensor in inputs), time.perf_counter() - started)
        return [
            self._reshaped(Tensor(name, self._datatypes[name], _from_onnx(array)), self._outside)
            for name, array in zip(outputs, arrays, strict=True)
        ]

    def _learn(self, elements: int, took_s: float) -> None:
        if took_s < QUICK_S:
            self._quick_elements = max(self._quick_elements, elements)
        else:
            self._quick_elements = min(self._quick_elements, elements // 2)

    def swap(self, session: Any) -> None:
        """Run on another session of the same model from now on; who runs ends on the old one."""
        with self._closing:
            if self._session is not None:
                self._session = session
        trim()

    def close(self) -> None:
        """Free the model. Runs in a worker thread: it may take tens of milliseconds."""
        with self._closing:
            self._session = None
        return_memory()

    def _reshaped(self, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        dims = shapes.get(tensor.name)
        if dims is None:
            return tensor
        batch = tensor.data.shape[: self._batch_dims]
        return Tensor(tensor.name, tensor.datatype, tensor.data.reshape(batch + dims))

    def _run_values(
        self, inputs: Sequence[Tensor], outputs: Sequence[str], run: Run
    ) -> list[Array]:
        make = self._ort.OrtValue
        feed = {
            tensor.name: make.ortvalue_from_numpy_with_onnx_type(
                np.ascontiguousarray(tensor.data), _ONNX_BFLOAT16
            )
            if tensor.datatype == "BF16"
            else make.ortvalue_from_numpy(_to_onnx(tensor))
            for tensor in inputs
        }
        if self._on_gpu:
            values = self._run_bound(feed, outputs, run)
        else:
            values = self._session.run_with_ort_values(outputs, feed, run)
        return [
            _bits_of(value) if self._datatypes[name] == "BF16" else value.numpy()
            for name, value in zip(outputs, values, strict=True)
        ]

    def _run_bound(self, feed: dict[str, Any], outputs: Sequence[str], run: Run) -> list[Any]:
        binding = self._session.io_binding()
        for name, value in feed.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, run)
        values: list[Any] = binding.get_outputs()
        return values


def _bits_of(value: Any) -> Array:
    """Return a copy of a bfloat16 OrtValue as uint16: its own `numpy()` knows no such type."""
    shape = tuple(value.shape())
    size = math.prod(shape) * 2
    raw = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(raw, np.uint16).reshape(shape)


def _to_onnx(tensor: Tensor) -> Array:
    if tensor.datatype != "BYTES":
        return tensor.data
    # ONNX Runtime takes `str` and would turn a `bytes` object into the text "b'...'". That it is
    # UTF-8 was checked with the rest of the request (signature.py).
    texts = [element.decode() for element in tensor.data.ravel()]
    array = np.empty(len(texts), np.object_)
    array[:] = texts
    return array.reshape(tensor.data.shape)


def _from_onnx(array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    encoded = np.empty(array.size, np.object_)
    encoded[:] = [text.encode() for text in array.ravel()]
    return encoded.reshape(array.shape)


def first_line(error: BaseException) -> str:
    """Return what an exception says, without the stack trace that ONNX Runtime adds."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
