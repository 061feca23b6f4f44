"""Tensors in shared memory: what lies in a client's regions is reached, and nothing else."""

from __future__ import annotations

import asyncio
import ctypes
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from gateway.engine import cuda
from gateway.errors import AlreadyExists, InvalidRequest, NotAllowed, NotFound, Overloaded
from gateway.transport import shared_memory
from gateway.transport.rpcs.shared_memory import SharedMemoryRpcs
from gateway.transport.shared_memory import SharedMemory, SystemRegion

FOLDER = Path("/dev/shm")
SIZE = 4096
FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def key() -> Iterator[str]:
    """The key of a shared memory object of `SIZE` zeros."""
    file = FOLDER / f"test-{uuid.uuid4().hex}"
    file.write_bytes(bytes(SIZE))
    yield f"/{file.name}"
    file.unlink(missing_ok=True)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory(allowed=True)
    yield made
    made.close()


def still_open(key: str) -> list[str]:
    """Return the descriptors of this process that have the object open, by their files."""
    found = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return [file for file in found if key in file]


def test_what_is_written_is_read_and_lies_where_it_should(memory: SharedMemory, key: str) -> None:
    memory.add(SystemRegion("r", key, 16, 100))
    memory.write("r", 4, b"tide")
    assert memory.read("r", 4, 4) == b"tide"
    assert (FOLDER / key[1:]).read_bytes()[20:24] == b"tide"
    assert memory.read("r", 0, 0) == b""


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 4), (100, 1), (2**62, 1), (0, 101), (99, 2), (0, -1), (4, 2**63)]
)
def test_nothing_beyond_a_region_is_reached(
    memory: SharedMemory, key: str, offset: int, size: int
) -> None:
    memory.add(SystemRegion("r", key, 16, 100))
    for touch in (memory.check, memory.read):
        with pytest.raises(InvalidRequest, match=r"^Invalid offset"):
            touch("r", offset, size)
    if 0 < size < 1000:
        with pytest.raises(InvalidRequest, match=r"^Invalid offset"):
            memory.write("r", offset, bytes(size))


def test_truncated_file_is_an_error_and_not_the_end(memory: SharedMemory, key: str) -> None:
    memory.add(SystemRegion("r", key, 0, SIZE))
    file = FOLDER / key[1:]
    os.truncate(file, 10)
    with pytest.raises(InvalidRequest, match="only 10 of 4096 bytes could be read"):
        memory.read("r", 0, SIZE)
    with pytest.raises(InvalidRequest, match="only 0 of 20 bytes could be written"):
        memory.write("r", 0, bytes(20))
    assert file.stat().st_size == 10


@pytest.mark.parametrize(
    "offset_and_size", [(0, SIZE + 1), (SIZE, 1), (1, SIZE), (0, 0), (2**64 - 1, 2)]
)
def test_region_lies_within_its_file(key: str, offset_and_size: tuple[int, int]) -> None:
    with pytest.raises(InvalidRequest, match="failed to register shared memory region 'r': inv"):
        SystemRegion("r", key, *offset_and_size)
    assert not still_open(key)


