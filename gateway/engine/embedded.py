"""The engine in this process: ONNX Runtime on the CPU."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import numpy as np

from gateway.core import Array, ModelKey, ModelSpec, Tensor, TensorSpec
from gateway.engine.base import Loaded
from gateway.errors import InferenceFailed, RepositoryError, StartError

log = logging.getLogger(__name__)

_ONNX_TO_KSERVE = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
# A thread switch there and back costs about 100 us on two cores: what takes less than a few of
# those runs on the event loop itself.
QUICK_S = 0.0003
# ONNX Runtime's own log goes straight to stderr, past this gateway's: what it has to say of a
# failure is in the exception too.
_FATAL = 4
_ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


def check_one_runtime() -> None:
    """Raise `StartError` unless exactly one build of ONNX Runtime is installed.

    Both builds unpack into the same folder and overwrite each other; pip does not notice.
    """
    builds = ("onnxruntime", "onnxruntime-gpu")
    found = [name for name in builds if _installed(name)]
    if not found:
        raise StartError(
            "ONNX Runtime is not installed: run pip install 'tidegate[cpu]' or 'tidegate[gpu]'"
        )
    if len(found) > 1:
        raise StartError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            "uninstall both, then install one of the extras tidegate[cpu], tidegate[gpu]"
        )


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


class EmbeddedEngine:
    """Runs ONNX models in this process.

    Sessions share one thread pool of `intra_op_threads` (0: one a core but one, which is left to
    the event loop). Runs and loads have
    worker threads of their own, so that a load never waits behind inference or the other way
    round; ONNX Runtime lets go of the interpreter lock in both.
    """

    def __init__(self, intra_op_threads: int = 0) -> None:
        check_one_runtime()
        import onnxruntime  # 0.13 s, and absent where the gateway only fronts other servers

        cores = len(os.sched_getaffinity(0))
        self._ort = onnxruntime
        self._ort.set_global_thread_pool_sizes(intra_op_threads or max(1, cores - 1), 1)
        self._sessions: dict[ModelKey, _Session] = {}
        self._runs = ThreadPoolExecutor(max(4, cores), thread_name_prefix="infer")
        self._loads = ThreadPoolExecutor(max(1, cores // 2), thread_name_prefix="load")

    async def load(self, spec: ModelSpec) -> Loaded:
        """Open a session for a version. Its memory is taken to be the size of its files."""
        loop = asyncio.get_running_loop()
        opened = loop.run_in_executor(self._loads, self._open, spec)
        try:
            # A thread cannot be cancelled: whoever gives up still waits for what it opened, so
            # that the `unload` that follows finds it.
            session = await asyncio.shield(opened)
        except asyncio.CancelledError:
            await asyncio.wait([opened])
            if opened.exception() is None:
                self._sessions[spec.key] = opened.result()
            raise
        self._sessions[spec.key] = session
        return Loaded(spec, spec.file_bytes)

    async def unload(self, key: ModelKey) -> None:
        """Close a version's session and give its memory back to the system."""
        session = self._sessions.pop(key, None)
        if session is not None:
            await asyncio.get_running_loop().run_in_executor(self._loads, session.close)

    async def infer(
        self, key: ModelKey, inputs: Sequence[Tensor], outputs: Sequence[str]
    ) -> list[Tensor]:
        """Run one batch, in a worker thread unless the model is a quick one; see `Engine.infer`."""
        session = self._sessions[key]
        if session.is_quick(inputs):
            return session.run(inputs, outputs)
        return await asyncio.get_running_loop().run_in_executor(
            self._runs, session.run, inputs, outputs
        )

    async def close(self) -> None:
        """Abort what still runs (between two operators) and end the worker threads."""
        for session in self._sessions.values():
            session.abort()
        self._sessions.clear()
        # without waiting: this is the event loop
        self._runs.shutdown(wait=False, cancel_futures=True)
        self._loads.shutdown(wait=False, cancel_futures=True)

    def _open(self, spec: ModelSpec) -> _Session:
        file = spec.path / spec.model_file
        if not file.exists():
            raise RepositoryError(f"version {spec.key.version} has no file '{spec.model_file}'")
        options = self._ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = _FATAL
        try:
            session = self._ort.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        # ONNX Runtime's exceptions share no root of their own
        except Exception as error:
            raise RepositoryError(
                f"ONNX Runtime cannot open '{spec.model_file}': {_first_line(error)}"
            ) from error
        _check_signature(spec, session)
        return _Session(self._ort, session, spec)


