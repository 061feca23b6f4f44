"""The CUDA driver, as far as the gateway calls it itself; absent on most machines."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64  # of a CUipcMemHandle
_PEER_ACCESS_ON_DEMAND = 1  # the only way in which the driver opens one


class NoGpu(Exception):
    """There is no GPU that could be used, and here is why."""


def device_count() -> int:
    """Return the number of GPUs, at least 1. Raises `NoGpu`.

    Asks the driver alone: importing TensorRT or CUDA libraries where there is none can end the
    process.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise NoGpu(f"no NVIDIA driver is installed ({_LIBRARY} is missing)") from None
    count = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code != 0:
        raise NoGpu(f"the NVIDIA driver cannot be used (CUDA error {code})")
    if count.value < 1:
        raise NoGpu("the NVIDIA driver knows no GPU")
    return count.value


class _IpcHandle(ctypes.Structure):
    """Passed by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class Device:
    """One GPU's primary context, the one that the runtimes use too: memory, copies, streams.

    Every method belongs inside `with device.current():`. Raises RuntimeError with the driver's
    error number.
    """

    def __init__(self, number: int) -> None:
        self._driver = ctypes.CDLL(_LIBRARY)
        self._context = ctypes.c_void_p()
        handle = ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(number))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)
        self._handle = handle

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the calling thread's device."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def release(self) -> None:
        """Give the context back. The device is not usable afterwards."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._handle)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        return address.value

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def open_shared(self, handle: bytes, size: int) -> int:
        """Return the address of another process's allocation, which has `size` bytes at least."""
        address = ctypes.c_uint64()
        self._call(
            "cuIpcOpenMemHandle_v2",
            ctypes.byref(address),
            _IpcHandle.from_buffer_copy(handle),
            ctypes.c_uint(_PEER_ACCESS_ON_DEMAND),
        )
        extent = ctypes.c_size_t()
        try:
            self._call("cuMemGetAddressRange_v2", None, ctypes.byref(extent), address)
            if extent.value < size:
                raise RuntimeError(f"the allocation has {extent.value} bytes, not {size}")
        except RuntimeError:
            self.close_shared(address.value)
            raise
        return address.value

    def close_shared(self, address: int) -> None:
        """Give back what `open_shared` returned."""
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def upload(self, address: int, source: int, size: int) -> None:
        """Copy from host memory."""
        self._call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
        )

    def download(self, target: int, address: int, size: int) -> None:
        """Copy to host memory."""
        self._call(
            "cuMemcpyDtoH_v2",
            ctypes.c_void_p(target),
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
        )

    def new_stream(self) -> int:
        """Return a stream that waits for the default one."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
        return stream.value or 0

    def wait(self, stream: int) -> None:
        """Return when everything on the stream has run. Lets go of the interpreter lock."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def end_stream(self, stream: int) -> None:
        """Give back what `new_stream` returned."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} failed with CUDA error {code}")