@pytest.mark.parametrize(
    "escape",
    [
        "",
        "/",
        "/.",
        "/..",
        "/../etc/passwd",
        "//etc/passwd",
        "/a/b",
        "..",
        "nul\0",
        "\ud800",
        "x" * 300,
    ],
)
def test_key_is_a_name_and_no_path(escape: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^Unable to open shared memory region: "):
        SystemRegion("r", escape, 0, 1)


def test_links_and_what_is_no_file_are_not_opened(key: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "secret"
    elsewhere.write_bytes(bytes(SIZE))
    file = FOLDER / key[1:]
    ways: list[Callable[[], None]] = [
        lambda: file.symlink_to(elsewhere),
        lambda: os.mkfifo(file),
        lambda: os.mkdir(file),
    ]
    for become in ways:
        file.unlink()
        become()
        with pytest.raises(InvalidRequest, match=r"^Unable to open shared memory region: "):
            SystemRegion("r", key, 0, 1)
        if file.is_dir():
            file.rmdir()
            file.touch()
    assert not still_open(key)


def test_another_users_region_is_not_reached(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.geteuid()
    if me == 0:
        os.chown(FOLDER / key[1:], 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    with pytest.raises(InvalidRequest, match=r"^Unable to open shared memory region: "):
        SystemRegion("r", key, 0, 1)
    assert not still_open(key)


@pytest.mark.parametrize("prefix", ["triton_python_backend_shm_region_", "tidegate_"])
def test_regions_of_triton_itself_are_reserved(prefix: str) -> None:
    for begin in ("", "/"):
        with pytest.raises(InvalidRequest, match=f"contains the reserved prefix '{prefix}'"):
            SystemRegion("r", f"{begin}{prefix}7", 0, 1)


def test_regions_are_bounded_in_number_and_closed_at_the_end(
    memory: SharedMemory, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 3)
    for number in range(3):
        memory.check_free(str(number))
        memory.add(SystemRegion(str(number), key, 0, 8))
    with pytest.raises(Overloaded):
        memory.check_free("3")
    memory.close()
    assert not still_open(key)
    with pytest.raises(NotFound):
        memory.check("0", 0, 1)


def test_closed_to_clients_means_no_register_and_no_use(key: str) -> None:
    closed = SharedMemory(allowed=False)
    register = SharedMemoryRpcs(closed).SystemSharedMemoryRegister
    message = pb.SystemSharedMemoryRegisterRequest(name="r", key=key, byte_size=8)
    with pytest.raises(NotAllowed, match="--allow-client-shm"):
        asyncio.run(register(message))
    with pytest.raises(NotAllowed, match="--allow-client-shm"):
        closed.read("r", 0, 1)


def test_gpu_memory_without_a_gpu_is_refused_with_the_reason(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> int:
        raise cuda.NoGpu("no NVIDIA driver is installed")

    monkeypatch.setattr(cuda, "device_count", none)
    rpcs = SharedMemoryRpcs(memory)
    with pytest.raises(InvalidRequest, match="shared memory region 'c': no NVIDIA driver"):
        asyncio.run(rpcs.CudaSharedMemoryRegister(on_gpu("c")))
    status = asyncio.run(rpcs.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest()))
    assert not status.regions


HANDLE = b"h" * cuda.HANDLE_BYTES


def on_gpu(
    name: str, handle: bytes = HANDLE, device: int = 0, size: int = 100
) -> pb.CudaSharedMemoryRegisterRequest:
    return pb.CudaSharedMemoryRegisterRequest(
        name=name, raw_handle=handle, device_id=device, byte_size=size
    )


class FakeGpu:
    """A GPU whose memory is 100 bytes of this process; one handle opens it."""

    memory = ctypes.create_string_buffer(100)
    held = 0

    def __init__(self, _number: int) -> None:
        FakeGpu.held += 1

    def release(self) -> None:
        FakeGpu.held -= 1

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def open_shared(self, handle: bytes, size: int) -> int:
        if handle != HANDLE or size > len(self.memory):
            raise RuntimeError("cuIpcOpenMemHandle_v2 failed with CUDA error 1")
        return ctypes.addressof(self.memory)

    def close_shared(self, address: int) -> None:
        raise RuntimeError("the other process has gone")

    def upload(self, address: int, source: int, size: int) -> None:
        ctypes.memmove(address, source, size)

    def download(self, target: int, address: int, size: int) -> None:
        ctypes.memmove(target, address, size)


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    monkeypatch.setattr(cuda, "Device", FakeGpu)
    yield
    assert FakeGpu.held == 0


@pytest.mark.usefixtures("fake_gpu")
def test_gpu_memory_is_reached_within_its_bounds(memory: SharedMemory, key: str) -> None:
    async def story() -> None:
        rpcs = SharedMemoryRpcs(memory)
        await rpcs.CudaSharedMemoryRegister(on_gpu("c"))
        memory.write("c", 90, b"tide")
        assert memory.read("c", 88, 8) == b"\0\0tide\0\0"
        with pytest.raises(InvalidRequest, match="Invalid offset"):
            memory.write("c", 98, b"tide")
        system = pb.SystemSharedMemoryRegisterRequest(name="c", key=key, byte_size=8)
        with pytest.raises(AlreadyExists):  # one name, whatever the kind
            await rpcs.SystemSharedMemoryRegister(system)
        status = await rpcs.CudaSharedMemoryStatus(pb.CudaSharedMemoryStatusRequest(name="c"))
        assert (status.regions["c"].device_id, status.regions["c"].byte_size) == (0, 100)
        await rpcs.SystemSharedMemoryUnregister(pb.SystemSharedMemoryUnregisterRequest())
        memory.check("c", 0, 1)
        await rpcs.CudaSharedMemoryUnregister(pb.CudaSharedMemoryUnregisterRequest())
        with pytest.raises(NotFound):
            memory.check("c", 0, 1)

    asyncio.run(story())


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize(
    "wrong",
    [
        on_gpu("c", handle=b"other" * 13),
        on_gpu("c", handle=b"o" * 64),
        on_gpu("c", device=1),
        on_gpu("c", device=-1),
        on_gpu("c", size=101),
        on_gpu("c", size=0),
    ],
)
def test_gpu_memory_that_is_not_there_is_refused(
    memory: SharedMemory, wrong: pb.CudaSharedMemoryRegisterRequest
) -> None:
    with pytest.raises(InvalidRequest, match=r"^failed to register shared memory region 'c': "):
        asyncio.run(SharedMemoryRpcs(memory).CudaSharedMemoryRegister(wrong))