class _Session:
    """One open ONNX Runtime session."""

    def __init__(self, ort: Any, session: Any, spec: ModelSpec) -> None:
        self._ort = ort
        self._quick_elements = 0
        self._running: set[Any] = set()
        self._session = session
        self._datatypes = {output.name: output.datatype for output in spec.outputs}
        self._batch_dims = 1 if spec.max_batch_size > 0 else 0
        # what the model sees and clients see, for the few tensors where these differ
        self._inside = {t.name: t.model_dims for t in spec.inputs if t.reshape is not None}
        self._outside = {t.name: t.dims for t in spec.outputs if t.reshape is not None}
        # Only `run_with_ort_values` carries the 16 bits that NumPy has no type for.
        self._bf16 = any(tensor.datatype == "BF16" for tensor in (*spec.inputs, *spec.outputs))

    def is_quick(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch no smaller than this one has run in less than `QUICK_S`."""
        return sum(tensor.data.size for tensor in inputs) <= self._quick_elements

    def abort(self) -> None:
        """Have every run under way end with an error soon."""
        for options in tuple(self._running):
            options.terminate = True

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """Return the named outputs. Safe in any thread."""
        options = self._ort.RunOptions()
        options.log_severity_level = _FATAL
        self._running.add(options)
        started = time.perf_counter()
        try:
            inputs = [self._reshaped(tensor, self._inside) for tensor in inputs]
            if self._bf16:
                arrays = self._run_values(inputs, outputs, options)
            else:
                feed = {tensor.name: _to_onnx(tensor) for tensor in inputs}
                arrays = self._session.run(outputs, feed, options)
        except Exception as error:
            raise InferenceFailed(f"ONNX Runtime: {_first_line(error)}") from error
        finally:
            self._running.discard(options)
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

    def close(self) -> None:
        """Free the model. Runs in a worker thread: it may take tens of milliseconds."""
        self._session = None
        _return_memory()

    def _reshaped(self, tensor: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensor:
        dims = shapes.get(tensor.name)
        if dims is None:
            return tensor
        batch = tensor.data.shape[: self._batch_dims]
        return Tensor(tensor.name, tensor.datatype, tensor.data.reshape(batch + dims))

    def _run_values(
        self, inputs: Sequence[Tensor], outputs: Sequence[str], options: Any
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
        values = self._session.run_with_ort_values(outputs, feed, options)
        return [
            _bits_of(value) if self._datatypes[name] == "BF16" else value.numpy()
            for name, value in zip(outputs, values, strict=True)
        ]


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


def _check_signature(spec: ModelSpec, session: Any) -> None:
    """Raise `RepositoryError` where the configuration contradicts the model."""
    for kind, declared, actual in (
        ("input", spec.inputs, session.get_inputs()),
        ("output", spec.outputs, session.get_outputs()),
    ):
        by_name = {node.name: node for node in actual}
        for tensor in declared:
            if tensor.name not in by_name:
                names = ", ".join(sorted(by_name))
                raise RepositoryError(
                    f"config.pbtxt names {kind} '{tensor.name}', which the model has not; "
                    f"it has: {names}"
                )
            _check_tensor(kind, tensor, by_name[tensor.name], spec.max_batch_size > 0)
    missing = {node.name for node in session.get_inputs()} - {t.name for t in spec.inputs}
    if missing:
        raise RepositoryError(
            f"config.pbtxt does not name the model's input '{min(missing)}', which it needs"
        )


def _check_tensor(kind: str, tensor: TensorSpec, node: Any, batched: bool) -> None:
    datatype = _ONNX_TO_KSERVE.get(node.type)
    if datatype is None:
        raise RepositoryError(f"the model's {kind} '{node.name}' has the type {node.type}")
    if datatype != tensor.datatype:
        raise RepositoryError(
            f"config.pbtxt gives {kind} '{tensor.name}' the data type {tensor.datatype}, "
            f"the model {datatype}"
        )
    actual = [dim if isinstance(dim, int) else -1 for dim in node.shape or ()]
    declared = [-1, *tensor.model_dims] if batched else [*tensor.model_dims]
    if kind == "output" and not actual:
        return  # ONNX Runtime does not know the rank: [] is what it says then, too
    fits = len(actual) == len(declared) and all(
        # a fixed output of a dim declared open is right; a fixed input would refuse clients
        a in (d, -1) or (d == -1 and kind == "output" and not (batched and i == 0))
        for i, (a, d) in enumerate(zip(actual, declared, strict=True))
    )
    if not fits:
        raise RepositoryError(
            f"config.pbtxt gives {kind} '{tensor.name}' the dims {declared}"
            f"{' (batch first)' if batched else ''}, the model {actual}"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _malloc_trim() -> Callable[[int], int] | None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


_TRIM = _malloc_trim()


def _return_memory() -> None:
    """Hand freed memory back to the system: without the trim glibc keeps most of it."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
