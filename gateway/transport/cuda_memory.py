"""GPU memory that another process shares by a CUDA IPC handle."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gateway.engine import cuda
from gateway.errors import InvalidRequest


class CudaRegion:
    """The first `size` bytes of an allocation on a GPU of this machine."""

    def __init__(self, name: str, handle: bytes, device: int, size: int) -> None:
        """Open it. Raises `InvalidRequest` where it cannot be, or is not as large as that."""
        self.name = name
        self.device = device
        self.size = size
        refusal = f"failed to register shared memory region '{name}': "
        try:
            count = cuda.device_count()
        except cuda.NoGpu as reason:
            raise InvalidRequest(f"{refusal}{reason}") from None
        if not 0 <= device < count or len(handle) != cuda.HANDLE_BYTES or size < 1:
            raise InvalidRequest(f"{refusal}invalid args")
        try:
            self._gpu = cuda.Device(device)
        except RuntimeError as error:
            raise InvalidRequest(f"{refusal}{error}") from None
        try:
            with self._gpu.current():
                self._address = self._gpu.open_shared(handle, size)
        except RuntimeError as error:
            self._gpu.release()
            raise InvalidRequest(f"{refusal}{error}") from None

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy in host memory."""
        content = ctypes.create_string_buffer(size)
        with self._reached():
            self._gpu.download(ctypes.addressof(content), self._address + offset, size)
        return content.raw

    def write(self, offset: int, content: bytes | memoryview) -> None:
        """Copy from host memory."""
        source = bytes(content)
        address = ctypes.cast(ctypes.c_char_p(source), ctypes.c_void_p).value or 0
        with self._reached():
            self._gpu.upload(self._address + offset, address, len(source))

    def close(self) -> None:
        """Let go of the memory, which is the other process's."""
        # that process may have gone, and its memory with it
        with suppress(RuntimeError), self._gpu.current():
            self._gpu.close_shared(self._address)
        with suppress(RuntimeError):
            self._gpu.release()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            with self._gpu.current():
                yield
        except RuntimeError as error:
            raise InvalidRequest(f"shared memory region '{self.name}': {error}") from None
