"""GPU memory of another process, as clients share it."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from gateway.engine import cuda
from gateway.errors import InvalidRequest
from gateway.transport.cuda_memory import CudaRegion
from gateway.transport.shared_memory import SharedMemory
from tests.gpu.test_gpu import needs

SIZE = 4096
CONTENT = bytes(range(256)) * 16


def share(pipe: Connection) -> None:
    """Send the handle of an allocation that holds `CONTENT`; once asked, what it holds by then."""
    device = cuda.Device(0)
    with device.current():
        address = device.allocate(SIZE)
        source = ctypes.create_string_buffer(CONTENT, SIZE)
        device.upload(address, ctypes.addressof(source), SIZE)
        handle = (ctypes.c_ubyte * cuda.HANDLE_BYTES)()
        driver = ctypes.CDLL("libcuda.so.1")
        assert driver.cuIpcGetMemHandle(ctypes.byref(handle), ctypes.c_uint64(address)) == 0
        pipe.send(bytes(handle))
        pipe.recv()
        device.download(ctypes.addressof(source), address, SIZE)
        pipe.send(source.raw)


@pytest.fixture
def client() -> Iterator[Connection]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=share, args=(theirs,))
    process.start()
    yield ours
    process.kill()
    process.join()


@needs()
def test_memory_of_another_process_is_read_and_written(client: Connection) -> None:
    memory = SharedMemory(allowed=True)
    memory.add(CudaRegion("c", client.recv(), 0, SIZE))
    assert memory.read("c", 0, SIZE) == CONTENT
    assert memory.read("c", 100, 7) == CONTENT[100:107]
    memory.write("c", 8, memoryview(b"tide"))
    client.send(None)
    assert client.recv() == CONTENT[:8] + b"tide" + CONTENT[12:]
    with pytest.raises(InvalidRequest, match="Invalid offset"):
        memory.read("c", SIZE - 1, 2)
    memory.close()


@needs()
def test_what_is_no_such_memory_is_refused(client: Connection) -> None:
    handle = client.recv()
    for wrong in ((bytes(64), 0, 8), (handle[:10], 0, 8), (handle, 99, 8), (handle, 0, 1 << 50)):
        with pytest.raises(InvalidRequest, match="failed to register shared memory region 'c'"):
            CudaRegion("c", *wrong)
